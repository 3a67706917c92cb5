"""BERTScore: its formula, the values of its authors' package, its encoder, and a cell that is scored by it."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from job_helpers import run_request
from own_file import cell, tasks
from tiny_encoder import saved_encoder
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, RobertaConfig, RobertaModel, RobertaTokenizer

from harness import record
from harness.errors import UserError
from harness.gate import objection
from harness.job import preflight
from harness.job.evaluate import rescoring
from harness.job.evaluate.held_out.bertscore import NONE, Encoder, cut_layers
from harness.job.models import embedded, hub
from harness.settings import canonical
from harness.studies import verify
from harness.sweep.app import inputs

CPU = torch.device("cpu")
TEXTS = [
    {"question": f"Tell of {i}.", "answer": f"This is a story of {i} that goes on for a while and then ends well."}
    for i in range(60)
]
SAID = ["the cat sat on a mat", "dog runs quickly on the mat", "a dog", "the cat", "this is " * 60]
RIGHT = ["the dog sat on the mat", "the cat sat", "a dog", "mat mat mat mat mat mat a dog", "that is the story"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return saved_encoder(tmp_path_factory.mktemp("encoders") / "tinybert")


# The values


def test_each_token_is_matched_with_the_most_similar_one(encoder):
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    answer, right = SAID[0], RIGHT[0]
    vectors = []
    for text in (answer, right):
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        vectors.append(states / states.norm(dim=1, keepdim=True))
    cosines = [[float(one @ other) for other in vectors[1]] for one in vectors[0]]
    best = [max(row) for row in cosines[1:-1]]  # the first and the last token are no words
    of_right = [max(row[i] for row in cosines) for i in range(1, len(vectors[1]) - 1)]
    precision, recall = sum(best) / len(best), sum(of_right) / len(of_right)
    assert 0 < precision < 1
    expected = (precision, recall, 2 * precision * recall / (precision + recall))
    assert Encoder(str(encoder), CPU).compare([answer], [right])[0] == pytest.approx(expected, abs=1e-6)


def test_values_are_those_of_the_authors_package(encoder):
    scorer = pytest.importorskip("bert_score").BERTScorer(
        str(encoder), num_layers=3, use_fast_tokenizer=True, device="cpu"
    )
    theirs = torch.stack(scorer.score(SAID, RIGHT), dim=1).tolist()
    ours = Encoder(str(encoder), CPU).compare(SAID, RIGHT)
    assert [list(one) for one in ours] == [pytest.approx(one, abs=1e-5) for one in theirs]


def test_the_same_text_is_wholly_alike_and_an_empty_one_not_at_all(encoder):
    compared = Encoder(str(encoder), CPU).compare(["a dog", " ", "a dog"], ["a dog", "a dog", "the cat"])
    assert compared[0] == pytest.approx((1, 1, 1))
    assert compared[1] == NONE
    assert compared[2].f1 < 1


def test_values_depend_on_no_other_text(encoder):
    alone = [Encoder(str(encoder), CPU).compare([said], [right])[0] for said, right in zip(SAID, RIGHT, strict=True)]
    together = Encoder(str(encoder), CPU).compare(SAID * 9, RIGHT * 9)
    assert together == [pytest.approx(one, abs=1e-6) for one in alone * 9]


# What they are computed by


def test_the_layer_is_that_of_the_package_where_it_knows_the_model():
    layers = {"roberta-large": 17, "FacebookAI/roberta-large": 17, "microsoft/deberta-xlarge-mnli": 40, "my/own": 48}
    for path, layer in layers.items():
        config = BertConfig(num_hidden_layers=48)
        cut_layers(config, path)
        assert config.num_hidden_layers == layer


def test_layers_above_are_not_computed(encoder, tmp_path, capfd):
    known = shutil.copytree(encoder, tmp_path / "distilroberta-base")  # layer 5, of which this one has three
    assert Encoder(str(known), CPU).compare(SAID, RIGHT) == Encoder(str(encoder), CPU).compare(SAID, RIGHT)
    torch.manual_seed(0)
    config = BertModel.from_pretrained(encoder).config
    config.num_hidden_layers = 7
    BertModel(config).save_pretrained(known)
    batch = AutoTokenizer.from_pretrained(known)(SAID[0], return_tensors="pt")
    capfd.readouterr()
    embedded = Encoder(str(known), CPU)._embedded([SAID[0]]).units[0]
    assert "UNEXPECTED" not in capfd.readouterr().err
    with torch.inference_mode():
        fifth = BertModel.from_pretrained(known).eval()(**batch, output_hidden_states=True).hidden_states[5][0]
    assert torch.allclose(embedded, torch.nn.functional.normalize(fifth, dim=-1), atol=1e-6)


def test_a_first_word_of_roberta_has_the_tokens_that_it_has_elsewhere(tmp_path):
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([" the cat sat on the mat"] * 9, 400, special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    trained.save_model(str(tmp_path))
    tokenizer = RobertaTokenizer.from_pretrained(tmp_path, unk_token="<unk>", mask_token="<unk>")
    tokenizer.save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    RobertaModel(RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=66, **sizes)).save_pretrained(
        tmp_path
    )
    encoder = Encoder(str(tmp_path), CPU)
    assert encoder.compare(["the"], ["the"])[0] == pytest.approx((1, 1, 1))
    assert int(encoder._embedded(["the cat"]).counted.sum()) == len(tokenizer.tokenize(" the cat")) == 2
    assert encoder._embedded(["cat " * 200]).units.shape[1] == 64  # RoBERTa has two positions fewer than it says


def test_what_is_no_encoder_is_refused(encoder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"eval\.bertscore must be an encoder such as roberta-large, got .*llama"):
        Encoder(str(embedded.folder("tiny")), CPU)
    pickled = shutil.copytree(encoder, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match="has no safetensors, and pickled weights can run code"):
        Encoder(str(pickled), CPU)
    other = shutil.copytree(encoder, tmp_path / "other")
    AutoTokenizer.from_pretrained(embedded.folder("tiny")).save_pretrained(other)
    with pytest.raises(UserError, match=r"eval\.bertscore=.*other has a tokenizer of [\d,]+ tokens and embeddings of"):
        Encoder(str(other), CPU)
    (pickled / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"eval\.bertscore=.*pickled has no model that transformers can load"):
        Encoder(str(pickled), CPU)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"The model no/where is not in the hub's cache, .*; there is no such local"):
        Encoder("no/where", CPU)


# From the setting to the record


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, encoder):
    """A tuned cell and its base, scored on prose; the folder one works in."""
    folder = tmp_path_factory.mktemp("prose")
    shutil.copytree(encoder, folder / "tinybert")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for method in ("lora", "base"):
            mine = cell(TEXTS, f"method={method}", "eval.limit=4", "data.test_share=0.2", "eval.bertscore=tinybert")
            path = folder / "results" / "prose" / f"{mine.name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            run_request(mine, "prose", path, None, lambda event: None, save="adapter")
    return folder


@pytest.mark.long
def test_a_cell_is_scored_by_it_item_by_item(recorded, monkeypatch):
    monkeypatch.chdir(recorded)
    for path in sorted((recorded / "results" / "prose").glob("*.json")):
        ended = record.read(path)
        assert [(s.metric, s.filter, s.n) for s in ended.scores] == [
            ("rougeL", "none", 4),
            ("bleu", "none", 4),
            ("bits_per_byte", "none", 4),
            ("bertscore", "tinybert", 4),
        ]
        score = ended.scores[-1]
        assert score.higher_is_better
        assert score.stderr is not None
        items = pd.read_parquet(path.with_suffix(".items.parquet"))
        rows = items[items["metric"] == "bertscore"]
        answers = [ast.literal_eval(text)[0] for text in rows["prediction"]]
        again = Encoder("tinybert", CPU).compare(answers, rows["target"].tolist())
        assert rows["value"].tolist() == pytest.approx([one.f1 for one in again], abs=1e-5)
        assert len(rows) == 4
        assert any(answers)
        assert ended.fingerprints["encoder"].startswith("sha256:")
        assert verify.check(path) == []
        assert objection(ended) is None


def test_scoring_again_takes_the_same_encoder(recorded, encoder, monkeypatch):
    monkeypatch.chdir(recorded)
    path = next(iter(sorted((recorded / "results" / "prose").glob("*.json"))))
    first = record.read(path)
    rescoring.rescore(path, first.cell.settings.eval, None, lambda event: None)
    assert sorted(record.read(path).scores, key=str) == sorted(first.scores, key=str)
    saved_encoder(recorded / "tinybert", seed=1)
    with pytest.raises(UserError, match="is not scored: the model of its BERTScore has changed"):
        rescoring.rescore(path, first.cell.settings.eval, None, lambda event: None)
    shutil.copytree(encoder, recorded / "tinybert", dirs_exist_ok=True)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("here")
def test_the_setting_is_part_of_the_cell_and_of_what_is_said(encoder):
    plain = cell(TEXTS)
    assert "bertscore" not in canonical(plain.settings)
    mine = cell(TEXTS, f"eval.bertscore={encoder}")
    assert mine.id != plain.id
    assert not mine.settings.eval.bertscore.startswith("/")
    said = preflight.check([mine], None)
    assert any("scored by ROUGE-L, BLEU and BERTScore by tinybert, as prose (data.answers=text)" in s for s in said)
    found = tasks(TEXTS, f"eval.bertscore={encoder}").leaves["held_out"]
    assert found.encoder == mine.settings.eval.bertscore
    record_of_it = SimpleNamespace(source=None, cell=mine)
    assert objection(record_of_it) is None


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.answers=exact"], r"eval\.bertscore requires answers in prose, data\.answers=text, got exact\."),
        (["eval.tasks=[facts]"], r"eval\.bertscore requires eval\.tasks=\[held_out\]"),
    ],
)
def test_it_is_refused_where_it_has_no_use(encoder, overrides, said):
    with pytest.raises(UserError, match=said):
        preflight.check([cell(TEXTS, f"eval.bertscore={encoder}", *overrides)], None)


@pytest.mark.usefixtures("here")
def test_a_model_that_is_no_encoder_is_refused_before_training():
    with pytest.raises(UserError, match=r"^eval\.bertscore must be an encoder"):
        preflight.check([cell(TEXTS, f"eval.bertscore={embedded.folder('tiny')}")], None)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../none", r"There is no folder .*none; check eval\.bertscore"),
        ("file.txt", r"eval\.bertscore must be a folder or a hub id, got the file file\.txt"),
        ("empty", r"eval\.bertscore=empty has no config\.json"),
        ("mute", r"eval\.bertscore=mute has no tokenizer; put"),
    ],
)
def test_a_folder_without_a_model_is_refused_by_a_look_at_the_disk(name, said):
    Path("file.txt").touch()
    Path("empty").mkdir()
    Path("mute").mkdir()
    Path("mute", "config.json").write_text("{}")
    with pytest.raises(UserError, match=said):
        inputs._require_encoder(Path(name))
