"""Each test begins with an empty cache of requests."""

from empty_cache import cached_requests  # noqa: F401
