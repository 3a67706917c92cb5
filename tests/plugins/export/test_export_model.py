"""A model that is handed over answers as the cell's record says it did, in every form that can be loaded here."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil

import pandas as pd
import pytest
import torch
from job_helpers import no_peak, run_request, tiny  # noqa: F401
from peft import AutoPeftModelForCausalLM
from records import change, make_record, sound
from transformers import AutoModelForCausalLM, AutoTokenizer
from with_llama_cpp import continues_as, needs_llama_cpp

from harness import plugin, record
from harness.__main__ import main
from harness.job import prepared_inputs
from harness.job.evaluate import scoring
from harness.job.models import embedded
from harness.plugins.export import export_model
from harness.plugins.export.job import modelfile
from harness.protocol import decode_request, encode
from harness.record import CARD, model_folder, read
from harness.sweep import runner

IDS = torch.arange(3, 40)[None]
TASKS = ("eval.tasks=[facts,wordmath_short]", "eval.limit=6")


@torch.no_grad()
def logits(net):
    return net.eval()(input_ids=IDS).logits.float()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A study of cells with their weights, each of which answered problems; two methods that vLLM can't serve."""
    folder = tmp_path_factory.mktemp("hand-off") / "results"
    (folder / "demo").mkdir(parents=True)
    for method in ("lora", "dora", "qlora", "full", "prompt_tuning"):
        tasks = TASKS if method == "lora" else ("eval.tasks=[]",)
        cell = tiny(f"method={method}", "infer.repeats=0", "lr=1e-2", *tasks)
        path = folder / "demo" / f"{cell.name}.json"
        assert run_request(cell, "demo", path, None, lambda event: None, save="adapter").status == "ok"
    return folder


@pytest.fixture(autouse=True)
def job_here(monkeypatch):
    """Jobs of this module run in its process, which has loaded their libraries."""
    monkeypatch.setattr(
        runner, "ask", lambda request, on_event: plugin.load(request.target)(decode_request(encode(request)), on_event)
    )


@pytest.fixture
def export(results, tmp_path, capsys):
    """export(model, to): the folder that `harness export-model` writes, and what it printed."""

    def run(model, to):
        out = tmp_path / to
        capsys.readouterr()
        assert main(["export-model", model, "--to", to, "--out", str(out), "--results-dir", str(results)]) == 0
        return out, capsys.readouterr()

    return run


def of(results, method):
    (path,) = (results / "demo").glob(f"{method}-*.json")
    return path


def answers(net, tokenizer, found):
    """What `net` answers to the items of the record `found`."""
    tasks = prepared_inputs.tasks(found.cell.settings.eval, found.cell.settings.data, None)
    return scoring.score(net, tokenizer, tasks, 4, None)[1]


def test_the_merged_model_and_the_gguf_answer_as_the_record_says(results, export):
    path = of(results, "lora")
    recorded = pd.read_parquet(path.with_suffix(".items.parquet"))
    assert recorded["prediction"].str.len().max() > 4, "it wrote nothing that could be compared"
    expected = logits(AutoPeftModelForCausalLM.from_pretrained(model_folder(path), dtype=torch.float32))
    plain = AutoModelForCausalLM.from_pretrained(embedded.folder("tiny"), dtype=torch.float32)
    assert (logits(plain) - expected).abs().max() > 1e-2, "it was not trained"
    for to in ("merged", "gguf"):
        out, printed = export("lora", to)
        file = {"gguf_file": f"{path.stem}.gguf"} if to == "gguf" else {}
        net = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, **file)
        torch.testing.assert_close(logits(net), expected, rtol=0, atol=1e-4)
        told = answers(net, AutoTokenizer.from_pretrained(out, **file), read(path))
        pd.testing.assert_frame_equal(told[recorded.columns], recorded, atol=1e-4)
        assert f"{path.stem}" in (out / CARD).read_text()
        assert str(out) in printed.out
    assert {file.name for file in out.iterdir()} == {f"{path.stem}.gguf", CARD}
    assert f'gguf_file="{path.stem}.gguf"' in (out / CARD).read_text()


