"""Writes the screenshots of `docs/quickstart.md`: `python docs/screenshots.py`, a part of `make publish`.

A report's first screen, light and dark, and on a phone, by Chromium; what `harness table` prints, as SVG. Chromium's
pictures differ from version to version, so they are taken only if the page has changed: PAGE_HASH is of the page that
they show.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from harness import gate, terminal
from harness.record import Record, read_study
from harness.report.pages import page
from harness.report.tables import screen
from harness.report.tables.best import tables

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
STUDY = "reference/study_skill"
FIGURES = ROOT / "docs" / "figures"
TERMINAL = FIGURES / "terminal.svg"
COLUMNS = 120  # of the terminal
PAGE_HASH = FIGURES / "page.sha256"
LONG_NUMBER = re.compile(r"-?\d+\.\d{9,}(?:e-?\d+)?")
DARK = ("--force-dark-mode", "--blink-settings=preferredColorScheme=0")
SCREENS = {  # by file: size of the window, and options of Chromium
    "page-light.png": ("1440,900", ()),
    "page-dark.png": ("1440,900", DARK),
    "page-phone.png": ("390,844", ()),
}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)  # fonts from the network


def records() -> list[Record]:
    return read_study(RESULTS / STUDY)[0]


def report_page() -> str:
    """The report of STUDY without the versions that draw it, so that the same records give the same page."""
    command = f"harness report --study {STUDY} --out report.html"
    return page.render(records(), RESULTS / STUDY, where=f"--study {STUDY}", command=command, runnable=gate.runnable)


def hash_of(html: str) -> str:
    """The hash of the page `html`, but for the last digits of its numbers, in which numpy's versions differ."""
    rounded = LONG_NUMBER.sub(lambda number: f"{float(number[0]):.6g}", html)
    return hashlib.sha256(rounded.encode()).hexdigest() + "\n"


def terminal_picture() -> str:
    """What `harness table` prints of the study's best settings on a terminal of COLUMNS, as SVG."""
    console = Console(
        file=io.StringIO(),
        width=COLUMNS,
        record=True,
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
    )
    console.print(f"[bold]$ harness table {STUDY}[/bold]", highlight=False)
    terminal.show(console, screen.view(tables(records(), RESULTS / STUDY)[:1], COLUMNS))
    return console.export_svg(title="harness table", code_format=FORMAT)


def is_current(html: str) -> bool:
    """Whether the pictures are there, and of the page `html`."""
    there = all((FIGURES / name).is_file() for name in SCREENS) and PAGE_HASH.is_file()
    return there and PAGE_HASH.read_text(encoding="utf-8") == hash_of(html)


def photograph(chromium: str, html: str) -> None:
    """Take all of SCREENS of the page `html`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(html, encoding="utf-8")
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--virtual-time-budget=5000", f"--user-data-dir={folder}/profile"]
        for name, (size, options) in SCREENS.items():
            shot = [f"--window-size={size}", f"--screenshot={FIGURES / name}", path.as_uri()]
            subprocess.run([*command, *options, *shot], check=True, capture_output=True, timeout=120)
    PAGE_HASH.write_text(hash_of(html), encoding="utf-8")


def main() -> None:
    TERMINAL.write_text(terminal_picture(), encoding="utf-8")
    html = report_page()
    if is_current(html):
        return
    if CHROMIUM is None:
        print("docs/screenshots.py: the report has changed; its pictures stay, as no Chromium is on PATH.")
        return
    photograph(CHROMIUM, html)


if __name__ == "__main__":
    main()
