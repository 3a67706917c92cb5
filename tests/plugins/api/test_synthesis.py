"""Problems that a model writes: what is checked of them, what is asked once and never again, and training on them."""

from __future__ import annotations

import json
import re
import time
from fractions import Fraction

import pytest
from job_helpers import DATA, needs_data
from scripted import problem, refusal, server

from harness.__main__ import main
from harness.errors import UserError
from harness.job.data import contamination
from harness.job.data.generators import wordmath
from harness.plugins.api.job import arithmetic, synthesis
from harness.plugins.api.job.client import THINKING, Client, host
from harness.plugins.api.requests import Synthesize
from harness.protocol import Progress
from harness.settings import EvalSettings

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


def test_a_number_is_not_cut_where_a_long_answer_is():
    start = "3 * 4 = 1"
    answer = "a " * ((arithmetic.LONGEST_ANSWER - len(start)) // 2)
    answer += " " * (arithmetic.LONGEST_ANSWER - len(answer) - len(start)) + start
    assert len(answer) == arithmetic.LONGEST_ANSWER
    assert arithmetic.steps(answer + "2 pens") == []


@pytest.mark.parametrize(
    "answer", ["<<1e10000000=1>>", "<<1_0=10>>", "1+" * 4000, "1 +  " * 4000, "1 + 1=2\n" * 4000, "1" + " " * 9000]
)
def test_an_answer_that_is_made_to_take_long_does_not(answer):
    begun = time.process_time()
    steps = arithmetic.steps(answer)
    assert all(step.right for step in steps)
    assert bool(steps) == answer.startswith("1 + 1=2")
    assert time.process_time() - begun < 5


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
    return lambda event: follow(Progress("synthesize", other=event))


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
        sieve.judge(question, synthesis.JournalEntry(text, whole, 1, 1, "k", "writer", "here", "2026-01-01"))
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
        sieve.judge(question, synthesis.JournalEntry(text, True, 1, 1, "k", "writer", "here", "2026-01-01"))
    assert [item["answer"] for item in sieve.kept] == ["2 + 5 = 7\n#### 7"]
    assert sieve.examples["arithmetic"][0]["why"] == "a paraphrase comes to something else than its seed"


def test_a_rerun_requests_only_new_problems(source, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment\n")  # as of a file
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
    monkeypatch.setattr("harness.plugins.api.job.client.BACKOFF", 0.01)
    state = {"broken": False}

    def script(prompt, number):
        busy = state["broken"] and len(there.asked) > 12
        return 503 if busy or number in (0, 4) else problem(number)

    with server(script) as there:
        ask(source, there.url, n=4)
        assert len(there.asked) == 6, "two were asked twice"
        state["broken"] = True
        with pytest.raises(UserError, match=r"HTTP 503.*earlier answers are saved"):
            ask(source, there.url, n=20)
        kept = len((source.parent / "made.answers.jsonl").read_text().splitlines())
        assert kept == 10
        state["broken"] = False
        before = len(there.asked)
        assert ask(source, there.url, n=20)["kept"] == 20
        assert len(there.asked) - before == 10


def test_a_question_that_the_endpoint_refuses_stops_nothing(source):
    def script(prompt, number):
        return {"text": 400, "error": "filtered"} if number == 2 else problem(number)

    with server(script) as there:
        summary = ask(source, there.url, concurrency=1)
    assert (summary["kept"], summary["asked"]) == (8, 9)
    (example,) = summary["rejected"]["refused by the endpoint"]["examples"]
    assert example["why"] == 'HTTP 400: {"error": {"message": "filtered"}}'
    assert len(made(source)) == 8


def test_fewer_than_wanted_is_an_exit_status(source, capsys, monkeypatch):
    """The command line as a whole, but in this process: what a job would do is done here."""
    monkeypatch.setattr(
        "harness.sweep.runner.ask",
        lambda request, follow, job: synthesis.synthesize(request, as_progress(follow)),
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
        ("--base-url http://x:80a/v1 --n 5", "--base-url must be an address"),
        ("--base-url http://[::1/v1 --n 5", "--base-url must be an address"),
        ("--base-url http://me:secret@x/v1 --n 5", "OPENAI_API_KEY"),
        ("--base-url http://x/v1 --n 5 --kinds easier", "easier"),
        ("--base-url http://x/v1 --n 5 --timeout 0", "--timeout"),
    ],
)
def test_bad_input_is_one_sentence(source, capsys, line, said, monkeypatch):
    monkeypatch.setattr(
        "harness.sweep.runner.ask",
        lambda request, follow, job: synthesis.synthesize(request, as_progress(follow)),
    )
    assert main(["synthesize", "--source", str(source), "--model", "m", "--eval", "none", *line.split()]) == 2
    (error,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert said in error
    assert "secret" not in error


def test_a_file_requires_an_evaluation_to_compare_with(source, capsys):
    line = ["synthesize", "--source", str(source), "--base-url", "http://x/v1", "--model", "m", "--n", "5"]
    assert main(line) == 2
    assert "requires --eval: the tasks" in capsys.readouterr().err


def test_a_file_beside_it_that_is_no_journal_is_left_alone(source):
    theirs = source.parent / "made.answers.jsonl"
    theirs.write_text('{"of": "somebody"}\n')
    with server(lambda prompt, number: problem(number)) as there, pytest.raises(UserError, match="something else"):
        ask(source, there.url)
    assert (theirs.read_text(), there.asked) == ('{"of": "somebody"}\n', [])


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
    [
        (401, "OPENAI_API_KEY"),
        (403, "OPENAI_API_KEY"),
        (
            {"text": 403, "error": "flagged by moderation"},
            r"refused \(HTTP 403: .*flagged by moderation\W+\)\.$",
        ),
        (404, "--base-url"),
        ({"text": "x", "finish": "content_filter"}, r"held its answer back by a filter of contents \(\{"),
        ({"text": "x", "usage": None}, None),
    ],
)
def test_a_refusal_says_what_to_do(reply, said, monkeypatch):
    with server(lambda prompt, number: reply) as there:
        client = Client(there.url, "m", 5)
        if said is None:
            assert client.ask([{"role": "user", "content": "hi"}]).read is None
        else:
            with pytest.raises(UserError, match=said):
                client.ask([{"role": "user", "content": "hi"}])
    monkeypatch.setattr("harness.plugins.api.job.client.RETRIES", 0)
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
