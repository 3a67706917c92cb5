"""What a record may have run or loaded: what config files name, at the place where they name it, and no more."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from records import change, changed, make_record

from harness import gate
from harness.config import CONF, ROOT
from harness.errors import UserError
from harness.record import Saved, hashes, read_study, studies, write
from harness.settings import cell_id
from harness.studies import retry


@pytest.fixture(autouse=True)
def names_read_anew():
    """Config files are read once a process, and tests write some."""
    gate._named.cache_clear()


def record_of(cell, **changes):
    """A failed record of a LoRA cell whose settings were changed, under an id that fits them."""
    record = make_record("lora", status="failed")
    settings = cell("method=lora").settings
    for way, value in changes.items():
        group, name = way.split("__")
        settings = changed(settings, **{group: {name: value}})
    record.cell = dataclasses.replace(cell("method=lora"), settings=settings, id=cell_id(settings))
    return record


def adapted(cell, **arguments):
    return {"method__adapt": cell("method=lora").settings.method.adapt | arguments}


def optimized(cell, **arguments):
    optim = cell("method=lora").settings.method.optim
    return {"method__optim": optim | {"optimizer": optim["optimizer"] | arguments}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method__adapt": {"_target_": "os.system", "command": "true"}}, " has method.adapt._target_=os.system"),
        ({"method__optim": {"optimizer": [{"_target_": "torch.os.system"}]}}, "_target_=torch.os.system"),
        ({"method__optim": {"a": [{"_target_": "torch.os.system"}]}}, " has method.optim.a"),
        ({"data__load": {"_target_": ["os.system"]}}, " has data.load._target_=os.system"),
        ({"data__prompt": "${oc.env:HF_TOKEN}"}, "data.prompt is an interpolation"),
        ({"data__prompt": "{question:>1000000000}"}, "data.prompt='{question:>1000000000}' has more in its braces"),
        ({"data__prompt": "{question.__class__}"}, "has more in its braces than names"),
        ({"data__prompt": "{question[0]}"}, "has more in its braces than names"),
        ({"data__prompt": "{question!r}"}, "has more in its braces than names"),
        ({"data__prompt": "{0}"}, "has more in its braces than names"),
        ({"data__prompt": "{question"}, "has more in its braces than names"),
        ({"data__prompt_if_empty": "{:>{question}}"}, "data.prompt_if_empty='{:>{question}}' has more"),
        ({"model__trust_remote_code": True}, "it trusts code or pickled weights"),
        ({"model__use_safetensors": False}, "it trusts code or pickled weights"),
        ({"model__dtype": "__builtins__"}, "model.dtype=__builtins__ is unknown"),
        ({"model__path": "https://host/model"}, "model.path=https://host/model is an address"),
        ({"eval__unsafe_code": True}, "code that a model writes"),
        ({"eval__tasks": ["/abs/file.yaml"]}, "eval.tasks names '/abs/file.yaml'"),
        ({"eval__tasks": ["file.yaml"]}, "eval.tasks names 'file.yaml'"),
        ({"eval__tasks": ["mmlu", "mmlu_*"]}, "eval.tasks names 'mmlu_*'"),
        ({"method__load": {"dtype": "float32", "use_kernels": True}}, " has method.load.use_kernels"),
        ({"method__load": {"dtype": "float32", "attn_implementation": "a/kernel"}}, "method.load.attn_implementation"),
        ({"method__load": {"dtype": "bfloat16"}}, " has method.load.dtype=bfloat16"),  # the cell's is float32
        ({"method__load": {"_target_": "pandas.read_pickle"}}, "method.load._target_"),
        ({"data__load": {"_target_": "harness.job.data.sources.from_file", "path": "x.jsonl"}}, "data.load.path"),
        ({"data__path": "/etc/passwd"}, "data.path=/etc/passwd"),
        ({"data__path": "https://host/x.jsonl"}, "data.path=https://host/x.jsonl"),
        ({"data__options": {"file": "../x"}}, "data.options.file=../x may be a file"),
    ],
)
def test_a_record_does_not_decide_what_is_called(cell, changes, said):
    assert gate.objection(record_of(cell)) is None
    assert said in gate.objection(record_of(cell, **changes))


@pytest.mark.parametrize(
    ("part", "arguments", "said"),
    [
        (adapted, {"megatron_core": "planted"}, " has method.adapt.megatron_core"),
        (adapted, {"megatron_config": {}}, " has method.adapt.megatron_config"),
        (adapted, {"init_lora_weights": "/a/folder"}, " has method.adapt.init_lora_weights=/a/folder"),
        (adapted, {"target_modules": ["q_proj", "a b"]}, " has method.adapt.target_modules=a b"),
        (adapted, {"target_modules": ".*a.*a.*b"}, " has method.adapt.target_modules=.*a.*a.*b"),
        (
            optimized,
            {"_target_": "harness.job.methods.optimizers.packaged", "name": "planted.X"},
            "optimizer.name=planted.X",
        ),
        (optimized, {"_target_": "hydra.utils.get_class"}, "_target_=hydra.utils.get_class"),
        (optimized, {"path": "results.planted.X"}, "optimizer.path"),
    ],
)
def test_nor_with_what(cell, part, arguments, said):
    assert said in gate.objection(record_of(cell, **part(cell, **arguments)))


def test_numbers_and_names_of_layers_are_free(cell):
    for names in (["q_proj", "mlp.up_proj"], ".*attn.*proj"):
        free = adapted(cell, r=3, lora_alpha=1.5, use_dora=True, target_modules=names)
        assert gate.objection(record_of(cell, **free)) is None


def test_a_class_by_its_name_is_one_that_files_have(cell):
    """LoRA+ names its optimizer's class in an argument of a function that imports any."""
    record = record_of(cell)
    record.cell = cell("method=loraplus")
    assert gate.objection(record) is None
    optim = record.cell.settings.method.optim
    optim["optimizer_cls"]["path"] = "planted.X"
    record.cell.id = cell_id(record.cell.settings)
    assert "method.optim.optimizer_cls.path=planted.X" in gate.objection(record)


