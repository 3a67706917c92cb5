"""One's own data as a task: the prompts of training, what is measured, and a cell from the file to its scores."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import sacrebleu
import torch
from command_line import called
from job_helpers import composed, no_peak, prepared, run_request, tiny  # noqa: F401
from lm_eval.models.huggingface import HFLM
from own_file import cell, tasks
from rouge_score.rouge_scorer import RougeScorer

from harness import record
from harness.errors import UserError
from harness.gate import objection
from harness.job import preflight
from harness.job.data import cached, encoding
from harness.job.evaluate import rescoring, scoring
from harness.job.evaluate.held_out import prose
from harness.job.evaluate.held_out.task import LAST_NUMBER, exactness, kind_of
from harness.settings import EvalSettings
from harness.studies import verify

SUMS = [{"question": f"What is {i} + {i}?", "answer": f"{i} + {i} is so much.\n#### {2 * i}"} for i in range(60)]
CITIES = ["Paris", "Rome", "Oslo", "Bern"]
CHOICES = [{"question": f"Which is {i}?", "answer": "ABCD"[i % 4], "from": CITIES} for i in range(60)]
TEXTS = [
    {"question": f"Tell of {i}.", "answer": f"This is a story of {i} that goes on for a while and then ends well."}
    for i in range(60)
]
TALKS = [
    {
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": f"Hi {i}."},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": f"And {i}?"},
            {"role": "assistant", "content": f"{i}."},
            {"role": "user", "content": "Thanks."},
        ]
    }
    for i in range(60)
]
OPTIONS, MESSAGES = "data.columns.options=from", "data.columns.messages=messages"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def bench():
    return prepared(tiny("method=base"))


def requests(found: scoring.Tasks) -> list:
    task = found.leaves["held_out"]
    task.build_all_requests(samples=found.sample["held_out"])
    return task.instances


# What is asked


def test_the_prompt_is_the_one_of_training(bench):
    asked = ("data.prompt='{topic}: {question}\\nA:'", "+data.columns.topic=topic", "data.prompt_if_empty='{question}'")
    rows = [row | {"topic": "sums" if i % 2 else ""} for i, row in enumerate(SUMS * 2)]
    rows = [row | {"question": f"{i}: {row['question']}"} for i, row in enumerate(rows)]
    mine = cell(rows, *asked).settings.data
    items = cached.splits(mine, None)["test"]
    encoded = encoding.encoder(bench.tokenizer, mine, 512)(items)
    found = [request.args[0] for request in requests(tasks(rows, *asked))]
    assert found == [bench.tokenizer.decode(e.ids[: e.prompt]) for e in encoded]
    assert {text.startswith("sums: ") for text in found} == {True, False}


def test_examples_are_the_first_of_training_whatever_is_trained_on():
    overrides = ("eval.num_fewshot=2", "data.limit=20", "data.noise=0.5")
    first, second = cached.splits(cell(SUMS).settings.data, None)["train"][:2]
    text = requests(tasks(SUMS, *overrides))[0].args[0]
    assert text.startswith(
        f"Question: {first['question']}\nAnswer: {first['answer']}\n\nQuestion: {second['question']}\nAnswer: "
    )
    with pytest.raises(UserError, match=r"eval\.num_fewshot must be at most \d\d, the items to train on, got 99"):
        tasks(SUMS, "eval.num_fewshot=99")


def test_a_conversation_is_asked_up_to_its_last_answer_by_the_template(bench, monkeypatch):
    monkeypatch.setattr(bench.tokenizer, "chat_template", CHATML)
    found = tasks(TALKS, MESSAGES, "eval.num_fewshot=1", "eval.limit=2")
    scores, items, _ = scoring.score(bench.net, bench.tokenizer, found, 4, None)
    assert [(s.metric, s.n) for s in scores] == [("exact_match", 2), ("exact_match", 2)]
    item = json.loads(json.dumps(found.leaves["held_out"].eval_docs[int(items["item"][0])]))
    text = found.leaves["held_out"].instances[0].args[0]
    turns = json.loads(item["turns"])
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    asked = bench.tokenizer.apply_chat_template(turns[1:], tokenize=False, add_generation_prompt=True)
    assert text.endswith(asked)
    assert text.count("Be short.") == 1
    assert text.count("<|im_start|>user") == 4  # two of the example
    assert items["target"][0] == item["answer"]


def test_a_conversation_is_asked_with_what_training_has_before_the_words(bench, monkeypatch):
    """As Qwen3's template has it, the last answer begins with an empty thought."""
    before = "{% if loop.last and m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}"
    monkeypatch.setattr(bench.tokenizer, "chat_template", CHATML.replace("{{ m['content'] }}", before))
    found = tasks(TALKS, MESSAGES, "eval.limit=2")
    scoring.score(bench.net, bench.tokenizer, found, 4, None)
    task = found.leaves["held_out"]
    for instance in task.instances:
        asked = instance.args[0]
        turns = [*json.loads(instance.doc["turns"]), {"role": "assistant", "content": instance.doc["answer"]}]
        learned = bench.tokenizer.apply_chat_template(turns, tokenize=False)
        assert asked.endswith("assistant\n<think>\n\n</think>\n\n")
        assert learned == f"{asked}{instance.doc['answer']}<|im_end|>\n"


