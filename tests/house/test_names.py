"""Names say what a value is. How many don't may only fall: rename where you touch a file, and lower the number here."""

from __future__ import annotations

import ast
from collections import Counter

from plugin_list import MISSING

from harness.config import ROOT

# What was done to a value, and not what it is.
PARTICIPLES = {"asked", "chosen", "done", "drawn", "found", "given", "held", "kept", "known", "made", "read", "shown"}
PARTICIPLES |= {"taken", "told", "tried", "typed", "written"}
AT_MOST = {"found": 52, "participles": 233, "functions called of": 0}


def bound_names() -> Counter[str]:
    """How often each name is bound in harness/: assigned, a loop's, a parameter, or a function's."""
    names: Counter[str] = Counter()
    for path in (ROOT / "harness").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names[node.id] += 1
            elif isinstance(node, ast.arg):
                names[node.arg] += 1
            elif isinstance(node, ast.FunctionDef):
                names[f"{node.name}()"] += 1
    return names


def test_names_that_say_what_was_done_become_fewer():
    names = bound_names()
    assert sum(names.values()) > 10_000, "nothing was read"
    counts = {
        "found": names["found"],
        "participles": sum(names[name] for name in PARTICIPLES),
        "functions called of": names["of()"],
    }
    if MISSING:
        assert all(counts[name] <= AT_MOST[name] for name in counts)
    else:
        assert counts == AT_MOST, "more than before, or fewer: then lower the number above"
