"""Saved weights: plain peft and transformers load them and compute the same; the cell's results stay what they are."""

from __future__ import annotations

import ast
import json
import re
import shutil
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from huggingface_hub import ModelCard
from job_helpers import no_peak, run_request, tiny  # noqa: F401
from peft import AutoPeftModelForCausalLM, PeftModel
from records import change, make_record, sound
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from harness import record
from harness.__main__ import main
from harness.errors import UserError
from harness.job.models import embedded, saved
from harness.record import CARD, Saved, model_card, model_folder, read, studies
from harness.studies import verify
from harness.sweep.store import Study

FORMS = [("lora", "adapter"), ("lora", "merged"), ("dora_fast", "adapter"), ("qlora", "adapter"), ("galore", "adapter")]
FORMS += [("lora_8bit", "adapter"), ("lora_8bit", "merged")]
IDS = torch.arange(3, 40)[None]


@torch.no_grad()
def logits(net):
    return net.eval()(input_ids=IDS).logits.float()


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """kept(method, save): the record's path, and what the model gave when it was saved; each is run once."""
    folder, known = tmp_path_factory.mktemp("saved"), {}

    def run_once(method, save):
        if (method, save) not in known:
            scored = "eval.limit=2" if (method, save) == FORMS[0] else "eval.tasks=[]"
            cell = tiny(f"method={method}", "infer.repeats=0", scored)
            path = folder / save / f"{cell.name}.json"
            path.parent.mkdir(exist_ok=True)
            seen = []
            with pytest.MonkeyPatch.context() as patch:
                write = saved.write
                patch.setattr(saved, "write", lambda net, *rest: seen.append(logits(net)) or write(net, *rest))
                run_request(cell, "demo", path, None, lambda event: None, save=save)
            known[method, save] = path, seen[-1]  # on a quantised base the merged model takes the adapter's place
        return known[method, save]

    return run_once


def base(**keywords):
    return AutoModelForCausalLM.from_pretrained(embedded.folder("tiny"), dtype=torch.float32, **keywords)


def loaded(path, form):
    """The saved model by nothing but peft and transformers."""
    folder = model_folder(path)
    if form != "adapter":
        return AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.float32}
    quantised = {
        None: {},
        4: {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **nf4)},
        8: {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)},
    }
    net = base(**quantised[read(path).cell.settings.method.bits])
    for module in net.modules():
        if isinstance(module, Linear4bit):  # would round its scales to bf16 on a CPU that has it
            module.support_avx512bf16_for_cpu = False
    return PeftModel.from_pretrained(net, folder)


@pytest.mark.parametrize(("method", "save"), FORMS)
def test_plain_libraries_compute_the_same(kept, method, save):
    path, expected = kept(method, save)
    found = read(path)
    assert (found.status, found.saved.form) == ("ok", "model" if method == "galore" else save)
    net = loaded(path, found.saved.form)
    torch.testing.assert_close(logits(net), expected, rtol=0, atol=1e-5)
    if method not in ("qlora", "lora_8bit"):
        assert (logits(base()) - expected).abs().max() > 1e-3, "it was not trained"
    tokenizer = AutoTokenizer.from_pretrained(model_folder(path))
    assert (
        tokenizer("one two")["input_ids"]
        == AutoTokenizer.from_pretrained(embedded.folder("tiny"))("one two")["input_ids"]
    )


def cut(folder):
    (path,) = folder.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])


def of_another_rank(folder):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 1}))


def without_a_layer(folder):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": ["nowhere"]}))


