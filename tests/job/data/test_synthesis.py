"""Problems that a model writes: what is checked of them, what is asked once and never again, and training on them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from fractions import Fraction

import pytest
from job_helpers import DATA, composed, needs_data, run_here
from scripted import problem, refusal, server

from harness.__main__ import main
from harness.errors import UserError
from harness.job.api.client import THINKING, Client, host
from harness.job.data import arithmetic, batching, contamination, encoding, synthetic
from harness.job.data.generators import synthesis, wordmath
from harness.protocol import Progress, Synthesize
from harness.settings import EvalSettings, TrainSettings, plain

# Arithmetic


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Mia pays 3 * 4 = 12 dollars.", [True]),
        ("Mia pays 3 * 4 = 13 dollars.", [False]),
        ("She has <<3*4=12>>12, then 12 - 5 = <<12-5=8>>7.", [True, False, True]),
        ("It is $1,250 + $50.50 = $1,300.50.", [True]),
        ("Each gets 10 / 3 = 3.33, not 10 / 3 = 3.34 or 10 / 3 = 3.", [True, False, False]),
        ("That is 252 x 7 = 1764, 2 × 3 = 6, 8 ÷ 2 = 5.", [True, True, False]),
        ("So (2 + 3) * 4 = 20 and 2 + 3 * 4 = 20.", [True, False]),
        ("Half is 1/2 * 1/2 = 1/4.", [True]),
        ("1 + 1 = 2 + 3 = 5, a chain", [True, True]),
        ("5 + 5 + 5 = 3 * 5 = 16", [True, False]),
        ("20% of it is 50 * 20% = 10, and 75/100 * 100 = 75%.", [True, True]),
        ("Let 2x + 3 = 7, 3x-5=16, 8 x 1 1/2 = 12, 100/5 = 5A/5.", []),
        ("8 apples + 2 apples = 11 apples", []),  # with units between: it can't be worked out
        ("1 / 0 = 5", []),
        ("6 - -2 = 8 and -3 + 1 = -2", [True, True]),
    ],
)
def test_calculations_are_worked_out_again(answer, right):
    assert [step.right for step in arithmetic.steps(answer)] == right


@pytest.mark.parametrize(
    ("answer", "number"),
    [("… 5\n#### 1,250", 1250), ("#### $3.50\n", Fraction(7, 2)), ("#### -4", -4), ("#### five", None), ("5", None)],
)
def test_the_result_is_what_stands_behind_the_hashes(answer, number):
    assert arithmetic.final(answer) == number


def test_generated_problems_are_right_and_their_results_those_of_a_step():
    for item in wordmath.load(train=500, test=0, validation=0)["train"]:
        steps = arithmetic.steps(item["answer"])
        assert steps, item
        assert all(step.right for step in steps), item
        assert arithmetic.final(item["answer"]) == steps[-1].said


@needs_data
def test_hardly_an_answer_of_gsm8k_is_called_wrong():
    lines = (DATA / "openai" / "gsm8k" / "main" / "train.jsonl").read_text().splitlines()[:2000]
    found = [arithmetic.steps(json.loads(line)["answer"]) for line in lines]
    assert sum(bool(steps) for steps in found) > 0.98 * len(found)
    assert sum(not all(step.right for step in steps) for steps in found) < 0.01 * len(found)  # some are wrong


# Likeness


def test_texts_are_alike_by_their_runs_of_words():
    known = contamination.Texts(["Tom has three red apples and eats one.", "A bus holds forty people."])
    assert known.nearest("tom has THREE red apples, and eats one") == 1
    assert known.nearest("Tom has three red apples and buys one.") == pytest.approx(4 / 8)
    assert known.nearest("Nothing of the sort is here.") == 0
    assert known.nearest("") == 0


def test_thirteen_shared_words_are_an_overlap():
    words = [f"w{i}" for i in range(20)]
    evaluation = contamination.Evaluation([" ".join(words), "short and sweet"])
    assert evaluation.overlaps("before " + " ".join(words[:13]) + " after that all else is of another kind " * 3)
    assert not evaluation.overlaps("before " + " ".join(words[:12]) + " after that all else is of another kind " * 3)
    assert evaluation.overlaps("this one is short and sweet as well")
    assert not contamination.Evaluation([]).overlaps("anything")


# What is asked, and what is kept of the answers

SEEDS = [
    {
        "question": f"Seed {i}: a box has {i + 2} pens and gets 5 more. How many are in it?",
        "answer": f"{i + 2} + 5 = {i + 7}\n#### {i + 7}",
    }
    for i in range(6)
]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "seeds.jsonl"
    path.write_text("".join(json.dumps(seed) + "\n" for seed in SEEDS))
    return path


def as_progress(follow):
    """What a job's reports become on the way to the sweep."""
    return lambda event: follow(Progress("synthesize", **event))


