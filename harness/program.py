"""How this process's command line begins: messages that print a command to paste begin it the same way.

The script ``harness`` is not on every path; ``python -m harness`` works wherever the package is found.
"""

from __future__ import annotations

import sys
from pathlib import Path

PROGRAM = "harness" if Path(sys.argv[0]).name == "harness" else "python -m harness"


def results_option(results: Path) -> list[str]:
    """The words of a command that name the folder `results`: none for the default."""
    return [] if results == Path("results") else ["--results-dir", str(results)]