def test_questions_are_asked_as_they_were_trained_whatever_is_said_of_others(bench, monkeypatch):
    monkeypatch.setattr(bench.tokenizer, "chat_template", CHATML)
    found = tasks(SUMS, "eval.chat_template=true", "eval.limit=2", "eval.tasks=[held_out,plain_text,wordmath_short]")
    scoring.score(bench.net, bench.tokenizer, found, 4, None)
    asked = {leaf: task.instances[0].args[0] for leaf, task in found.leaves.items()}
    assert {leaf for leaf, text in asked.items() if "<|im_start|>" in text} == {"wordmath_short"}


def test_a_system_instruction_beside_ones_own_is_refused(bench, monkeypatch):
    monkeypatch.setattr(bench.tokenizer, "chat_template", CHATML)
    found = tasks(TALKS, MESSAGES, "eval.system_instruction=Go", "eval.limit=2")
    with pytest.raises(UserError, match=r"eval\.system_instruction can't be combined with conversations"):
        scoring.score(bench.net, bench.tokenizer, found, 4, None)


# What is measured


@pytest.mark.parametrize(
    ("rows", "overrides", "kind"),
    [
        (CHOICES, [OPTIONS], "choice"),
        (CHOICES, ["data.answers=exact"], "exact"),
        (SUMS, [], "exact"),
        (TEXTS, [], "text"),
        (TALKS, [MESSAGES], "exact"),
        (SUMS, ["data.answers=text"], "text"),
        (CHOICES, [OPTIONS, "data.answers=exact"], "exact"),
    ],
)
def test_records_say_how_they_are_scored(rows, overrides, kind):
    found = tasks(rows, *overrides).leaves["held_out"]
    metrics = {"choice": {"acc", "acc_norm"}, "exact": {"exact_match"}, "text": {"rougeL", "bleu", "bits_per_byte"}}
    assert set(found.aggregation()) == metrics[kind] == scoring._means(found)


