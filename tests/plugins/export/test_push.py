"""A cell's weights on the hub: what is sent, and what is refused. The hub itself can't be reached here."""

from __future__ import annotations

import json
import shutil

import pytest
from hub import uploads
from job_helpers import no_peak, run_request, tiny  # noqa: F401
from records import change, make_record, sound

from harness import record
from harness.__main__ import main
from harness.job.models import saved
from harness.record import CARD, Saved, model_folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The path of the record of a cell that kept its adapter."""
    cell = tiny("method=lora", "infer.repeats=0", "eval.tasks=[]")
    path = tmp_path_factory.mktemp("results") / "demo" / f"{cell.name}.json"
    path.parent.mkdir()
    run_request(cell, "demo", path, None, lambda event: None, save="adapter")
    return path


@pytest.fixture
def with_weights(tmp_path):
    """The path of a sound record, beside which lies what stands for an adapter."""
    made = make_record("lora", 16, 32.0, 2e-4)
    change(made, model={"path": "embedded:tiny"})
    path = sound(made, tmp_path / "results" / "demo")
    folder = model_folder(path)
    folder.mkdir()
    for name in ("adapter_model.safetensors", CARD):
        (folder / name).write_text(name)
    (folder / "adapter_config.json").write_text("{}")
    made.saved = Saved("adapter", record.hashes(folder))
    record.write(made, path)
    return path


@pytest.fixture
def hub(monkeypatch):
    with uploads(monkeypatch) as taken:
        yield taken


@pytest.mark.parametrize(("flags", "visibility"), [([], "private"), (["--public"], "public")])
def test_the_hub_is_sent_what_was_saved(trained, capsys, hub, flags, visibility):
    results = ["--study", "demo", "--results-dir", str(trained.parent.parent)]
    assert main(["push", trained.stem, "me/model", *flags, *results]) == 0
    assert f"{hub.url}/me/model" in capsys.readouterr().out
    (made,) = hub.made
    assert (made["organization"], made["name"], made["visibility"]) == ("me", "model", visibility)
    assert trained.stem in hub.sent.pop("what it is for")
    files = {file.name: file.read_bytes() for file in model_folder(trained).iterdir()}
    config = json.loads(files.pop(saved.ADAPTER[0]))
    told = json.loads(hub.sent.pop(saved.ADAPTER[0]))
    assert hub.sent == files
    assert told == config | {"base_model_name_or_path": "embedded:tiny"}


def test_weights_of_an_earlier_push_are_removed(with_weights, hub):
    """With the config of an adapter beside it, transformers would load that for a whole model."""
    hub.sent |= {"model.safetensors": b"", "config.json": b"", "LICENSE": b"mine"}
    assert main(["push", "lora", "me/model", "--results-dir", str(with_weights.parent.parent)]) == 0
    del hub.sent["what it is for"]
    assert set(hub.sent) == {"adapter_model.safetensors", "adapter_config.json", CARD, "LICENSE"}


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [([], ["--public"], "is private on the hub: omit --public"), (["--public"], [], "is public on the hub: add")],
)
def test_a_repository_that_others_see_otherwise_gets_nothing(with_weights, hub, capsys, first, then, said):
    push = ["push", "lora", "me/model", "--results-dir", str(with_weights.parent.parent)]
    assert main([*push, *first]) == 0
    hub.sent.clear()
    assert main([*push, *then]) == 2
    assert said in capsys.readouterr().err
    assert not hub.sent


@pytest.mark.parametrize(
    ("token", "said"),
    [(None, "set HF_TOKEN"), ("hf_" + "x" * 30, "could not be pushed to me/model (")],
    ids=["token", "network"],
)
def test_a_refused_upload_is_one_sentence(with_weights, capsys, monkeypatch, token, said):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments = ["push", "lora", "me/model", "--results-dir", str(with_weights.parent.parent)]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert "xxx" not in line
    shutil.rmtree(model_folder(with_weights))
    assert main(arguments) == 2
    assert "has no saved weights to push" in capsys.readouterr().err
