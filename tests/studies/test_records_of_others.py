"""An archive of somebody else's: merged, checked and put before every command, it runs nothing of its own.

Each payload is a record under hashes that fit, with weights beside it, that names code in one of the places from which
records are turned back into something that runs or loads. The code leaves a mark.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
import shutil
import threading
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import hub
import pytest
import torch
from command_line import called
from records import changed
from scripted import server

from harness import gate
from harness.cli import view
from harness.cli.commands import command_line
from harness.job.models import loading, saved
from harness.record import cell_name, hashes, model_folder, read, write
from harness.settings import cell_id

pytestmark = [pytest.mark.slow, pytest.mark.long]

TINY = ("model=tiny", "method=lora", "rank=4", "data=wordmath_short", "train.max_steps=1", "train.batch_size=2")
TINY += ("train.validation_items=2", "infer.repeats=0", "eval.limit=2", "save=adapter", "study=good")
OWN_MODEL = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""
AUTO_MAP = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}


class Pickled:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path):
        self._mark = mark

    def __reduce__(self):
        return Path.touch, (self._mark,)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with the results of a cell that was trained here, and its record's path."""
    folder = tmp_path_factory.mktemp("good")
    swept = called(folder, "sweep", *TINY, "seed=0")
    assert swept.returncode == 0, swept.stderr
    (path,) = (folder / "results" / "good").glob("lora-*.json")
    return path


@dataclasses.dataclass
class Planting:
    """Where a payload's files are put: beside the weights of the cell itself, and of another one, the carrier.

    named: what settings call the carrier's folder, once it is merged.
    """

    own: Path
    carrier: Path
    named: str
    mark: Path

    def module(self) -> str:
        """The text of a module that leaves a mark when it is imported."""
        return f"from pathlib import Path\nPath({str(self.mark)!r}).touch()\nclass X: pass\ndef f(*_): return 0\n"

    def pickle(self, path: Path) -> None:
        path.write_bytes(pickle.dumps(Pickled(self.mark)))


def _reads_pickle(target, argument, **more):
    """A slot `load` that calls a function of a library, which reads a pickle among the carrier's weights."""

    def payload(settings, at):
        at.pickle(at.carrier / "special_tokens_map.json")
        call = {"_target_": target, argument: f"{at.named}/special_tokens_map.json", **more}
        return changed(settings, method={"load": settings.method.load | {"dtype": call}})

    return payload


def _slot(slot, **arguments):
    """Arguments of a slot that name a module, which lies in the working folder and in the results."""
    return lambda settings, at: changed(settings, method={slot: (getattr(settings.method, slot) or {}) | arguments})