def asking(source, url, **fields):
    usual = {
        "file": str(source),
        "data": None,
        "eval": EvalSettings(seed=0),
        "data_root": None,
        "n": 8,
        "most": 24,
        "seed": 0,
    }
    usual |= {"kinds": ["harder", "new"], "base_url": url, "model": "writer", "concurrency": 3, "timeout": 20.0}
    return Synthesize(**(usual | {"out": str(source.parent / "made.jsonl")} | fields))


def made(source):
    return [json.loads(line) for line in (source.parent / "made.jsonl").read_text().splitlines()]


def ask(source, url, **fields):
    return synthesis.synthesize(asking(source, url, **fields), lambda event: None)


def test_wrong_problems_are_rejected_with_a_reason_and_kept_ones_name_their_source(source):
    wrong = {
        0: "I would rather not.",
        1: problem(1, result=99),  # 1 + 30 is not 99
        2: json.dumps({"question": "How many pens lie there in the box of the seed?", "answer": "7"}),
        3: json.dumps(
            {"question": "What is nine and nine and one, all of it together?", "answer": "9 + 9 = 18\n#### 19"}
        ),
        4: json.dumps(SEEDS[3]),
        5: problem(6),
        6: problem(6),
        7: {"text": problem(7), "finish": "length"},
        9: 'So {"a": 1} it is: ' + problem(9).replace("lamps", "lamps\u2028"),
        10: problem(10).replace("lamps", "\\ud83d"),
        8: json.dumps(
            {"question": "A question that stands in the evaluation, word for word?", "answer": "2 + 2 = 4\n#### 4"}
        ),
    }
    sieve = synthesis.Sieve(
        SEEDS, contamination.Evaluation(["A question that stands in the evaluation, word for word?"])
    )
    question = synthesis.Question("k", "harder", [0], [])
    for number in range(12):
        said = wrong.get(number, "```json\n" + problem(number) + "\n```")
        text, whole = (said["text"], False) if isinstance(said, dict) else (said, True)
        sieve.judge(question, synthesis.JournalEntry("k", "writer", "here", "2026-01-01", text, whole, 1, 1))
    assert sieve.rejected == {
        "format": 3,
        "arithmetic": 2,
        "near-duplicate of a seed": 1,
        "near-duplicate of another": 1,
        "cut off": 1,
        "in the evaluation": 1,
    }
    assert [example["why"] for example in sieve.examples["arithmetic"]] == [
        "1 + 30=99, but it comes to 31",
        "19 is the result of no step",
    ]
    assert len(sieve.kept) == 3
    provenance = sieve.kept[0]["provenance"]
    assert (provenance["model"], provenance["host"], provenance["kind"]) == ("writer", "here", "harder")
    assert (provenance["prompts"], provenance["steps_checked"]) == (synthesis.PROMPTS, 1)


def test_a_paraphrase_comes_to_what_its_seed_comes_to():
    sieve = synthesis.Sieve(SEEDS, contamination.Evaluation([]))
    for number in (5, 6):
        question = synthesis.Question("k", "paraphrase", [0], [])  # whose result is 7
        text = json.dumps(
            {"question": f"Other words of case {number}?", "answer": f"2 + {number} = {number + 2}\n#### {number + 2}"}
        )
        sieve.judge(question, synthesis.JournalEntry("k", "writer", "here", "2026-01-01", text, True, 1, 1))
    assert [item["answer"] for item in sieve.kept] == ["2 + 5 = 7\n#### 7"]
    assert sieve.examples["arithmetic"][0]["why"] == "a paraphrase comes to something else than its seed"


