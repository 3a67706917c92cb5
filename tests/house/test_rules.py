"""The rules that judge have a version, which sweeps note in their plans: whoever changes a rule raises it."""

from __future__ import annotations

import ast
import hashlib

import pytest
from plugin_list import MISSING

from harness.config import ROOT
from harness.report.rules import judging_rules

RULES = {
    "comparison": ("report/select.py", "report/pairwise.py", "report/statistics/*.py"),
    "claims": (
        *("plugins/articles/claims.py", "plugins/articles/rules.py", "plugins/articles/evidence.py"),
        *("plugins/articles/merged.py", "plugins/articles/designed.py"),
        *("plugins/articles/beyond_lora/*.py", "plugins/articles/lora_without_regret/*.py"),
        *("plugins/articles/rank_for_rows/*.py", "report/rank_losses.py", "report/training_rows.py"),
    ),
}
# Of each version of the rules, what their code was. After a change that can change an answer raise the version
# (harness/report/rules.py, harness/plugins/articles/rule_version.py), then renew its digest here; after any other
# change renew the digest alone.
DIGESTS = {("comparison", 3): "3c760220dd36813f", ("claims", 4): "5541b20a6af4b896"}


def code(node: object) -> object:
    """The parts of a syntax tree that decide what it does: without comments, docstrings and places in the file."""
    if isinstance(node, ast.AST):
        fields = {name: code(value) for name, value in ast.iter_fields(node) if value not in (None, [])}
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            fields["body"] = [code(each) for each in node.body if not is_text(each)]
        return [type(node).__name__, sorted(fields.items())]
    return [code(each) for each in node] if isinstance(node, list) else repr(node)


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def digest(patterns: tuple[str, ...]) -> str:
    paths = sorted(path for pattern in patterns for path in (ROOT / "harness").glob(pattern))
    assert len(paths) >= len(patterns), "nothing was read"
    text = repr([code(ast.parse(path.read_text(encoding="utf-8"))) for path in paths])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", [name for name in RULES if name == "comparison" or "articles" not in MISSING])
def test_a_change_of_rules_raises_their_version(name):
    version = judging_rules().rules[name]
    assert DIGESTS[name, version] == digest(RULES[name]), (
        f"the rules of {name} are not those of version {version}: raise it, or renew its digest if no answer can change"
    )


def test_comments_and_docstrings_are_no_rules():
    one, other = (code(ast.parse(text)) for text in ('"""A."""\nx = 1  # one\n', '"""B."""\n\nx   = 1\n'))
    assert one == other != code(ast.parse("x = 2"))
