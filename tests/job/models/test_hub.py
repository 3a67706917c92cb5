"""Models and data sets of the hub, downloaded from one that is on loopback: cells that are run, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from types import SimpleNamespace

import hub
import pytest
from command_line import called, own_server
from datasets import Dataset
from serving import chatty

from harness.config import ROOT
from harness.job.data.generators import wordmath
from harness.record import read_study

pytestmark = [pytest.mark.slow, pytest.mark.long]

SHORT = (
    "train.max_steps=2",
    "train.batch_size=2",
    "train.validation_items=2",
    "infer.repeats=0",
    "rank=4",
    "study=hub",
)
CARD = """---
configs:
- config_name: main
  data_files: [{split: train, path: main/train.parquet}, {split: test, path: main/test.parquet}]
---
"""
ASKED = """
import os
import sys
from harness.errors import UserError
from harness.job.data import sources
from harness.job.models import loading
from harness.settings import ModelSettings

for kind, name, *revision in (line.split() for line in sys.argv[1:]):
    if kind == "token":
        os.environ["HF_TOKEN"] = name
        continue
    try:
        if kind == "model":
            loading.tokenizer(ModelSettings(path=name, revision=revision[0] if revision else None))
        else:
            sources.from_hub(name, "main", "question", question="question", answer="answer")
        print("found")
    except UserError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A hub that holds a model, GSM8K's like, and gated ones; close() takes it away."""
    root, home = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("home")
    items = wordmath.load(seed=0, max_steps=2, train=300, test=20)
    for name in ("org/tiny", "org/gated"):
        (root / "models" / name).mkdir(parents=True)
        chatty(root / "models" / name)
    for name in ("openai/gsm8k", "org/gated-words"):
        folder = root / "datasets" / name
        (folder / "main").mkdir(parents=True)
        (folder / "README.md").write_text(CARD)
        for split in ("train", "test"):
            Dataset.from_list(items[split]).to_parquet(folder / "main" / f"{split}.parquet")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as serving, own_server():
        for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_DATASETS_OFFLINE"):
            patch.delenv(name, raising=False)
        patch.setenv("HF_HOME", str(home))
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("HF_ENDPOINT", serving.enter_context(hub.serve(root, gated={"org/gated", "org/gated-words"})))
        yield SimpleNamespace(home=home, results=home / "results", close=serving.close)


def run(there, *overrides: str) -> subprocess.CompletedProcess:
    """A cell of the model and the data there."""
    return called(there.home, "run", "model.path=org/tiny", "data=gsm8k", "eval.limit=2", *SHORT, *overrides)


def asked(there, *lines: str) -> list[str]:
    """What comes of asking for each of `lines`; "token TOKEN" is for those after it."""
    command, environment = [sys.executable, "-c", ASKED, *lines], os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300).stdout.splitlines()


def test_a_cell_of_the_hub_is_run_and_its_record_names_the_commit(there):
    ran = run(there, "method=lora")
    assert ran.returncode == 0, ran.stderr
    ((record,), problems) = read_study(there.results / "hub")
    assert (record.status, problems) == ("ok", [])
    assert record.fingerprints["model"] == f"org/tiny@{hub.COMMIT}"
    assert {score.task: score.n for score in record.scores} == {"gsm8k": 2}


def test_a_refusal_of_the_hub_is_one_sentence_on_what_to_do(there):
    lines = ["model org/tiny", f"model org/tiny {hub.COMMIT}", "model org/tiny v9", "model org/gated", "model org/none"]
    lines += ["data openai/gsm8k", "data org/gated-words", "data org/none"]
    found = asked(there, *lines, f"token {hub.TOKEN}", "model org/gated", "data org/gated-words")
    gated = "is gated: accept its licence on its page of the hub and set HF_TOKEN to your token."
    none = "is not on the hub, or it is private and HF_TOKEN may not read it."
    assert found == [
        "found",
        "found",
        "The model org/tiny has no such revision on the hub; check model.revision.",
        f"The model org/gated {gated}",
        f"The model org/none {none}",
        "found",
        f"The data set org/gated-words {gated}",
        f"The data set org/none {none}",
        *("found", "found"),  # by the token
    ]


def test_without_an_answer_of_the_hub_its_cache_is_used(there):
    """As on a node without a network, where nobody has set HF_HUB_OFFLINE; what is there is not waited for."""
    assert run(there, "method=lora").returncode == 0
    there.close()
    began = time.monotonic()
    with own_server():  # the other one has read what it needs
        ran = run(there, "method=lora", "seed=1")
    assert ran.returncode == 0, ran.stderr
    seeds = {record.cell.seed for record in read_study(there.results / "hub")[0]}
    assert seeds == {0, 1}
    models, sets = asked(there, "model org/other", "data org/other")
    assert time.monotonic() - began < 60, "the libraries' own tries take minutes"
    assert models.startswith("The model org/other is not in the hub's cache, and the hub does not answer; ")
    assert sets.startswith("The data set org/other is not")
    (log,) = there.results.glob("hub/*s1*.log")
    assert "does not answer; using its cache." in log.read_text()