@pytest.mark.parametrize(
    ("save", "damage"),
    [("adapter", cut), ("merged", cut), ("adapter", of_another_rank), ("adapter", without_a_layer)],
)
def test_weights_that_can_not_be_loaded_are_one_sentence(kept, tmp_path, save, damage):
    """They may be anybody's, under hashes that fit."""
    path, _ = kept("lora", save)
    folder = tmp_path / "weights"
    shutil.copytree(model_folder(path), folder)
    damage(folder)
    with pytest.raises(UserError, match=r"The weights in .* can't be loaded \(") as error:
        saved.load(read(path), folder, torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_saved_weights_lie_beside_the_record_complete_and_alone(kept):
    path, _ = kept("lora", "adapter")
    names = {other.name for other in path.parent.iterdir()}
    assert {name for name in names if name.startswith("lora-")} == {
        path.name, path.stem, f"{path.stem}.items.parquet",
    }  # fmt: skip
    assert not [name for name in names if name.startswith(".")]
    assert set(read(path).saved.files) == {
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert "save" in read(path).phases
    assert verify.check(path) == []


def test_no_place_of_this_machine_is_told_but_where_an_adapters_base_is(kept):
    for method, save in FORMS:
        path, _ = kept(method, save)
        for file in model_folder(path).rglob("*"):
            content = file.read_bytes()
            if file.name == saved.ADAPTER[0]:
                assert json.loads(content)["base_model_name_or_path"] == str(embedded.folder("tiny"))
                content = content.replace(str(embedded.folder("tiny")).encode(), b"")
            for place in (Path.home(), path.parent, embedded.cache()):
                assert str(place).encode() not in content, file


def test_plain_peft_finds_the_base_from_any_working_directory(kept, tmp_path, monkeypatch):
    path, expected = kept("lora", "adapter")
    shutil.copytree(embedded.folder("tiny"), tmp_path / "base")
    for name in ("work", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    settings = tiny("method=lora", "infer.repeats=0", "eval.tasks=[]", "model.path=../base")
    own = tmp_path / "results" / f"{settings.name}.json"
    own.parent.mkdir()
    assert run_request(settings, "demo", own, None, lambda event: None, save="adapter").status == "ok"
    monkeypatch.chdir(tmp_path / "elsewhere")
    for folder in (model_folder(path), model_folder(own)):
        net = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        torch.testing.assert_close(logits(net), expected, rtol=0, atol=1e-5)


def test_saving_changes_no_result(kept, tmp_path):
    found = read(kept("lora", "adapter")[0])
    plain = run_request(found.cell, "demo", tmp_path / f"{found.cell.name}.json", None, lambda event: None)
    assert plain.saved is None
    assert [p.loss for p in plain.train.loss] == [p.loss for p in found.train.loss]
    assert (plain.validation, plain.scores) == (found.validation, found.scores)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".parquet"}


def test_an_untuned_model_and_a_broken_cell_leave_no_weights(tmp_path):
    for overrides in (["method=base"], ["method=full", "lr=1e36", "train.warmup_ratio=0"]):
        cell = tiny(*overrides, "infer.repeats=0", "eval.tasks=[]")
        path = tmp_path / f"{cell.name}.json"
        record.beginnings(path)[0].mkdir()  # as a process that was killed leaves it
        model_folder(path).mkdir()
        assert run_request(cell, "demo", path, None, lambda event: None, save="adapter").saved is None
    assert {path.suffix for path in tmp_path.iterdir()} == {".json"}


# The card


def test_the_card_says_what_the_record_says(kept):
    path, _ = kept("lora", "adapter")
    found, text = read(path), (model_folder(path) / CARD).read_text()
    head, _, rest = text.removeprefix("---\n").partition("---\n")
    assert head.splitlines() == ['library_name: "peft"', 'pipeline_tag: "text-generation"', 'tags: ["lora"]']
    (acc, _) = found.scores
    assert f"| facts | acc | none | {acc.value:.4g} | {acc.stderr:.4g} | 2 | 0 | 1.0 |" in rest
    assert f"| validation loss | {found.validation[-1].loss:.4g} nats per token |" in rest
    assert f"| torch | {metadata.version('torch')} |" in rest
    assert "peak memory of tensors" in rest
    assert "PeftModel.from_pretrained(base" in rest
    assert "BASE is the folder that `python -c 'from harness.job.models import embedded; print(embedded" in rest


def test_the_card_names_what_is_on_the_hub_and_no_licence():
    found = make_record("lora", 16, 32.0, 2e-4)
    nf4 = {"quantization_config": {"_target_": "harness.job.models.quantisation.nf4"}}
    change(
        found,
        method={"load": nf4, "adapt": {"r": 16}},
        model={"path": "meta-llama/Llama-3.2-1B"},
        data={"load": {"path": "openai/gsm8k"}, "prompt": "Q | {question}"},
    )
    found.fingerprints = {"model": "meta-llama/Llama-3.2-1B@abc123"}
    found.saved = Saved("adapter", {})
    text = model_card.text(found)
    assert 'base_model: "meta-llama/Llama-3.2-1B"' in text
    assert 'base_model_relation: "adapter"' in text
    assert 'base_model_relation: "finetune"' in model_card.text(found, "gguf")
    assert 'datasets: ["openai/gsm8k"]' in text
    assert 'from_pretrained("meta-llama/Llama-3.2-1B", revision="abc123")' in text
    assert "quantised to 4 bits" in text
    assert "license" not in text
    assert "Q \\| {question}" in text


@pytest.mark.parametrize("path", ["/home/alice/acme-secret/llama-acme", "models/llama-acme"])
def test_the_card_of_a_base_in_a_folder_names_no_place_and_no_model_of_strangers(path):
    """A relative path looks like a name on the hub; the fingerprint tells them apart."""
    found = make_record("lora", 16, 32.0, 2e-4)
    change(found, model={"path": path})
    found.fingerprints, found.saved = {"model": "sha256:abc"}, Saved("adapter", {})
    text = model_card.text(found)
    assert "base_model:" not in text
    assert 'from_pretrained("BASE")' in text
    assert "made of `llama-acme`" in text
    assert str(Path(path).parent) not in text


@pytest.mark.parametrize("path", ["-x/model", "../model", "someone/--help"])
def test_no_option_and_no_folder_is_a_name_on_the_hub(path):
    """Without a fingerprint the name alone decides."""
    found = make_record("lora", 16, 32.0, 2e-4)
    change(found, model={"path": path}, data={"load": {"path": path}})
    found.fingerprints, found.saved = {}, Saved("adapter", {})
    text = model_card.text(found)
    assert "base_model:" not in text
    assert "datasets:" not in text


def test_the_card_of_a_file_of_ones_own_names_no_data_set_of_strangers():
    recorded = make_record("lora", 16, 32.0, 2e-4)
    change(recorded, data={"load": {"_target_": "harness.job.data.sources.from_file", "path": "acme/mails.jsonl"}})
    text = model_card.text(recorded, "merged")
    assert "datasets:" not in text
    assert "acme" not in text


def test_the_hub_reads_any_name_of_a_method():
    recorded = make_record("lora", 16, 32.0, 2e-4)
    recorded.cell = replace(recorded.cell, method='a "b": \U0001f600')
    assert ModelCard(model_card.text(recorded, "merged")).data.tags == [recorded.cell.method]


def test_values_of_a_record_are_no_code_on_its_card():
    """Readers paste its blocks into Python and shells."""
    found = make_record("lora", 16, 32.0, 2e-4, environment={"auto_class": "os; os.system('mark')"})
    change(found, model={"path": "someone/model", "revision": 'main"); mark("'})
    found.cell.name, found.study = "lora\n```python\nmark()", "study`\n\nmark"
    found.saved = Saved("adapter", {})
    text = model_card.text(found)
    assert 'AutoModelForCausalLM.from_pretrained("someone/model", revision="main\\"); mark(\\"")' in text
    assert "system" not in text
    assert not {"mark()", "mark", "mark`"} & {*text.splitlines()}
    assert text.count("```") == 2
    (compiled,) = re.findall(r"```python\n(.*?)\n```\n", text, re.DOTALL)
    ast.parse(compiled)
    (compiled,) = re.findall(r"```python\n(.*?)\n```\n", model_card.text(found, "gguf"), re.DOTALL)
    ast.parse(compiled)
    change(found, model={"path": "embedded:x'; mark; '", "revision": None})
    assert "BASE is the folder of the base model." in model_card.text(found)


def test_a_name_on_the_hub_without_an_owner_is_one():
    found = make_record("lora", 16, 32.0, 2e-4)
    change(found, model={"path": "gpt2"})
    found.fingerprints, found.saved = {"model": "gpt2@abc123"}, Saved("adapter", {})
    assert 'base_model: "gpt2"' in model_card.text(found)


# What else knows the folder


@pytest.fixture
def study(tmp_path):
    """A study with one sound record, whose cell has saved weights."""
    study = Study(tmp_path / "results", "demo")
    found = make_record("lora", 16, 32.0, 2e-4)
    change(found, model={"path": "embedded:tiny"})
    path = sound(found, study.folder)
    folder = model_folder(path)
    folder.mkdir()
    for name in ("adapter_model.safetensors", CARD):
        (folder / name).write_text(f"{name} of {found.cell.name}")
    (folder / "adapter_config.json").write_text("{}")
    found.saved = Saved("adapter", record.hashes(folder))
    record.write(found, path)
    return study


def only(study):
    (path,) = study.folder.glob("*.json")
    return path


def test_weights_are_no_study(study, tmp_path):
    assert studies(tmp_path / "results") == ["demo"]
    only(study).unlink()  # as if the process had died before it wrote the record
    assert studies(tmp_path / "results") == []
    (study.folder / "config.json").write_text("{}")
    assert studies(tmp_path / "results") == ["demo"]  # a stray file hides nothing


def damaged(folder, name):
    if name == "changed":
        (folder / "adapter_model.safetensors").write_text("other weights")
    elif name == "missing":
        (folder / "adapter_config.json").unlink()
    elif name == "more":
        (folder / "pytorch_model.bin").write_text("code")
    elif name == "unknown":
        found = read(folder.with_name(f"{folder.name}.json"))
        found.saved = None
        record.write(found, folder.with_name(f"{folder.name}.json"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("changed", "adapter_model.safetensors is not the file that was saved: the hashes differ."),
        ("missing", "adapter_config.json is missing among the saved weights."),
        ("more", "pytorch_model.bin is not among the files that were saved."),
        ("unknown", "lies beside a record without saved weights; move it elsewhere."),
    ],
)
def test_damaged_weights_are_named(study, name, said):
    damaged(model_folder(only(study)), name)
    (problem,) = verify.check(only(study))
    assert problem.startswith(str(model_folder(only(study))))
    assert problem.endswith(said)


def test_an_edited_card_and_removed_weights_are_no_damage(study):
    folder = model_folder(only(study))
    (folder / CARD).write_text("Mine.")
    assert verify.check(only(study)) == []
    shutil.rmtree(folder)
    assert verify.check(only(study)) == []


def test_weights_travel_with_their_record(study, tmp_path, capsys):
    target = tmp_path / "all"
    assert main(["merge", str(study.folder.parent), "--into", str(target)]) == 0
    copy = model_folder(target / "demo" / only(study).name)
    assert record.hashes(copy) == read(only(study)).saved.files
    assert (copy / CARD).is_file()
    shutil.rmtree(copy)
    assert main(["merge", str(study.folder.parent), "--into", str(target)]) == 0  # what is gone comes back
    assert "1 new, 0 replaced" in capsys.readouterr().out
    assert verify.study(target, "demo")[:2] == (1, [])
    assert record.hashes(copy) == read(only(study)).saved.files
    damaged(model_folder(only(study)), "changed")
    assert main(["merge", str(study.folder.parent), "--into", str(tmp_path / "new")]) == 1
    assert not (tmp_path / "new").exists()


def test_a_newer_record_takes_the_older_ones_weights_away(study, tmp_path):
    target = tmp_path / "all"
    main(["merge", str(study.folder.parent), "--into", str(target)])
    found = read(only(study))
    shutil.rmtree(model_folder(only(study)))
    found.started = "2026-02-01T00:00:00+00:00"
    record.write(found, only(study))
    assert main(["merge", str(study.folder.parent), "--into", str(target), "--newer"]) == 0
    assert model_folder(target / "demo" / only(study).name).is_dir()  # they are the same still
    found.started, found.saved = "2026-03-01T00:00:00+00:00", None
    record.write(found, only(study))
    assert main(["merge", str(study.folder.parent), "--into", str(target), "--newer"]) == 0
    assert not model_folder(target / "demo" / only(study).name).exists()


def test_a_removed_cell_takes_its_weights_along(study, capsys):
    path = only(study)
    record.pending(path).write_text("{}")
    record.beginnings(path)[0].mkdir()
    (study.folder / "tensorboard" / path.stem).mkdir(parents=True)
    assert main(["rm", "lora", "--yes", "--results-dir", str(study.folder.parent)]) == 0
    assert path.stem in capsys.readouterr().out
    assert [p for p in study.folder.rglob("*") if path.stem in p.name] == []


# Settings


def test_saving_and_tracking_are_no_part_of_a_cell(cell):
    pytest.importorskip("tensorboard")
    for other in ("save=adapter", "save=merged", "tracker=tensorboard"):
        assert cell("method=lora", other) == cell("method=lora")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("save=adaptor", "save=adaptor is unknown. Did you mean adapter?"),
        ("tracker=tensorbord", "tracker=tensorbord is unknown. Did you mean tensorboard?"),
        ("+method.adapt.init_lora_weights=pissa", "init_lora_weights=pissa, which changes the base"),
    ],
)
def test_bad_save_and_tracker_settings_are_one_sentence(cell, override, said):
    with pytest.raises(UserError, match=said):
        cell("method=lora", *(["save=adapter"] if "pissa" in override else []), override)
    if "pissa" in override:
        assert cell("method=lora", "save=merged", override)