@pytest.mark.long
def test_a_users_own_files_name_more(cell, tmp_path, monkeypatch):
    record = record_of(cell, **adapted(cell, use_qalora=True))
    monkeypatch.chdir(tmp_path)
    assert "in a conf/ folder of yours has method.adapt.use_qalora" in gate.objection(record)
    folder = tmp_path / "conf" / "method"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("defaults: [lora, _self_]\nname: mine\nadapt: {use_qalora: true}\n")
    gate._named.cache_clear()
    assert gate.objection(record) is None


def test_a_config_file_that_is_no_yaml_names_nothing(cell, tmp_path, monkeypatch):
    folder = tmp_path / "conf" / "method"
    folder.mkdir(parents=True)
    (folder / "torn.yaml").write_text("a: [")
    monkeypatch.chdir(tmp_path)
    assert gate.objection(record_of(cell)) is None


def test_a_path_that_no_file_system_takes_is_no_crash(cell):
    assert gate.objection(record_of(cell, model__path="a" * 5000)) is None


def test_settings_that_are_not_those_of_the_id_are_not_run(cell):
    record = record_of(cell)
    change(record, seed=5)
    assert "its id is not that of its settings" in gate.objection(record)


@pytest.mark.long
def test_all_methods_and_data_can_be_run_from_their_records(cell):
    record = record_of(cell)
    tried = 0
    for group in ("method", "data"):
        for path in (CONF / group).glob("*.yaml"):
            # Some can't clip, some are of weights in bf16.
            own = ["data.path=../mine.jsonl"] if path.stem.startswith(("local", "synthetic")) else []
            own += ["train.objective=kto"] if path.stem == "local_marked" else []
            record.cell = cell(f"{group}={path.stem}", "train.max_grad_norm=null", "model.dtype=bfloat16", *own)
            assert gate.objection(record) is None, path
            tried += 1
    assert tried > 80


def test_all_published_cells_can_be_run_from_their_records():
    results = ROOT / "results"
    records = [record for name in studies(results) for record in read_study(results / name)[0] if record.source is None]
    assert len(records) > 900
    assert {gate.objection(record) for record in records} == {None}


def test_a_model_behind_an_api_is_not_asked_from_its_record_alone(cell):
    """Neither its key's name nor its prices are there."""
    record = record_of(cell, model__base_url="http://host/v1")
    with pytest.raises(UserError, match=r"it does not hold how its model is asked \(key, prices\)"):
        retry.require(record, Path("x.json"))


# Saved weights


@pytest.fixture
def saved(cell, tmp_path):
    """saved(name=text, …): the record of a cell, and the folder of its weights with these files."""

    def lay_down(**files):
        folder = tmp_path / "cell"
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "megatron_core": "megatron.core"}')
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)
        record = record_of(cell)
        record.saved = Saved("adapter", hashes(folder))
        return record, folder

    return lay_down