@needs_llama_cpp
def test_llama_cpp_writes_the_same_text(results, export):
    path = of(results, "lora")
    out, _ = export("lora", "gguf")
    net = AutoPeftModelForCausalLM.from_pretrained(model_folder(path), dtype=torch.float32)
    continues_as(net, AutoTokenizer.from_pretrained(model_folder(path)), out / f"{path.stem}.gguf")


def test_an_adapter_goes_to_vllm_as_it_is_and_one_that_it_refuses_merged(results, export):
    path = of(results, "lora")
    out, printed = export("lora", "vllm")
    words = shlex.split(printed.out.splitlines()[-1])
    base = str(embedded.folder("tiny"))
    assert words == [
        *("vllm", "serve", base, "--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"{path.stem}={out}"),
    ]  # fmt: skip
    assert record.hashes(out) == read(path).saved.files
    shutil.rmtree(out)
    out, printed = export("dora", "vllm")
    assert "warning: vLLM does not serve such an adapter, so it is merged." in printed.err
    assert printed.out.splitlines()[-1] == f"vllm serve {out} --served-model-name {of(results, 'dora').stem}"
    expected = logits(AutoPeftModelForCausalLM.from_pretrained(model_folder(of(results, "dora")), dtype=torch.float32))
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(out)), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("told", "served"),
    [
        ({"r": 7}, True),
        ({"r": 7, "use_rslora": True}, True),
        ({"r": 600}, False),
        ({"r": 7, "bias": "all"}, False),
        ({"r": 7, "rank_pattern": {"q_proj": 4}}, False),
        ({"r": 7, "modules_to_save": ["lm_head"]}, False),
        ({"r": 7, "peft_type": "VERA"}, False),
    ],
)
def test_what_vllm_serves_as_an_adapter(told, served):
    assert export_model._served_by_vllm({"peft_type": "LORA", "bias": "none"} | told) is served


def test_whole_weights_are_handed_over_as_they_are(results, export):
    path = of(results, "full")
    out, _ = export("full", "merged")
    assert record.hashes(out) == read(path).saved.files


def test_a_quantised_base_is_expanded_and_that_is_said(results, export):
    out, printed = export("qlora", "merged")
    assert "warning: It was scored on a base quantised to 4 bits; this is the same with those" in printed.err
    assert not hasattr(AutoModelForCausalLM.from_pretrained(out).config, "quantization_config")


def test_a_study_hands_over_its_chosen_cell(results, export, tmp_path):
    """Of the methods only lora has scores."""
    out, printed = export("demo", "ollama")
    name = of(results, "lora").stem
    assert printed.err.startswith("demo: lora r=8")
    assert printed.out.splitlines() == [
        f"demo/{name}: gguf, in {out}. To serve it:",
        f"ollama create {name.lower()} -f {out}/Modelfile",
    ]
    assert (out / "Modelfile").read_text().splitlines()[1:] == [
        f"FROM ./{name}.gguf",
        'TEMPLATE """Question: {{ .Prompt }}',
        'Answer:"""',
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
        'PARAMETER stop "<|endoftext|>"',
    ]


# Chat templates

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHOUTED = CHATML.replace("m.content", "m.content | upper")
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('No.') }}{% endif %}" + CHATML


def chat(template):
    tokenizer = AutoTokenizer.from_pretrained(embedded.folder("tiny"))
    tokenizer.chat_template = template
    return tokenizer


def test_a_chat_template_becomes_ollamas():
    assert modelfile.text("it.gguf", chat(CHATML), None).partition("\n")[2] == (
        "FROM ./it.gguf\n"
        'TEMPLATE """{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n'
        "{{ else }}<|im_start|>system\nYou help.<|im_end|>\n{{ end }}"
        '{{ range .Messages }}{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        "<|im_start|>assistant\n"
        '{{ else if eq .Role "assistant" }}{{ .Content }}<|im_end|>\n{{ end }}{{ end }}"""\n'
        "PARAMETER temperature 0\nPARAMETER repeat_penalty 1\n"
        'PARAMETER stop "<|endoftext|>"\nPARAMETER stop "<|im_end|>"\n'
    )


