"""The help on settings: a name never runs into its text, and lines fit the terminal."""

from __future__ import annotations

from harness.cli import sweep


def test_a_long_name_has_room(monkeypatch):
    lines = sweep._listed({"study_alpha_fresh": "Is alpha right?", "rank": "What does rank buy?"})
    assert lines == ["  study_alpha_fresh  Is alpha right?", "  rank               What does rank buy?"]


def test_lines_fit_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, sweep._settings().splitlines())) <= 80