def test_a_rerun_requests_only_new_problems(source, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")
    numbers = iter(range(1000))
    with server(lambda prompt, number: problem(next(numbers))) as there:
        summary = ask(source, there.url)
        assert (summary["kept"], summary["asked"], len(there.asked)) == (8, 8, 8)
        assert summary["tokens"] == {"answers": 8, "read": 80, "written": 40}
        first = (source.parent / "made.jsonl").read_text()
        with (source.parent / "made.answers.jsonl").open("a") as journal:
            journal.write('{"key": "cut sho')  # as a killed call leaves it
        assert ask(source, there.url, concurrency=1)["tokens_of_this_call"]["answers"] == 0
        assert len(there.asked) == 8
        assert (source.parent / "made.jsonl").read_text() == first
        assert ask(source, there.url, n=10)["kept"] == 10
        assert len(there.asked) == 10
        assert made(source)[:8] == [json.loads(line) for line in first.splitlines()]
        assert len(set(there.prompts())) == 10
        assert set(there.keys) == {"Bearer sk-of-the-environment"}
    for path in source.parent.iterdir():
        assert "sk-of-the-environment" not in path.read_text()


def test_a_busy_server_is_retried_and_no_answer_is_lost(source, monkeypatch):
    monkeypatch.setattr("harness.job.api.client.BACKOFF", 0.01)
    state = {"broken": False}

    def script(prompt, number):
        busy = state["broken"] and len(there.asked) > 12
        return 503 if busy or number in (0, 4) else problem(number)

    with server(script) as there:
        ask(source, there.url, n=4)
        assert len(there.asked) == 6, "two were asked twice"
        state["broken"] = True
        with pytest.raises(UserError, match="HTTP 503"):
            ask(source, there.url, n=20)
        kept = len((source.parent / "made.answers.jsonl").read_text().splitlines())
        assert kept == 10
        state["broken"] = False
        before = len(there.asked)
        assert ask(source, there.url, n=20)["kept"] == 20
        assert len(there.asked) - before == 10


def test_fewer_than_wanted_is_an_exit_status(source, capsys, monkeypatch):
    """The command line as a whole, but in this process: what a job would do is done here."""
    monkeypatch.setattr(
        "harness.sweep.runner.synthesize",
        lambda request, follow: synthesis.synthesize(request, as_progress(follow)),
    )
    with server(lambda prompt, number: problem(number % 4)) as there:
        line = ["synthesize", "--source", str(source), "--base-url", there.url, "--model", "writer", "--eval", "none"]
        line += ["--out", str(source.parent / "made.jsonl"), "--n", "6", "--most", "9"]
        assert main(line) == 1
        out = capsys.readouterr().out
        assert f"made.jsonl: {len(made(source))} problems" in out
        assert "near-duplicate of another" in out
        assert "No evaluation was kept out." in out
        assert "This call: 9 answers, 90 tokens read, 45 written." in out
        report = json.loads((source.parent / "made.report.json").read_text())
        assert (report["source"], report["asked"], report["evaluation"]) == ("seeds.jsonl", 9, [])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--base-url http://x/v1 --n 0", "--n"),
        ("--base-url ftp://x/v1 --n 5", "--base-url"),
        ("--base-url http://me:secret@x/v1 --n 5", "OPENAI_API_KEY"),
        ("--base-url http://x/v1 --n 5 --kinds easier", "easier"),
        ("--base-url http://x/v1 --n 5 --timeout 0", "--timeout"),
    ],
)
def test_bad_input_is_one_sentence(source, capsys, line, said, monkeypatch):
    monkeypatch.setattr(
        "harness.sweep.runner.synthesize",
        lambda request, follow: synthesis.synthesize(request, as_progress(follow)),
    )
    assert main(["synthesize", "--source", str(source), "--model", "m", "--eval", "none", *line.split()]) == 2
    (error,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert said in error
    assert "secret" not in error


def test_a_file_requires_an_evaluation_to_compare_with(source, capsys):
    line = ["synthesize", "--source", str(source), "--base-url", "http://x/v1", "--model", "m", "--n", "5"]
    assert main(line) == 2
    assert "requires --eval: the tasks" in capsys.readouterr().err


def test_a_file_that_was_not_made_so_is_not_written_over(source, capsys):
    before = source.read_text()
    line = ["synthesize", "--source", str(source), "--base-url", "http://x/v1", "--model", "m", "--n", "5"]
    assert main([*line, "--eval", "none", "--out", str(source)]) == 2
    assert "--out" in capsys.readouterr().err
    assert source.read_text() == before


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "aiohttp", None)
    with pytest.raises(UserError, match=re.escape("pip install -e '.[api]'")):
        Client("http://x/v1", "m", 1)


@pytest.mark.parametrize(
    ("reply", "said"),
    [(401, "OPENAI_API_KEY"), (404, "--base-url"), ({"text": "x", "usage": None}, None)],
)
def test_a_refusal_says_what_to_do(reply, said, monkeypatch):
    with server(lambda prompt, number: reply) as there:
        client = Client(there.url, "m", 5)
        if said is None:
            assert client.ask([{"role": "user", "content": "hi"}]).read is None
        else:
            with pytest.raises(UserError, match=said):
                client.ask([{"role": "user", "content": "hi"}])
    monkeypatch.setattr("harness.job.api.client.RETRIES", 0)
    with pytest.raises(UserError, match="can't be reached"):
        Client(there.url, "m", 5).ask([{"role": "user", "content": "hi"}])


def test_a_model_that_thinks_first_is_asked_in_the_words_that_it_takes():
    with server(lambda prompt, number: refusal(there.asked[number]) or "<think>\nA? No, B.</think>\n\nB") as there:
        client = Client(there.url, "m", 5)
        for _ in range(2):
            assert client.ask([{"role": "user", "content": "hi"}], max_tokens=10, temperature=0.0).text == "B"
    words = [{*body} - {"messages", "model"} for body in there.asked]
    assert (
        words
        == [{"max_tokens", "temperature"}, {"max_completion_tokens", "temperature"}] + [{"max_completion_tokens"}] * 2
    )
    assert there.asked[-1]["max_completion_tokens"] == 10 + THINKING


