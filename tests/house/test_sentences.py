"""A sentence is asserted in one test file; others assert its facts, so that better words change one test."""

from __future__ import annotations

import ast
from collections import defaultdict

from harness.config import ROOT

SHORTEST = 40  # characters; shorter texts are facts
TESTS = ROOT / "tests"


def sentences(tree: ast.AST) -> set[str]:
    """The long texts of several words that `tree` asserts."""
    assertions = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    asserted = (node for assertion in assertions for node in ast.walk(assertion))
    texts = {node.value for node in asserted if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {text for text in texts if len(text) >= SHORTEST and text.count(" ") > 2}


def test_a_sentence_is_asserted_in_one_file():
    files = defaultdict(list)
    for path in TESTS.rglob("*.py"):
        for text in sentences(ast.parse(path.read_text(encoding="utf-8"))):
            files[text].append(path.relative_to(TESTS).as_posix())
    assert len(files) > 100, "nothing was read"
    assert not {text: sorted(paths) for text, paths in files.items() if len(paths) > 1}
