"""The committed screenshots are of the report and the table of today, and small."""

from __future__ import annotations

import struct
import sys

import pytest
from plugin_list import needs_all_plugins

from harness.config import ROOT

sys.path.append(str(ROOT / "docs"))
import screenshots

NEEDS_CHROMIUM = pytest.mark.skipif(screenshots.CHROMIUM is None, reason="`make publish` can't take them here")


def test_the_terminal_shows_the_table_of_today():
    assert screenshots.TERMINAL.read_text(encoding="utf-8") == screenshots.terminal_picture(), (
        "`make publish` renews it"
    )


def test_the_terminal_s_picture_loads_nothing():
    text = screenshots.TERMINAL.read_text(encoding="utf-8")
    assert "url(http" not in text
    assert "font-face" not in text


@needs_all_plugins
@NEEDS_CHROMIUM
def test_the_pictures_are_of_the_report_of_today():
    assert screenshots.is_current(screenshots.report_page()), "`make publish` renews them"


@pytest.mark.parametrize("name", screenshots.SCREENS)
def test_pictures_are_small_and_as_large_as_their_window(name):
    content = (screenshots.FIGURES / name).read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(content) <= 200_000
    assert "{},{}".format(*struct.unpack(">II", content[16:24])) == screenshots.SCREENS[name][0]


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """A folder for the pictures, of a report that is a word."""
    taken = []

    def photograph(chromium, html):
        taken.append(html)
        for name in screenshots.SCREENS:
            (tmp_path / name).touch()
        (tmp_path / "page.sha256").write_text(screenshots.hash_of(html))

    monkeypatch.setattr(screenshots, "FIGURES", tmp_path)
    monkeypatch.setattr(screenshots, "TERMINAL", tmp_path / "terminal.svg")
    monkeypatch.setattr(screenshots, "PAGE_HASH", tmp_path / "page.sha256")
    monkeypatch.setattr(screenshots, "terminal_picture", lambda: "")
    monkeypatch.setattr(screenshots, "report_page", lambda: "one")
    monkeypatch.setattr(screenshots, "photograph", photograph)
    monkeypatch.setattr(screenshots, "CHROMIUM", "chromium")
    return taken


def test_they_are_taken_again_only_when_the_report_changes(elsewhere, monkeypatch):
    for _ in range(2):
        screenshots.main()
    monkeypatch.setattr(screenshots, "report_page", lambda: "two")
    screenshots.main()
    assert elsewhere == ["one", "two"]


def test_without_chromium_one_line_says_that_they_stay(elsewhere, monkeypatch, capsys):
    monkeypatch.setattr(screenshots, "CHROMIUM", None)
    screenshots.main()
    assert elsewhere == []
    (line,) = capsys.readouterr().out.splitlines()
    assert "no Chromium is on PATH" in line
