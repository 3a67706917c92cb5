"""Options of the commands that read records, on published studies."""

from __future__ import annotations

import json
import signal
import threading
import time
import urllib.error
import urllib.request

import pandas as pd
import pytest
from serving import free_port
from tested_settings import Line, lines

from harness.config import ROOT

AT = "--results-dir {root}/results/reference"
STUDY = f"--study quickstart {AT}"


@pytest.mark.long
@lines(
    Line(f"table {STUDY} --format text --wide", said="galore"),
    f"table {STUDY} --format md --price 2 --out priced.md",
    f"table {STUDY} --cost --price 2 --out costs.md",
    Line(f"table {STUDY} --format csv", said='"method",'),
    Line(f"table {STUDY} --format html", said="<table"),
    Line(f"table {STUDY} --format latex", said="tabular"),
    f"table {STUDY} --format parquet --out cells.parquet",
    Line(f"table {STUDY} --columns method,decode", said="Decode"),
    Line(f"forgetting {STUDY} --format text --wide --cells", said="lora"),
    Line(f"forgetting {STUDY} --format md --items 1", said="lora"),
    Line(f"forgetting {STUDY} --format csv", said="lora"),
    Line(f"forgetting {STUDY} --format html", said="<table"),
    Line(f"forgetting {STUDY} --format latex", said="tabular"),
    f"forgetting {STUDY} --format json --out lost.json",
    f"forgetting {STUDY} --json --figure lost.png",
    f"report {STUDY} --out page.html",
    f"figures {STUDY} --out drawn",
    Line(f"power {STUDY} --effect 0.05 --seeds 3", said="seeds"),
)
def test_a_study_is_rendered_in_every_format(run, tmp_path):
    run(root=ROOT)
    assert "$" in (tmp_path / "priced.md").read_text()
    assert len(pd.read_parquet(tmp_path / "cells.parquet")) == 6
    assert "quickstart" in json.loads((tmp_path / "lost.json").read_text())
    assert (tmp_path / "lost.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (tmp_path / "page.html").read_text()[:200]
    assert list((tmp_path / "drawn" / "quickstart").glob("*.svg"))


@lines(
    Line(f"lint {STUDY}", 1, "finding"),
    Line(f"verify {STUDY} --format text", said="no problems"),
    Line(f"verify {STUDY} --format json", said='"problems": \\[\\]'),
    Line(f"status {STUDY} --format text --wide", said="6 done"),
    Line(f"status {STUDY} --format json", said='"quickstart"'),
    Line(f"status {STUDY} --watch", said="6 done"),
    Line(f"diff lora galore {STUDY} --format text", said="galore"),
    Line(f"diff lora galore {STUDY} --format json", said="galore"),
    "merge {root}/results/reference --into united --newer --format text",
    Line("merge united --into united2 --format json", said='"new"'),
    Line("doctor --results-dir united2 --data-root {folder}", said="torch"),
    Line("completion bash", said="reproduce"),
    Line("completion zsh", said="reproduce"),
)
@pytest.mark.long
def test_a_study_is_checked_and_united(run, tmp_path):
    run(root=ROOT)
    assert len(list((tmp_path / "united2" / "quickstart").glob("*.items.parquet"))) == 6


@lines(Line(f"view {STUDY} --port {{port}}", said=r"http://127\.0\.0\.1:"))
def test_a_report_is_served_until_ctrl_c(run):
    port, answers = free_port(), []

    def look() -> None:
        until = time.monotonic() + 60
        while not answers and time.monotonic() < until:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30)
            except urllib.error.HTTPError as error:  # the address that is printed has a secret in it
                answers.append(error.read().decode())
            except OSError:
                time.sleep(0.1)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    reader = threading.Thread(target=look)
    reader.start()
    try:
        (served,) = run(root=ROOT, port=port)
    finally:
        reader.join()
        signal.signal(signal.SIGINT, before)
    assert answers == ["There is no such page. `harness view` printed its address."]
    assert "/study/quickstart" in served.stdout
