"""A study as a data set of the hub: what is sent, that `datasets` reads it, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hub import serve, uploads
from plans import make_plan
from records import make_record, sound

from harness.__main__ import main
from harness.config import ROOT
from harness.plugins.exchange.exports import dataset_card
from harness.record import PLAN, add_plans, read_study

REFERENCE = ROOT / "results" / "reference"


@pytest.fixture
def hub(monkeypatch):
    with uploads(monkeypatch) as taken:
        yield taken


@pytest.fixture
def sent(hub, capsys):
    assert main(["push-study", "quickstart", "me/quickstart", "--results-dir", str(REFERENCE)]) == 0
    assert capsys.readouterr().out == f"{hub.url}/datasets/me/quickstart\n"
    (made,) = hub.made
    assert (made["type"], made["organization"], made["name"]) == ("dataset", "me", "quickstart")
    assert made["visibility"] == "private"
    return hub.sent


def test_the_hub_is_sent_records_items_cells_and_a_card(sent):
    folder = REFERENCE / "quickstart"
    kept = {path.name: path.read_bytes() for end in ("*.json", "*.items.parquet", PLAN) for path in folder.glob(end)}
    assert len(kept) > 10
    assert "quickstart" in sent.pop("what it is for")
    assert set(sent) == {*kept, "README.md", "cells.parquet"}
    assert {name: sent[name] for name in kept} == kept


def test_the_plan_is_sent_too(hub, tmp_path, capsys):
    shutil.copytree(REFERENCE / "quickstart", tmp_path / "quickstart")
    records, _ = read_study(tmp_path / "quickstart")
    add_plans(tmp_path / "quickstart", [make_plan(records, created="2026-01-01T00:00:00+00:00")])
    assert main(["push-study", "quickstart", "me/quickstart", "--results-dir", str(tmp_path)]) == 0
    assert hub.sent[PLAN] == (tmp_path / "quickstart" / PLAN).read_bytes()


def test_records_that_the_study_has_no_more_are_removed(hub):
    hub.sent |= {"gone.json": b"", "gone.items.parquet": b"", "notes.md": b"mine"}
    assert main(["push-study", "quickstart", "me/quickstart", "--results-dir", str(REFERENCE)]) == 0
    assert not {"gone.json", "gone.items.parquet"} & hub.sent.keys()
    assert "notes.md" in hub.sent


def test_the_card_has_the_table_and_what_the_hub_reads(sent):
    _, head, text = sent["README.md"].decode().split("---\n", 2)
    told = yaml.safe_load(head)
    assert told["configs"][0] == {"config_name": "cells", "data_files": "cells.parquet", "default": True}
    assert {"lora", "dora", "galore"} <= set(told["tags"])
    assert "| lora     | r=16 α=32 lr=1e-3" in text
    assert "Single seed" in text
    assert "torch 2." in text


def test_names_in_records_are_no_markup_of_the_card():
    record = make_record("lora", 16, environment={"versions": {"torch": "2.1\n# <script>"}})
    record.cell = replace(record.cell, method="<img src=x>`")
    card = dataset_card.files([record], Path("quickstart"))["README.md"].decode()
    assert "- `torch 2.1 # <script>`" in card
    assert "`<img src=x> `" in card


@pytest.mark.long
def test_datasets_loads_it_from_the_hub(sent, tmp_path):
    repository = tmp_path / "hub" / "datasets" / "me" / "quickstart"
    repository.mkdir(parents=True)
    for name, content in sent.items():
        if name != "what it is for":
            (repository / name).write_bytes(content)
    read = (
        "import sys, datasets\n"
        "for name in ('cells', 'items'):\n"
        "    loaded = datasets.load_dataset('me/quickstart', name, split='train')\n"
        "    loaded.to_parquet(f'{sys.argv[1]}/{name}.parquet')\n"
    )
    with serve(tmp_path / "hub", set()) as url:
        environment = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "PATH": ""}
        command = [sys.executable, "-c", read, str(tmp_path)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    records, _ = read_study(REFERENCE / "quickstart")
    cells = pd.read_parquet(tmp_path / "cells.parquet").set_index("name")
    assert set(cells.index) == {record.cell.name for record in records}
    for record in records:
        assert cells["wordmath_short/exact_match/flexible-extract"][record.cell.name] in [
            score.value for score in record.scores
        ]
    items = pd.read_parquet(tmp_path / "items.parquet")
    assert len(items) == sum(len(pd.read_parquet(path)) for path in (REFERENCE / "quickstart").glob("*.items.parquet"))


def test_what_was_sent_is_a_study_again(sent, tmp_path, capsys):
    study = tmp_path / "results" / "quickstart"
    study.mkdir(parents=True)
    for name, content in sent.items():
        if name != "what it is for":
            (study / name).write_bytes(content)
    assert main(["verify", "--results-dir", str(tmp_path / "results")]) == 0
    assert "no problems" in capsys.readouterr().out


def test_a_bad_record_no_token_and_no_study_are_one_sentence(tmp_path, monkeypatch, capsys, hub):
    path = sound(make_record("lora", 16, 32.0, 2e-4), tmp_path / "results" / "demo")
    push = ["push-study", "demo", "me/demo", "--results-dir", str(tmp_path / "results")]

    def refused(arguments):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert not hub.made
        return line

    assert "There is no study dmeo" in refused([push[0], "dmeo", *push[2:]])
    monkeypatch.delenv("HF_TOKEN")
    assert "set HF_TOKEN" in refused(push)
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"seconds": "long"}))
    assert path.name in refused(push)
