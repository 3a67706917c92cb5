"""The plug-ins of the project, which docs/architecture.md lists, and those that are not in this copy of it.

A test in which plug-ins are more than one of its cases belongs to tests/plugins/NAME. What the others say here is how
they go on without: `make test-core` runs them in a copy without any plug-in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from harness.config import ROOT

FOLDER = ROOT / "harness" / "plugins"
LAYOUT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("\n  plugins/ ")[2]
SHIPPED = set(re.findall(r"^    (\w+)/ ", re.split(r"\n {0,2}\w", LAYOUT)[0], re.MULTILINE))
HERE = {path.parent.name for path in FOLDER.glob("*/__init__.py")}
MISSING = SHIPPED - HERE

needs_all_plugins = pytest.mark.skipif(bool(MISSING), reason=f"without the plug-ins {', '.join(sorted(MISSING))}")


@contextmanager
def some_needs_a_plugin() -> Iterator[None]:
    """What is read from pages may need a plug-in: it is skipped if it fails in a copy that lacks one."""
    try:
        yield
    except Exception as error:
        if MISSING:
            pytest.skip(f"it may need one of the plug-ins {', '.join(sorted(MISSING))}: {error}")
        raise