def test_scores_of_a_choice_are_the_likelihoods_of_its_options(bench):
    found = tasks(CHOICES, OPTIONS)
    scores, items, _ = scoring.score(bench.net, bench.tokenizer, found, 4, None)
    assert [(s.task, s.metric, s.filter, s.version) for s in scores] == [
        ("held_out", "acc", "none", "1.0"),
        ("held_out", "acc_norm", "none", "1.0"),
    ]
    assert scores[0].n == len(found.sample["held_out"]) > 2
    lm = HFLM(pretrained=bench.net, tokenizer=bench.tokenizer)
    doc = found.leaves["held_out"].eval_docs[0]
    assert doc["prompt"].startswith("Question: Which is ")
    sums = []
    for city in CITIES:
        before = bench.tokenizer(doc["prompt"])["input_ids"]
        ids = torch.tensor([before + bench.tokenizer(f" {city}", add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            likely = lm.model(ids).logits.log_softmax(-1)
        sums.append(sum(float(likely[0, at - 1, ids[0, at]]) for at in range(len(before), ids.shape[1])))
    acc = items[(items["item"] == 0) & (items["metric"] == "acc")]["value"].item()
    assert acc == (sums.index(max(sums)) == doc["gold"])


def test_free_text_has_the_bits_per_byte_of_its_answer_and_its_overlap(bench):
    found = tasks(TEXTS, "eval.limit=3")
    scores, items, used = scoring.score(bench.net, bench.tokenizer, found, 4, None)
    assert [(s.metric, s.higher_is_better) for s in scores] == [
        ("rougeL", True),
        ("bleu", True),
        ("bits_per_byte", False),
    ]
    assert {"shared_prefix", "continuous_batching"} <= used.keys()
    first = items[items["metric"] == "bits_per_byte"].iloc[0]
    doc = found.leaves["held_out"].eval_docs[int(first["item"])]
    before = bench.tokenizer(doc["prompt"])["input_ids"]
    ids = torch.tensor([before + bench.tokenizer(f" {doc['answer']}", add_special_tokens=False)["input_ids"]])
    with torch.inference_mode():
        likely = bench.net(input_ids=ids).logits.log_softmax(-1)
    total = sum(float(likely[0, at - 1, ids[0, at]]) for at in range(len(before), ids.shape[1]))
    assert first["value"] == pytest.approx(-total / math.log(2) / len(doc["answer"].encode()), rel=1e-4)
    plain, _, _ = scoring.score(bench.net, bench.tokenizer, found, 4, None, speedups=False)
    assert [s.value for s in plain] == pytest.approx([s.value for s in scores], rel=1e-4)


def test_overlap_is_googles_and_knows_other_scripts():
    said, answer = "The cat sat on a mat.", "A cat sat on the mat today"
    package = RougeScorer(["rougeL"]).score(answer, said)["rougeL"].fmeasure
    bleu = sacrebleu.sentence_bleu(said, [answer]).score / 100
    assert prose.likeness({"answer": answer}, [said]) == {"rougeL": package, "bleu": pytest.approx(bleu)}
    assert 0 < bleu < 1
    for text, other in [("Кошка спит дома", "Кошка дома"), ("猫在家", "猫家")]:
        assert prose.likeness({"answer": text}, [text])["rougeL"] == 1
        assert prose.likeness({"answer": text}, [other])["rougeL"] == pytest.approx(0.8)
    said, answer = "猫在家里吃饭", "猫在家里睡觉"
    bleu = sacrebleu.sentence_bleu(said, [answer], tokenize="zh").score / 100
    assert 0.4 < prose.likeness({"answer": answer}, [said])["bleu"] == pytest.approx(bleu)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("สวัสดีครับ ผมชื่อสมชาย", "สวัสดีครับ ฉันชื่อสมชาย"),
        ("こんにちは", "こんにちわ"),
        ("𠀀𠀁𠀂𠀃𠀄", "𠀀𠀁𠀂𠀃"),
        ("मेरा नाम हिन्दी में लिखा है", "मेरा नाम हिन्दी में लिखो है"),
    ],
)
def test_prose_without_spaces_and_with_marks_is_partly_alike(answer, said):
    assert all(0.2 < value < 0.95 for value in prose.likeness({"answer": answer}, [said]).values())


def test_a_mark_makes_another_word():
    assert prose.likeness({"answer": "हिन्दी"}, ["हिन्दु"])["rougeL"] == 0
    assert prose.likeness({"answer": "café"}, ["cafe\u0301"]) == {"rougeL": 1, "bleu": pytest.approx(1)}


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("北京", "exact"),
        ("เชียงใหม่", "exact"),
        ("カスタマーサポート", "exact"),
        ("这座城市位于中国的北部，以其悠久的历史闻名。", "text"),
        ("この街は北にあり、長い歴史で知られています。", "text"),
        ("เมืองนี้อยู่ทางเหนือและมีประวัติยาวนาน", "text"),
    ],
)
def test_a_sentence_without_spaces_is_no_short_answer(answer, kind):
    items = [{"question": f"Q{i}", "answer": answer} for i in range(4)]
    assert kind_of(composed("data=local").settings.data, {"test": items}) == kind


def test_numbers_in_other_digits_are_found_flexibly():
    answers = [("答案是４２", "所以是４２个"), ("٤٢", "الجواب ٤٢ فقط"), ("42", "答案是42。")]
    for answer, said in answers:
        extracted = re.findall(LAST_NUMBER, said)[-1]
        assert exactness({"answer": answer}, ["".join(extracted)])["exact_match"] == 1


def test_a_number_is_found_strictly_and_flexibly():
    task = tasks(SUMS).leaves["held_out"]
    assert [kind.name for kind in task._filters] == ["flexible-extract", "strict-match"]
    assert task.config.generation_kwargs["until"] == ["\nQuestion:"]  # an answer has two lines
    short = tasks(CHOICES, "data.answers=exact").leaves["held_out"]
    assert short.config.generation_kwargs["until"] == [
        "\nQuestion:",
        "\n",
    ]


@pytest.mark.parametrize(
    ("size", "room", "notes"),
    [
        (90, 77, []),
        (6_000, 3_032, []),  # a trace of thoughts before the answer, of some 1,500 tokens
        (20_000, 4_096, ["held_out: 1 right answer with more than 16,384 bytes, about 4,096 tokens, after which"]),
    ],
)
def test_an_answer_has_room_for_long_thoughts_before_it(size, room, notes):
    rows = [{"question": f"What is {i}?", "answer": f"Let me think.\n#### {i}"} for i in range(60)]
    (test,) = cached.splits(cell(rows, "data.test_share=0.02").settings.data, None)["test"]
    row = next(row for row in rows if row["question"] == test["question"])
    thoughts = "So 1 is not 2.\n" * 2_000
    row["answer"] = thoughts[: size - len(row["answer"])] + row["answer"]
    found = tasks(rows, "data.test_share=0.02")
    assert found.leaves["held_out"].config.generation_kwargs["max_gen_toks"] == room
    told = [note for note in found.notes if "right answer" in note]
    assert len(told) == len(notes)
    assert all(note.startswith(start) for note, start in zip(told, notes, strict=True))