def test_weights_as_they_are_saved_are_loaded(saved):
    chat = json.dumps({"chat_template": "{{ messages }}", "auto_map": None})
    assert gate.weights_objection(*saved(tokenizer_config__json=chat, chat_template__jinja="{{ messages }}")) is None


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("own__py", "", "cell/own.py is none of the kinds of files"),
        ("adapter_model__bin", "", "cell/adapter_model.bin is none of the kinds of files"),
        (
            "config__json",
            '{"auto_map": {"AutoModel": "own.Model"}}',
            "config.json names code in its auto_map.AutoModel",
        ),
        ("config__json", '{"text_config": {"_attn_implementation": "a/kernel"}}', "text_config._attn_implementation"),
        ("config__json", "{", "config.json names code in its text, which can't be read"),
        ("config__json", "[" * 100_000, "config.json names code in its text, which can't be read"),
        ("tokenizer_config__json", '{"auto_map": {"AutoTokenizer": ["own.T", null]}}', "its auto_map.AutoTokenizer"),
        ("adapter_config__json", '{"megatron_core": "planted"}', "adapter_config.json names code in its megatron_core"),
        ("adapter_config__json", '{"megatron_config": {"a": 1}}', "its megatron_config.a"),
        ("adapter_config__json", '{"auto_mapping": {"base_model_class": "X"}}', "its auto_mapping.base_model_class"),
        ("adapter_config__json", '{"layer_replication": [[0, 4], [0, 4]]}', "has layer_replication, which repeats"),
        ("adapter_config__json", '{"target_modules": "(a|a)+b"}', "an expression in its target_modules that may"),
        ("adapter_config__json", '{"exclude_modules": "(.*.*)+b"}', "an expression in its exclude_modules that may"),
        ("adapter_config__json", '{"modules_to_save": ["head", "(.+)+"]}', "in its modules_to_save that may"),
        ("adapter_config__json", '{"layers_pattern": ["(h+)+"]}', "an expression in its layers_pattern that may"),
        ("adapter_config__json", '{"rank_pattern": {"(.*.*.*)+q": 4}}', "an expression in its rank_pattern that may"),
        ("adapter_config__json", "[]", "cell/adapter_config.json must be an adapter's config as a JSON object"),
    ],
)
def test_weights_that_come_with_code_or_without_end_are_not(saved, name, text, said):
    assert said in gate.weights_objection(*saved(**{name: text}))


def test_expressions_of_the_cells_own_settings_are_loaded(saved):
    """Those of a config file, or of a command line: the gate has looked at them before."""
    own = r".*layers\.(0|1)\..*(q|v)_proj"
    record, folder = saved(adapter_config__json=json.dumps({"target_modules": own, "rank_pattern": {"a.0.q_proj": 4}}))
    assert "an expression in its target_modules" in gate.weights_objection(record, folder)
    record.cell.settings.method.adapt["target_modules"] = own
    assert gate.weights_objection(record, folder) is None


def test_links_among_weights_are_not_followed(saved, tmp_path):
    record, folder = saved()
    (folder / "tokenizer.json").symlink_to(tmp_path / "elsewhere.json")
    assert gate.weights_objection(record, folder) == "cell/tokenizer.json is a link"


def test_a_base_in_a_folder_has_no_kernels_of_others(cell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    record = record_of(cell, model__path="base")
    (tmp_path / "base" / "config.json").write_text('{"auto_map": {"AutoModel": "own.Model"}}')
    assert gate.objection(record) is None, "without trust_remote_code this has no effect, and many models have it"
    (tmp_path / "base" / "config.json").write_text('{"attn_implementation": "someone/kernel"}')
    assert "base/config.json names code in its attn_implementation" in gate.objection(record)
    assert "base/config.json names code" in gate.objection(record_of(cell, eval__bertscore="base"))


def test_a_command_line_stands_for_its_cell_and_not_for_weights_beside_the_record(saved, tmp_path):
    """A cell that is trained, and scored later: what the user trusts today may be loaded, what lies there may not."""
    record, folder = saved()
    record.cell.settings = changed(record.cell.settings, model={"use_safetensors": False})
    record.cell.id = cell_id(record.cell.settings)
    path = folder.with_suffix(".json")
    write(record, path)
    with pytest.raises(UserError, match="it trusts code or pickled weights"):
        gate.admitted(path)
    assert gate.admitted(path, record.cell) == record
    (folder / "own.py").touch()
    with pytest.raises(UserError, match=r"cell/own\.py is none of the kinds of files .* Remove it with `rm`"):
        gate.admitted(path, record.cell)
