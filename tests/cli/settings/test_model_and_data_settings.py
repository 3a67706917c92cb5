"""Settings of methods, models and data, run by the command line."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from contextlib import ExitStack

import hub
import pytest
from command_line import own_server
from serving import chatty
from tested_settings import CELL, SMALL, Line, lines, refused

from harness.job.models import embedded


@pytest.mark.long
@lines(
    f"run {CELL} study=one method=lora method.name=mine method.adamw=8bit 'method.adapt.target_modules=[q_proj]' "
    "++method.load.attn_implementation=eager method.optim.optimizer.fused=false eval.tasks=[]",
    f"run {CELL} study=two method=eva method.init.batches=2 eval.tasks=[]",
    f"run {CELL} study=half method=base model.dtype=float16 eval.tasks=[]",
    refused(
        rf"run {CELL} '++method.incompatible={{train.schedule\=linear: it does not fall}}' train.schedule=linear",
        r"method=lora can't be combined with train\.schedule=linear: it does not fall",
    ),
)
def test_a_methods_slots_are_filled_as_asked(run, only):
    run()
    method = only("one").cell.settings.method
    assert only("one").cell.method == "mine"
    assert method.adapt["target_modules"] == ["q_proj"]
    assert method.load["attn_implementation"] == "eager"
    assert method.optim["optimizer"]["_target_"].endswith("EightBitAdamW")
    assert only("half").cell.settings.model.dtype == "float16"
    assert only("two").cell.settings.method.init["batches"] == 2


@pytest.fixture
def hub_with_a_model(tmp_path, monkeypatch):
    """A hub that holds org/tiny, for jobs of a server that has no other hub."""
    (tmp_path / "hub" / "models" / "org" / "tiny").mkdir(parents=True)
    chatty(tmp_path / "hub" / "models" / "org" / "tiny")
    with ExitStack() as serving:
        for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_DATASETS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_ENDPOINT", serving.enter_context(hub.serve(tmp_path / "hub", gated=set())))
        serving.enter_context(own_server())
        yield


@pytest.mark.long
@lines(
    f"run {CELL} study=hub model.path=org/tiny model.name=theirs model.revision={hub.COMMIT} "
    "model.trust_remote_code=true model.use_safetensors=false eval.tasks=[]",
)
def test_a_model_of_the_hub_is_loaded_as_asked(run, only, hub_with_a_model, tmp_path):
    import torch
    from safetensors.torch import load_file

    repository = tmp_path / "hub" / "models" / "org" / "tiny"
    torch.save(load_file(repository / "model.safetensors"), repository / "pytorch_model.bin")
    (repository / "model.safetensors").unlink()
    run()
    record = only("hub")
    assert record.cell.model == "theirs"
    assert record.fingerprints["model"] == f"org/tiny@{hub.COMMIT}"
    assert record.cell.settings.model.trust_remote_code
    assert not record.cell.settings.model.use_safetensors


GGUF = b"GGUF as the hub has it"
SHA256 = hashlib.sha256(GGUF).hexdigest()


@pytest.mark.long
@lines(
    refused(
        f"run {CELL} study=other model.path=org/tiny/it.gguf model.sha256={'0' * 64}",
        f"must have the SHA-256 of model.sha256, {'0' * 64}, got {SHA256}",
    ),
    f"run {CELL} study=file model.path=org/tiny/it.gguf model.sha256={SHA256} eval.tasks=[]",
)
def test_a_gguf_file_of_the_hub_is_known_by_its_hash(run, only, hub_with_a_model, tmp_path):
    (tmp_path / "hub" / "models" / "org" / "tiny" / "it.gguf").write_bytes(GGUF)
    # As it was dequantised before; tests of the export read a file that is one.
    shutil.copytree(embedded.folder("tiny"), embedded.cache() / f"gguf-{SHA256}")
    run()
    assert only("file").cell.settings.model.path == "org/tiny/it.gguf"


ROWS = [
    {
        "ask": f"Which is {i}?",
        "hint": "h" if i % 2 else "",
        "right": str(i),
        "other": json.dumps([str(i), "x"]),
        "kind": ("odd", "even")[i % 2],
    }
    for i in range(90)
]


@pytest.mark.long
@lines(
    f"run {SMALL} study=own data=local data_root={{folder}} data.path=mine.jsonl data.name=named "
    "data.columns.question=ask data.columns.answer=right +data.columns.hint=hint "
    "'data.prompt=\"{hint} {question}\"' 'data.prompt_if_empty=\"{question}\"' data.test_share=0.2 "
    "data.answers=exact data.limit=40 data.noise=0.5 eval.tasks=[held_out]",
    f"run {SMALL} study=rooted data=local data_root={{folder}} data.path=mine.jsonl data.columns.question=ask "
    "data.columns.answer=right data.columns.options=other data.answers=choice eval.tasks=[held_out]",
    f"run {SMALL} study=labels data=local data_root={{folder}} data.path=mine.jsonl data.columns.question=ask "
    "data.columns.answer=kind data.answers=classify eval.tasks=[held_out]",
    f"run {SMALL} study=gaps data=local data_root={{folder}} data.path=gaps.jsonl data.drop_empty=true "
    "data.too_long=drop train.max_length=64 eval.tasks=[]",
)
def test_a_file_of_ones_own_is_read_as_asked(run, only, tmp_path):
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    gaps = [
        {"question": f"{i}?", "answer": "and so on " * 40 if i < 9 else f"{i}" if i % 2 else None} for i in range(90)
    ]
    (tmp_path / "gaps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gaps))
    run()
    assert only("gaps").own_data.without_answer == 40
    assert 5 <= only("gaps").lengths.dropped <= 9
    data = only("own").cell.settings.data
    assert (data.noise, data.limit, data.test_share, data.answers) == (0.5, 40, 0.2, "exact")
    assert (data.prompt, data.prompt_if_empty) == ("{hint} {question}", "{question}")
    assert {score.metric for score in only("own").scores} == {"exact_match"}
    assert {score.metric for score in only("rooted").scores} >= {"acc"}
    assert {score.metric for score in only("labels").scores} == {"acc", "acc_norm", "f1_macro"}
    assert only("labels").classes["held_out"].labels == ["even", "odd"]


@pytest.mark.long
@lines(
    f"run {SMALL} study=texts data=text data.path={{folder}}/texts data.test_share=0.2 data.limit=20 "
    "train.max_length=64 eval.tasks=[held_out]",
    f"run {SMALL} study=bodies data=text data.path={{folder}}/bodies.jsonl data.columns.text=body eval.tasks=[]",
)
def test_texts_alone_are_trained_on(run, only, tmp_path):
    texts = [f"Text {i}: " + f"it is {i}, not {i + 1}. " * (1 + i % 30) for i in range(40)]
    (tmp_path / "texts").mkdir()
    for i, text in enumerate(texts):
        (tmp_path / "texts" / f"{i}.txt").write_text(text)
    (tmp_path / "bodies.jsonl").write_text("".join(json.dumps({"body": text, "id": 1}) + "\n" for text in texts))
    run()
    (score,) = only("texts").scores
    assert (score.metric, score.n, score.higher_is_better) == ("bits_per_byte", 4, False)
    assert only("texts").lengths.records <= 20
    assert only("bodies").own_data.unused == ["id"]


@pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is not None, reason="reasoning-gym is installed")
@lines(
    refused(
        f"run {SMALL} data=reasoning_gym data.task=chain_sum '+data.options={{max_terms: 3}}'", r"reasoning[-_]gym"
    ),
)
def test_problems_of_a_package_that_is_not_here_are_refused_with_what_to_install(run):
    (refusal,) = run()
    assert ".[gym]" in refusal.stderr


@pytest.mark.long
@lines(
    Line(
        "plan model=llama_3_2_1b model.architecture.num_hidden_layers=2 method=base data=facts eval.tasks=[]",
        said=r"7\d\d MiB|38\d|3\.8",
    ),
)
def test_an_architecture_is_planned_without_a_model(run):
    (planned,) = run()
    print(planned.stdout)
    assert "can't" not in planned.stdout