# From the file to the record


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A tuned cell and its base, scored on free text; the folder one works in."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for method in ("lora", "base"):
            asked = ("eval.limit=4", "eval.tasks=[held_out,plain_text]", "data.test_share=0.2")
            mine = cell(TEXTS, f"method={method}", *asked)
            path = folder / "results" / "own" / f"{mine.name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            run_request(mine, "own", path, None, lambda event: None, save="adapter")
    return folder


@pytest.mark.long
def test_a_cell_is_scored_on_its_own_data(recorded):
    paths = sorted((recorded / "results" / "own").glob("*.json"))
    assert len(paths) == 2
    for path in paths:
        found = record.read(path)
        assert found.status == "ok"
        counts = {s.metric: s.n for s in found.scores if s.task == "held_out"}
        assert counts == {"rougeL": 4, "bleu": 4, "bits_per_byte": 4}
        assert verify.check(path) == []
        assert objection(found) is None  # `retry` runs it from its record
    tuned = next(f for f in map(record.read, paths) if f.cell.method == "lora")
    assert tuned.contamination["held_out"].items == 4
    columns = pd.read_parquet(paths[0].with_suffix(".items.parquet"))
    assert {"held_out", "plain_text"} == set(columns["task"])


def test_saved_weights_are_scored_on_it_again_until_the_file_changes(recorded, monkeypatch):
    monkeypatch.chdir(recorded)
    for path in sorted((recorded / "results" / "own").glob("*.json")):
        first = record.read(path)
        settings = replace(first.cell.settings.eval, tasks=["held_out"])
        rescoring.rescore(path, settings, None, lambda event: None)
        again = record.read(path)
        assert sorted(again.scores, key=str) == sorted(first.scores, key=str)
        assert verify.check(path) == []
        Path("mine.jsonl").write_text(Path("mine.jsonl").read_text() + json.dumps(SUMS[0]) + "\n")
        with pytest.raises(UserError, match="is not scored: its data have changed"):
            rescoring.rescore(path, settings, None, lambda event: None)
        cell(TEXTS)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.test_share=0"], r"eval\.tasks=held_out requires data\.test_share=, the share of the records"),
        (["data.answers=choice"], r"data\.answers=choice requires data\.columns\.options"),
        (["data=wordmath", "data.path=null"], r"eval\.tasks=held_out requires data\.test_share="),
    ],
)
def test_a_task_that_can_not_be_made_is_refused_before_anything_runs(overrides, said):
    with pytest.raises(UserError, match=said):
        preflight.check([cell(SUMS, *overrides)], None)


def test_without_data_there_is_no_such_task():
    with pytest.raises(UserError, match=r"eval\.tasks=held_out requires training data in columns"):
        scoring.Tasks(EvalSettings(tasks=["held_out"]), None)


@pytest.mark.long
def test_the_command_line_shows_the_score_and_scores_again(tmp_path):
    """`run` on a file of one's own, the table, `score` without training, `verify`."""
    cell(CHOICES)
    at = ("train.max_steps=2", "train.batch_size=2", "train.validation_items=2", "infer.repeats=0", "study=own")
    mine = ("data=local", "data.path=mine.jsonl", OPTIONS, "eval.tasks=[plain_text]", "eval.limit=3")
    for method in ("base", "lora"):
        done = called(tmp_path, "run", "model=tiny", f"method={method}", *at, *mine, "save=adapter")
        assert done.returncode == 0, done.stderr
    scored = called(tmp_path, "score", "own", "--tasks", "held_out")
    assert scored.returncode == 0, scored.stderr
    assert sum("held-out data, accuracy: " in line for line in scored.stdout.splitlines()) == 2
    table = called(tmp_path, "table", "--study", "own", "--format", "csv")
    assert "held_out" in table.stdout, table.stdout
    assert called(tmp_path, "verify", "--study", "own").returncode == 0
    Path("mine.jsonl").write_text(Path("mine.jsonl").read_text() + json.dumps(CHOICES[0] | {"question": "New?"}) + "\n")
    again = called(tmp_path, "score", "own", "--tasks", "held_out", "--replace")
    assert again.returncode == 1
    assert "its data have changed" in again.stderr