@pytest.mark.parametrize(
    ("prompt", "template"),
    [
        ("Context: {context}\nQ: {question}\nA:", "Context: \nQ: {{ .Prompt }}\nA:"),
        ("{text}\nSentiment:", "{{ .Prompt }}\nSentiment:"),
        ("{{{question}}} =", '{{ "{" }}{{ .Prompt }}} ='),
    ],
)
def test_what_is_asked_is_in_the_field_for_a_question(prompt, template):
    assert f'TEMPLATE """{template}"""' in modelfile.text("it.gguf", chat(None), prompt)


def test_of_a_quantised_base_vllm_gets_the_expanded_weights(results, export):
    """It would take the adapter on the full base, which is another model."""
    out, printed = export("qlora", "vllm")
    assert "this is the same with those weights expanded" in printed.err
    assert not (out / "adapter_config.json").exists()
    assert "--enable-lora" not in printed.out


@pytest.mark.parametrize("template", [SHOUTED, STRICT, None])
def test_one_that_rewrites_messages_is_left_to_ollama(template):
    text = modelfile.text("it.gguf", chat(template), None)
    assert "TEMPLATE" not in text
    assert "no counterpart here" in text


# What can't be


def test_a_prompt_method_is_refused_for_all_but_peft(results, tmp_path, capsys):
    for to in ("merged", "gguf", "vllm"):
        arguments = ["export-model", "prompt", "--to", to, "--out", str(tmp_path / to), "--results-dir", str(results)]
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "can't be exported whole: The method learns virtual tokens, which can't be merged" in line
        assert not (tmp_path / to).exists()


@pytest.fixture
def bare(tmp_path):
    """bare(record): a results folder with that record alone, whose command is noted."""

    def lay(found):
        folder = tmp_path / "results" / "demo"
        sound(found, folder)
        record.note_command(folder, ["sweep", "method=lora", "study=demo", "save=none"])
        return folder.parent

    return lay


