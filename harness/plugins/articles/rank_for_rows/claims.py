"""The claims of claims.yaml, to which the rules of this folder belong."""

from pathlib import Path

from harness.plugins.articles.claims import Claims

CLAIMS = Claims(Path(__file__).parent / "claims.yaml")