def test_only_the_host_of_an_address_is_shown():
    assert host("https://api.example.com/v1") == "api.example.com"
    assert host("http://localhost:8000/v1") == "localhost:8000"


# Training on it


def write(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))


def test_problems_from_one_seed_stay_in_one_split(tmp_path):
    items = [{"question": f"q{i}", "answer": "a", "provenance": {"seeds": [str(i % 50)]}} for i in range(1000)]
    write(tmp_path / "x.jsonl", items)
    splits = synthetic.load(str(tmp_path / "x.jsonl"))
    held = {int(item["question"][1:]) % 50 for item in splits["validation"]}
    assert 0 < len(held) < 10
    assert not held & {int(item["question"][1:]) % 50 for item in splits["train"]}
    assert splits["train"][0].keys() == {"question", "answer"}


def test_mixed_has_its_share_of_real_problems_and_their_validation(tmp_path):
    write(tmp_path / "x.jsonl", [{"question": f"made {i}", "answer": "a"} for i in range(30)])
    real = {"load": {"train": [{"question": f"real {i}", "answer": "a"} for i in range(100)], "validation": ["v"]}}
    splits = synthetic.load(str(tmp_path / "x.jsonl"), 0.25, real)
    kinds = [item["question"].split()[0] for item in splits["train"]]
    assert (kinds.count("made"), kinds.count("real")) == (30, 90)
    assert kinds != sorted(kinds)
    assert splits["validation"] == ["v"]
    assert synthetic.load(str(tmp_path / "x.jsonl"), 0.25, real) == splits
    for share, of, said in (
        (0.2, real, "fewer"),
        (0.5, None, "data.load.real"),
        (0.0, real, "share"),
        (2.0, real, "share"),
    ):
        with pytest.raises(UserError, match=said):
            synthetic.load(str(tmp_path / "x.jsonl"), share, of)


def test_a_file_that_is_none_is_named_with_its_line(tmp_path):
    with pytest.raises(UserError, match="harness synthesize"):
        synthetic.load(str(tmp_path / "absent.jsonl"))
    (tmp_path / "x.jsonl").write_text('{"question": "q", "answer": "a"}\n\n{"question": 5}\n')
    with pytest.raises(UserError, match="line 3"):
        synthetic.load(str(tmp_path / "x.jsonl"))


def test_a_budget_of_tokens_ends_training_with_the_step_that_reaches_it():
    lengths = [10, 20, 30, 40]
    items = [{"question": str(n), "answer": ""} for n in lengths]

    def encode(some):
        return [encoding.Example([0] * int(item["question"]), 1) for item in some]

    train = TrainSettings(batch_size=1, grad_accum=2, max_steps=10, bucketing=1)
    whole = batching.scheduled(items, train, 0, encode)
    tokens = [sum(len(e.ids) for batch in step for e in batch) for step in whole]
    cut = batching.scheduled(items, replace(train, max_tokens=120), 0, encode)
    assert cut == whole[: len(cut)]
    assert sum(tokens[: len(cut)]) >= 120 > sum(tokens[: len(cut) - 1])
    with pytest.raises(UserError, match="max_tokens"):
        batching.scheduled(items, replace(train, max_tokens=sum(tokens) + 1), 0, encode)


def test_neither_a_path_nor_a_budget_that_is_not_given_is_part_of_a_cell():
    cell = composed("method=lora")
    assert plain(cell.settings.data).keys() == {"name", "load", "prompt"}
    assert "max_tokens" not in plain(cell.settings.train)
    assert composed("train.max_tokens=100").settings.train.max_tokens == 100
    assert composed("data=synthetic", "data.path=mine.jsonl").settings.data.load["file"] == "mine.jsonl"


@pytest.mark.slow
def test_a_cell_is_trained_on_what_was_made_as_on_real_problems(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "synthetic.jsonl", [json.loads(problem(i)) for i in range(12)])
    small = ["model=tiny", "rank=4", "train.max_steps=20", "train.max_tokens=400", "train.batch_size=2"]
    small += ["train.precision=fp32", "train.validation_items=4", "eval.tasks=[]", "infer.repeats=0"]
    records = {
        name: run_here(tmp_path / name, composed(f"data={name}", *small))
        for name in ("wordmath_short", "synthetic_mixed")
    }
    for record in records.values():
        assert record.status == "ok", record.failure
        assert 400 <= record.train.tokens.raw < 600
        assert record.train.steps == len(record.train.loss) < 20
        assert record.train.loss[-1].lr < record.train.loss[record.train.steps // 2].lr, "the schedule ends there too"
    assert len({record.train.batches for record in records.values()}) == 2