def _own_code(settings, at):
    (at.carrier / "own.py").write_text(OWN_MODEL.format(mark=str(at.mark)))
    (at.carrier / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": AUTO_MAP}))
    return changed(settings, model={"path": at.named, "trust_remote_code": True})


def _pickled_base(settings, at):
    at.pickle(at.carrier / "pytorch_model.bin")
    (at.carrier / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return changed(settings, model={"path": at.named, "use_safetensors": False})


def _task_file(settings, at):
    (at.carrier / "planted.py").write_text(at.module())
    (at.carrier / "task.yaml").write_text("task: planted\nprocess_results: !function planted.f\n")
    return changed(settings, eval={"tasks": [f"{at.named}/task.yaml"]})


def _any_file(settings, at):
    load = {"_target_": "harness.job.data.sources.from_file", "path": "private.jsonl"}
    return changed(settings, data={"load": load | {"columns": {"question": "question", "answer": "answer"}}})


def _adapter_config(settings, at):
    path = at.own / "adapter_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"megatron_config": {"a": 1}, "megatron_core": "planted"})
    )
    return settings


def _pickled_adapter(settings, at):
    (at.own / "adapter_model.safetensors").rename(at.own / "other.safetensors")
    at.pickle(at.own / "adapter_model.bin")
    return settings


PACKAGED = {"_target_": "harness.job.methods.optimizers.packaged", "_partial_": True, "extra": "apollo"}
PAYLOADS = {
    "own_code": _own_code,
    "pandas": _reads_pickle("pandas.read_pickle", "filepath_or_buffer"),
    "joblib": _reads_pickle("joblib.load", "filename"),
    "numpy": _reads_pickle("numpy.load", "file", allow_pickle=True),
    "torch": _reads_pickle("torch.load", "f", weights_only=False),
    "packaged": _slot("optim", optimizer=PACKAGED | {"name": "planted.X"}),
    "get_class": _slot("optim", optimizer_cls={"_target_": "hydra.utils.get_class", "path": "planted.X"}),
    "megatron": _slot("adapt", megatron_core="planted", megatron_config={"a": 1}),
    "results": _slot("init", _target_="results.evil.planted.X"),
    "any_file": _any_file,
    "task_file": _task_file,
    "pickled_base": _pickled_base,
    "adapter_config": _adapter_config,
    "pickled_adapter": _pickled_adapter,
}
LOADED = ("own_code", "pandas", "joblib", "numpy", "torch")  # whose mark loading the model alone leaves


def lay_down(record, weights, path):
    """Write `record` to `path` with items and `weights`, under hashes that fit."""
    shutil.copytree(weights, path.with_suffix(""))
    record.saved = dataclasses.replace(record.saved, files=hashes(path.with_suffix("")))
    record.study = path.parent.name
    write(record, path)


def archive(good: Path, folder: Path, name: str) -> Path:
    """The results of the payload `name`, in `folder`: a carrier, a cell that ended well, and one that failed."""
    study, work = folder / "theirs" / "evil", folder / "work"
    study.mkdir(parents=True)
    carrier = read(good)
    planting = Planting(work / "own", work / "carrier", f"results/evil/{carrier.cell.name}", folder / "mark")
    for copy in (planting.own, planting.carrier):
        shutil.copytree(good.with_suffix(""), copy)
    settings = PAYLOADS[name](carrier.cell.settings, planting)
    lay_down(carrier, planting.carrier, study / good.name)
    shutil.copy(good.with_suffix(".items.parquet"), (study / good.name).with_suffix(".items.parquet"))
    for seed, status in ((1, "ok"), (2, "failed")):
        record = read(good)
        cell = dataclasses.replace(record.cell, seed=seed, settings=dataclasses.replace(settings, seed=seed))
        cell.id = cell_id(cell.settings)
        cell.name = cell_name(cell)
        record.cell, record.status = cell, status
        shutil.copy(good.with_suffix(".items.parquet"), study / f"{cell.name}.items.parquet")
        lay_down(record, planting.own, study / f"{cell.name}.json")
        (study / f"{cell.name}.log").write_text("what it printed\n")
    (study / "commands.txt").write_text("harness sweep evil; touch mark\nharness sweep model.trust_remote_code=true\n")
    for beside in (study, folder):
        (beside / "planted.py").write_text(planting.module())
    (folder / "private.jsonl").write_text('{"question": "secret", "answer": "1"}\n' * 50)
    shutil.rmtree(work)
    return folder / "theirs"


def _page(folder):
    """`view`, whose pages are fetched meanwhile."""
    options = SimpleNamespace(results_dir=Path("results"), study=None, port=0)
    with view.viewer(options) as viewer:
        thread = threading.Thread(target=viewer.serve_forever)
        thread.start()
        try:
            for address in (viewer.address(), viewer.address("study", "evil")):
                urllib.request.urlopen(f"http://127.0.0.1:{viewer.port}{address}").read()
        finally:
            viewer.shutdown()
            thread.join()


JUDGE = ("--judge", "judge", "--base-url", "{url}")
SYNTHESIZE = ("--source", "wordmath_short", "--n", "1", "--base-url", "{url}", "--model", "m")
NAMES = command_line("harness").names()
# Of each command, what is typed. evil: a cell that ended well. Each is to end with one of these statuses.
COMMANDS = {
    "run": (["run", "study=evil", *TINY[:-2], "eval.tasks=[]", "--cfg", "job"], {0}),
    "sweep": (["sweep", *TINY[:-2], "study=evil", "eval.tasks=[]", "seed=9"], {0, 2}),  # 2: another model of its name
    "plan": (["plan", "study=evil", *TINY[:-2], "eval.tasks=[]"], {0}),
    "calibrate": (["calibrate", *TINY[:-2], "eval.tasks=[]"], {0}),
    "status": (["status", "evil"], {0}),
    "logs": (["logs", "{evil}"], {0}),
    "retry": (["retry", "--failed"], {2}),
    "score": (["score", "evil", "--tasks", "wordmath_short", "--limit", "2", "--replace"], {0, 1}),
    "reproduce": (["reproduce", "evil", "--cells", "2"], {2}),
    "merge": (["merge", "theirs", "--into", "again"], {0}),
    "verify": (["verify", "evil"], {0}),
    "export-model": (["export-model", "{evil}", "--to", "merged", "--out", "exported"], {2}),
    "push": (["push", "{evil}", "me/evil"], {0, 2}),
    "push-study": (["push-study", "evil", "me/evil"], {0}),
    "export": (["export", "evil", "--out", "exported_scores"], {0}),
    "table": (["table", "evil"], {0}),
    "report": (["report", "evil", "--out", "page.html"], {0}),
    "view": (_page, set()),
    "figures": (["figures", "evil"], {0}),
    "claims": (["claims", "evil"], {0}),
    "forgetting": (["forgetting", "evil"], {0}),
    "power": (["power", "evil", "--effect", "0.02", "--seeds", "3"], {0, 2}),  # of two items there may be no right one
    "lint": (["lint", "evil"], {0, 1}),
    "diff": (["diff", "{evil}", "{failed}"], {0}),
    "ask": (["ask", "What is 2+2?", "--study", "evil", "--cells", "{evil}", "--tokens", "2"], {2}),
    "judge": (["judge", "evil", *JUDGE, "--task", "wordmath_short"], {0, 1}),
    "synthesize": (
        ["synthesize", "--source", "wordmath_short", "--n", "1", "--base-url", "{url}", "--model", "m"],
        {0, 1},
    ),
    "doctor": (["doctor"], {0}),
    "import": (["import", "lm-eval", "results/evil"], {2}),
    "completion": (["completion", "bash"], {0}),
    "rm": (["rm", "{failed}", "--yes"], {0}),
}
COMMANDS = {name: typed for name, typed in COMMANDS.items() if name in NAMES}  # some are of plug-ins
REFUSED = "is neither run nor loaded from its record: "
LOADS = ("retry", "reproduce", "export-model", "ask")  # commands that refuse each of the payloads


def test_every_command_is_tried():
    assert sorted(COMMANDS) == sorted(NAMES)


@pytest.fixture
def theirs(good, tmp_path, monkeypatch):
    """theirs(name): the working folder with an archive of that payload, unpacked and merged."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    gate._named.cache_clear()

    def merged(name):
        archive(good, tmp_path, name)
        merge = called(tmp_path, "merge", "theirs")
        assert merge.returncode == 0, merge.stderr
        refused = [line.partition(" ")[0] for line in merge.stdout.splitlines() if REFUSED in line]
        assert {name.split("-")[-2] for name in refused} >= {"s1", "s2"}, merge.stdout
        shutil.copy("planted.py", "results/evil")
        return tmp_path

    return merged


@pytest.mark.parametrize("name", PAYLOADS)
def test_no_command_runs_it(theirs, name):
    folder = theirs(name)
    evil, failed = (next(path for path in Path("results/evil").glob(f"*-s{seed}-*.json")).stem for seed in (1, 2))
    with hub.uploads(pytest.MonkeyPatch()) as _, server(lambda prompt, number: "A") as endpoint:
        names = {"evil": f"evil/{evil}", "failed": f"evil/{failed}", "url": endpoint.url}
        for command, (typed, statuses) in COMMANDS.items():
            if callable(typed):
                typed(folder)
            else:
                run = called(folder, *(word.format(**names) for word in typed))
                said = run.stdout + run.stderr
                assert run.returncode in statuses, (command, run.returncode, said)
                assert "Traceback" not in said, command
                if command in LOADS:
                    errors = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
                    assert len(errors) == 1, (command, said)
                    assert "its record" in errors[0], command
                if command == "verify":
                    assert "no problems" in run.stdout
                    assert all(f"- {cell} {REFUSED}" in run.stdout for cell in (evil, failed))
                assert "touch mark" not in said, command
                assert "sweep model.trust_remote_code" not in said, command
            assert not (folder / "mark").exists(), command


@pytest.mark.parametrize("name", LOADED)
def test_without_the_gate_it_would_run(theirs, name, monkeypatch):
    """So the marks of these tests do tell."""
    folder = theirs(name)
    monkeypatch.syspath_prepend(folder)
    path = next((folder / "results/evil").glob("*-s1-*.json"))
    record, here = read(path), torch.device("cpu")
    with contextlib.suppress(Exception):  # what is left of the load may fail in its own way
        if name == "own_code":
            loading.load(record.cell, here)
        else:
            saved.load(record, model_folder(path), here)
    assert (folder / "mark").exists()
