"""The settings `api.`; a model's address, key and price are among those of the model."""

from __future__ import annotations

from dataclasses import dataclass

from harness.schema import setting


@dataclass
class ApiConfig:
    """How a model behind an API is asked. It changes no answer."""

    concurrency: int = setting(8, least=1, unit="requests", in_cell=False)
    """Requests at a time."""
    per_minute: float | None = setting(None, above=0, unit="requests", in_cell=False)
    """Requests started per minute (null: no limit)."""
    timeout: float = setting(120, above=0, unit="seconds", in_cell=False)
    """Time limit per request in seconds."""
    retries: int = setting(6, least=0, unit="attempts", in_cell=False)
    """Further attempts after a request that failed (server busy, connection lost, bad JSON)."""
    backoff: float = setting(1.0, least=0, unit="seconds", in_cell=False)
    """Seconds before the second attempt, doubled before each further one. The endpoint's Retry-After has priority."""