@pytest.mark.parametrize(
    ("made", "model", "said"),
    [
        ({}, "lora", "`python -m harness rm demo/lora-"),
        ({}, "lora", " && harness sweep method=lora study=demo results_dir="),
        ({}, "lora", "/results save=adapter`."),
        ({}, "demo", "has no saved weights"),
        ({"status": "oom"}, "lora", "ended as oom; export a cell that ended as ok."),
        ({"status": "oom"}, "demo", "demo has no chosen cell"),
        ({"method": "base"}, "base", "is not tuned"),
        ({"method": "base"}, "demo", "demo has no chosen cell"),
        ({}, "dora", "There is no cell dora in demo."),
    ],
)
def test_a_cell_without_a_model_is_one_sentence(bare, tmp_path, capsys, made, model, said):
    found = make_record(**({"method": "lora", "rank": 16} | made))
    if found.cell.seed is not None:
        change(found, method={"adapt": {"r": 16}, "optim": {"lr": 1e-3}})
    results = bare(found)
    out = ["--out", str(tmp_path / "out"), "--results-dir", str(results)]
    assert main(["export-model", model, "--to", "merged", *out]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_study_that_was_moved_is_trained_again_where_it_is(tmp_path, capsys):
    found, results = make_record("lora", 16), tmp_path / "results"
    change(found, method={"adapt": {"r": 16}, "optim": {"lr": 1e-3}})
    sound(found, results / "moved" / "demo")
    record.note_command(results / "moved" / "demo", ["sweep", "quickstart"])
    asked = ["export-model", "moved/demo", "--to", "merged", "--out", str(tmp_path / "out")]
    assert main([*asked, "--results-dir", str(results)]) == 2
    again = f" && harness sweep quickstart study=moved/demo results_dir={results} save=adapter`"
    assert again in capsys.readouterr().err


def test_a_start_that_changes_the_base_is_kept_merged(bare, tmp_path, capsys):
    found = make_record("pissa", 16)
    change(found, method={"adapt": {"init_lora_weights": "pissa"}, "optim": {"lr": 1e-3}})
    results = bare(found)
    arguments = ["export-model", "pissa", "--to", "merged", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--results-dir", str(results)]) == 2
    assert "save=merged`." in capsys.readouterr().err


def test_a_folder_in_use_is_left_alone(results, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    arguments = ["export-model", "lora", "--to", "merged", "--results-dir", str(results), "--out"]
    for out in (tmp_path, tmp_path / "mine.txt"):
        assert main([*arguments, str(out)]) == 2
        assert f"--out must name a new or empty folder, got {out}." in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_changed_weights_are_not_handed_over(results, tmp_path, capsys):
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    (model_folder(of(copy, "lora")) / "adapter_model.safetensors").write_bytes(b"others")
    arguments = ["export-model", "lora", "--to", "vllm", "--out", str(tmp_path / "out"), "--results-dir", str(copy)]
    assert main(arguments) == 2
    assert "is not the file that was saved" in capsys.readouterr().err


# Adapters of others


def received(results, to, method="lora", **changes):
    """A copy of `results` in `to`, where the adapter's config has `changes`, under hashes that fit.

    config: the text of the config instead; null for none at all.
    """
    shutil.copytree(results, to)
    path = of(to, method)
    config = model_folder(path) / "adapter_config.json"
    text = changes.get("config", json.dumps(json.loads(config.read_text()) | changes))
    config.unlink()
    if text is not None:
        config.write_text(text)
    found = read(path)
    found.saved = dataclasses.replace(found.saved, files=record.hashes(model_folder(path)))
    record.write(found, path)
    return to


def refusal(capsys, results, out, to="vllm", model="lora"):
    capsys.readouterr()
    assert main(["export-model", model, "--to", to, "--out", str(out), "--results-dir", str(results)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert not out.exists()
    return line


@pytest.mark.parametrize("base", ["--trust-remote-code", "-x", "../x", "/no/such/folder", "a b", "http://host/x", ""])
def test_the_base_of_a_received_adapter_is_no_option_and_no_place_of_others(results, tmp_path, capsys, base):
    theirs = received(results, tmp_path / "theirs", base_model_name_or_path=base)
    line = refusal(capsys, theirs, tmp_path / "out")
    assert line.startswith("error: base_model_name_or_path in ")
    assert line.endswith(
        f"must be the record's model.path, an id of the hub, or the absolute path of a base's folder, got {base!r}."
    )


def test_a_base_by_its_id_on_the_hub_is_served(results, tmp_path, capsys):
    theirs = received(results, tmp_path / "theirs", base_model_name_or_path="owner/name-1.5_b")
    out = ["--out", str(tmp_path / "out"), "--results-dir", str(theirs)]
    assert main(["export-model", "lora", "--to", "vllm", *out]) == 0
    assert "vllm serve owner/name-1.5_b --enable-lora" in capsys.readouterr().out


@pytest.mark.parametrize("to", ["vllm", "merged"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config": None}, "must be an adapter's config as a JSON object"),
        ({"config": "[]"}, "must be an adapter's config as a JSON object"),
        ({"config": "{"}, "names code in its text, which can't be read"),
        ({"config": '{"peft_type": "LORA", "base_model_name_or_path": "a/b", "r": 8}'}, "bias in "),
        ({"config": '{"peft_type": "LORA"}'}, "base_model_name_or_path in "),
        ({"config": "{}"}, "peft_type in "),
        ({"r": "8"}, 'must be an integer, got "8"'),
        ({"r": None}, "must be an integer, got null"),
    ],
)
def test_an_adapters_config_that_lacks_something_is_one_sentence(results, tmp_path, capsys, changes, said, to):
    theirs = received(results, tmp_path / "theirs", **changes)
    assert said in refusal(capsys, theirs, tmp_path / "out", to)
