"""Answers side by side: real weights on this machine, servers that answer, a blind judge, and what is shown."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from types import SimpleNamespace

import chromium
import numpy as np
import pytest
import torch
from chromium import in_a_browser
from job_helpers import prepared, run_request, tiny
from omegaconf import OmegaConf
from peft import PeftModel
from records import make_record
from scripted import server
from serving import serve
from transformers import AutoTokenizer

from harness import terminal
from harness.__main__ import main
from harness.errors import UserError
from harness.job.models import embedded, loading
from harness.plugins.api import side_by_side
from harness.plugins.api.job import judge, prompting
from harness.plugins.api.job.client import Reply
from harness.plugins.api.requests import AskModels
from harness.protocol import Progress
from harness.record import write
from harness.report import statistics
from harness.settings import DataSettings
from harness.sweep.cells import part
from harness.terminal.consoles import CleanConsole

# Models that are here


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_with_virtual_tokens_an_answer_is_that_of_whole_passes(method):
    bench = prepared(tiny(f"method={method}"))
    net = bench.net.eval()
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p.normal_(std=0.5)
        prompt = ids = bench.tokenizer("What is it?", return_tensors="pt")["input_ids"]
        for _ in range(6):
            ids = torch.cat([ids, net(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    answer = bench.tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True).strip()
    assert prompting._answer(net, bench.tokenizer, "{question}", "What is it?", 6) == answer


# The judge


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ('{"better": "A"}', "A"),
        ('It says {"better": "A"} of itself.\n{"better": "B"}', "B"),
        ('It says {"better": "A"} of itself.', None),
        ('Surely:\n```json\n{"better": "tie"}\n```', "tie"),
        ('{"better": "C"}', None),
        ("A", None),
        ("{better: A}", None),
    ],
)
def test_what_a_judge_says_is_read_strictly(reply, said):
    assert judge.better(Reply(reply, True, None, None)) == said
    assert judge.better(Reply(reply, False, None, None)) is None  # it may end in what is quoted


@pytest.mark.parametrize(
    ("base_first", "base_second", "value"),
    [
        ("B", "A", 1),
        ("A", "B", 0),
        ("A", "A", 0.5),
        ("B", "B", 0.5),
        ("tie", "B", 0.5),
        ("tie", "tie", 0.5),
        (None, "B", None),
    ],
)
def test_a_preference_that_goes_with_the_place_is_a_tie(base_first, base_second, value):
    assert judge.verdict(base_first, base_second) == value


def asking(url, **fields):
    usual = {"prompts": ["one", "two", "three"], "local": [], "api": ["plain", "kind"], "base_url": url}
    usual |= {"judge": "judge", "judge_url": url, "tokens": 16, "concurrency": 2, "timeout": 20.0}
    return AskModels(**(usual | fields))


def judging(prefer):
    """A script for the server: models answer with their name, a judge as `prefer` says of the two answers."""

    def script(prompt, number):
        if "answers are only" not in prompt.lower():
            return f"{there['server'].asked[number]['model']}: {prompt}"
        first, second = re.findall(r"<answer [AB] \w+>\n(.*?)\n</answer", prompt, re.DOTALL)
        return json.dumps({"better": prefer(first, second)})

    there = {}
    return script, there


def judged(prefer, **fields):
    script, there = judging(prefer)
    with server(script) as found:
        there["server"] = found
        return prompting.ask(asking(found.url, **fields), lambda event: None), found


def test_each_pair_is_judged_in_both_orders_without_names():
    found, there = judged(lambda first, second: "A" if "kind" in first else "B")
    assert found["models"] == ["plain", "kind"]
    assert found["answers"][1] == ["kind: one", "kind: two", "kind: three"]
    assert [v["value"] for v in found["judge"]["verdicts"]] == [1, 1, 1]
    prompts = [text for text in there.prompts() if "<answer A " in text]
    assert len(prompts) == 6
    for prompt in ("one", "two", "three"):
        firsts = [re.search(r"<answer A \w+>\n(\w+)", text)[1] for text in prompts if f">\n{prompt}\n</request" in text]
        assert sorted(firsts) == ["kind", "plain"]
    assert found["judge"]["tokens"] == {"answers": 6, "read": 60, "written": 30}


def test_a_judge_that_takes_whatever_is_first_tells_nothing():
    found, _ = judged(lambda first, second: "A")
    assert [v["value"] for v in found["judge"]["verdicts"]] == [0.5] * 3


def test_equal_answers_are_a_tie_unasked_and_what_is_no_verdict_counts_for_nothing():
    found, there = judged(lambda first, second: "neither", api=["plain", "plain", "kind"])
    assert [v["value"] for v in found["judge"]["verdicts"]] == [0.5, None] * 3
    assert len([text for text in there.prompts() if "<answer A " in text]) == 6
    assert [rate[1:5] for rate in side_by_side.rates(found)] == [(0, 0, 3, 0), (0, 0, 0, 3)]
    assert side_by_side.rates(found)[1].interval is None


@pytest.mark.parametrize("other", [True, False])
def test_a_key_goes_to_the_server_that_it_is_for(other, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-models")
    monkeypatch.setenv("JUDGE_API_KEY", "key-of-the-judge")
    with server(lambda prompt, number: str(number)) as models, server(lambda *_: '{"better": "tie"}') as wise:
        prompting.ask(asking(models.url, judge_url=wise.url if other else models.url + "/"), lambda event: None)
    assert set(models.keys) == {"Bearer key-of-the-models"}
    assert set(wise.keys) == ({"Bearer key-of-the-judge"} if other else set())


@pytest.mark.parametrize(("url", "name"), [("/v1", "OPENAI_API_KEY"), (None, "JUDGE_API_KEY")])
def test_a_judge_that_refuses_a_key_loses_no_answer(url, name):
    told = []
    with (
        server(lambda prompt, number: 401 if "<answer A " in prompt else str(number)) as models,
        server(lambda *_: 401) as wise,
    ):
        judge_url = models.url if url else wise.url
        found = prompting.ask(asking(models.url, judge_url=judge_url), told.append)
    assert len(found["answers"][1]) == 3
    assert found["judge"] is None
    (warning,) = [event["warning"] for event in told if "warning" in event]
    assert re.search(
        rf"^The answers are not judged: judge at .* \(HTTP 401: .*; set {name} in the environment", warning
    )


def test_a_model_that_fails_later_loses_no_answer():
    told = []
    script, there = judging(lambda first, second: "B" if "kind" in second else "A")

    def refusing(prompt, number):
        model = there["server"].asked[number]["model"]
        return 401 if model == "locked" else 400 if (model, prompt) == ("kind", "two") else script(prompt, number)

    with server(refusing) as there["server"]:
        found = prompting.ask(asking(there["server"].url, api=["plain", "kind", "locked"], tokens=16), told.append)
    assert found["answers"] == [
        ["plain: one", "plain: two", "plain: three"],
        ["kind: one", None, "kind: three"],
        [None] * 3,
    ]
    compared = [(verdict["prompt"], verdict["model"], verdict["value"]) for verdict in found["judge"]["verdicts"]]
    assert compared == [(0, 1, 1.0), (2, 1, 1.0)], "of prompts that both models answered"
    refused, locked = (event["warning"] for event in told if "warning" in event)
    assert re.match(r"kind at \S+ refused 1 of 3 prompts \(HTTP 400", refused)
    assert re.match(r"locked at \S+ refused \(HTTP 401", locked)


def test_a_model_that_fails_before_any_answer_ends_the_command():
    with server(lambda *_: 401) as locked, pytest.raises(UserError, match=r"^plain at \S+ refused \(HTTP 401"):
        prompting.ask(asking(locked.url), lambda event: None)
    assert {request["model"] for request in locked.asked} == {"plain"}


def test_a_judge_with_a_bad_address_is_refused_before_models_answer():
    with server(lambda *_: "yes") as models:
        with pytest.raises(UserError, match=r"^--judge-url must be an address"):
            prompting.ask(asking(models.url, judge_url="http://127.0.0.1:none/v1"), lambda event: None)
        assert models.asked == []
    with pytest.raises(UserError, match=r"^--judge-url must be an address"):  # also where it is the only one
        prompting.ask(asking(None, api=[], judge_url="http://127.0.0.1:none/v1"), lambda event: None)


def test_win_rates_have_an_interval_over_prompts():
    verdicts = [{"prompt": i, "model": 1, "said": ["B", "A"], "value": v} for i, v in enumerate([1.0] * 8 + [0.5, 0.0])]
    judge = {"model": "j", "host": "h", "verdicts": verdicts, "tokens": {"answers": 20, "read": None, "written": None}}
    (rate,) = side_by_side.rates({"models": ["a", "b"], "judge": judge})
    assert (rate.wins, rate.losses, rate.ties) == (8, 1, 1)
    assert rate.interval.value == pytest.approx(0.85)
    assert 0.5 < rate.interval.low < 0.85 < rate.interval.high <= 1


def test_the_interval_of_a_preference_covers_it_as_often_as_it_says():
    draw, shares, truth = np.random.default_rng(0), (0.55, 0.3, 0.15), 0.7
    for comparisons in (5, 30):
        found = [statistics.preference(*map(int, draw.multinomial(comparisons, shares))) for _ in range(300)]
        assert 0.92 < np.mean([interval.low <= truth <= interval.high for interval in found]) <= 0.99
    assert statistics.preference(0, 0, 1)[:2] == (0.0, 0.0)
    whole = statistics.preference(9, 0, 0)
    assert (whole.value, whole.high) == (1.0, 1.0)
    assert 0.6 < whole.low < 0.9


# What is shown

HOSTILE = "<script>alert(1)</script>\x1b[31m & </td> \x00\u202egnorw"
FOUND = {
    "prompts": ["What is <b>2 + 3</b>?"],
    "models": ["base", "lora-<i>"],
    "answers": [["It is 4.\nSure."], [f"It is 5.\nSure. {HOSTILE}"]],
    "judge": None,
}


def test_what_differs_from_the_first_is_marked():
    marked = side_by_side.words("It is 5 , surely", "It is 4 , surely")
    assert "".join(word.text for word in marked) == "It is 5 , surely"
    assert [word.text for word in marked if word.differs] == ["5"]
    assert not any(word.differs for word in side_by_side.words("same as it was", "same as it was"))


def test_the_page_is_escaped_and_loads_nothing():
    page = side_by_side.page(FOUND)
    assert "<mark>5.</mark>" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "lora-&lt;i&gt;" in page
    assert "&lt;b&gt;2" in page
    assert "<script" not in page
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", page)
    assert not re.search(r"(src|href|url)\s*[=(]", page)
    assert "default-src 'none'" in page


@in_a_browser
def test_answers_stand_side_by_side_on_a_screen_however_long_they_are(tmp_path):
    texts = ["It leaves at nine. " * 40, "x" * 500]
    found = {"models": ["base", "lora", "qlora", "api"], "prompts": texts, "answers": [texts] * 4, "judge": None}
    path = tmp_path / "answers.html"
    path.write_text(side_by_side.page(found), encoding="utf-8")
    cells = "[...document.querySelectorAll('tbody tr:first-child > *')].map((cell) => cell.getBoundingClientRect())"
    with chromium.Page(tmp_path / "profile") as page:
        for width, whole in ((1280, 5), (390, 2)):  # of the prompt and the answers, those that can be read at a glance
            page.width(width)
            page.open(path)
            assert page.ask(f"{cells}.filter((cell) => cell.right <= innerWidth).length") == whole
            assert page.ask("document.documentElement.scrollWidth <= innerWidth")  # what does not fit scrolls by itself
            assert page.complaints() == []
            assert page.fetched() == [path.as_uri()]


def test_the_terminal_has_columns_where_they_fit_and_no_control_characters_but_its_own():
    wide = side_by_side.text(FOUND, 100).plain
    assert re.search(r"^It is 4\. +\| It is 5\.$", wide, re.MULTILINE)
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", wide)
    assert all(len(line) <= 100 for line in wide.splitlines())
    narrow = side_by_side.text(FOUND, 40).plain
    assert "|" not in narrow
    assert narrow.index("It is 4.") < narrow.index("lora-<i>") < narrow.index("It is 5.")
    assert all(len(line) <= 40 for line in narrow.splitlines())
    coloured = CleanConsole(file=io.StringIO(), color_system="standard", force_terminal=True)
    plain = CleanConsole(file=io.StringIO(), color_system=None)
    terminal.show(coloured, [side_by_side.text(FOUND, 100)])
    terminal.show(plain, [side_by_side.text(FOUND, 100)])
    assert "\x1b[1;33m5.\x1b[0m" in coloured.file.getvalue()
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured.file.getvalue()) == plain.file.getvalue() == f"{wide}\n"


def test_an_absent_answer_is_shown_as_none_and_nothing_differs_from_it():
    comparison = FOUND | {"answers": [[None], ["It is 5."]]}
    assert re.search(r"^\(no answer\) +\| It is 5\.$", side_by_side.text(comparison, 100).plain, re.MULTILINE)
    page = side_by_side.page(comparison)
    assert "(no answer)" in page
    assert "<mark>" not in page


# Models on this machine


@pytest.mark.parametrize(
    ("template", "text", "begins"),
    [
        ("Question: {question}\nAnswer:", "Question: Why?\nAnswer:", "Question:"),
        ("Below.\n\n### Do:\n{instruction}\n### With:\n{input}", "Below.\n\n### Do:\nWhy?\n### With:\n", "### Do:"),
        ("{question}", "Why?", ""),
    ],
)
def test_a_prompt_is_put_as_the_data_puts_its_questions(template, text, begins):
    assert prompting.put(template, "Why?") == (text, begins)


@pytest.mark.parametrize(
    "template",
    ["{question:>1000000000}", "{question.__class__}", "{question} {a[0]}", "{question!r}", "{0}", "{question"],
)
def test_a_prompt_of_others_has_nothing_but_names_in_braces(template):
    with pytest.raises(UserError, match=r"ields of data\.prompt must be names alone|must have fields as \{question\}"):
        prompting.put(template, "Why?")


@pytest.mark.parametrize(
    ("data", "prompt"),
    [
        ("alpaca", "### Instruction:\n{instruction}\n\n### Response:"),
        ("wordmath", "Question: {question}\nAnswer:"),
        ("no_robots", None),
    ],
)
def test_the_data_say_how_they_are_asked(compose, data, prompt):
    found = part(DataSettings, OmegaConf.to_container(compose(f"data={data}").data, resolve=True)).question_template
    assert found is None if prompt is None else found.endswith(prompt)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results with a cell that left its adapter in the study `demo`, the same merged in `whole`, and one without."""
    folder = tmp_path_factory.mktemp("results")
    cell = tiny("method=lora", "lr=0.05", "eval.tasks=[]", "infer.repeats=0")
    for study, save in (("demo", "adapter"), ("whole", "merged")):
        (folder / study).mkdir()
        path = folder / study / f"{cell.name}.json"
        record = run_request(cell, study, path, None, lambda event: None, save=save)
    record.cell, record.saved = dataclasses.replace(cell, name="bare", id="0"), None
    write(record, folder / "demo" / "bare.json")
    return SimpleNamespace(folder=folder, where=["--results-dir", str(folder)], cell=cell)


def asked(capsys, *line):
    assert main(["ask", *line, "--format", "json", "--tokens", "8"]) == 0
    return json.loads(capsys.readouterr().out)


def as_progress(follow):
    """What a job's reports become on the way to the sweep, which prints its warnings itself."""
    return lambda event: None if "warning" in event else follow(Progress("ask", other=event))


@pytest.fixture
def here(monkeypatch):
    """Jobs are done in this process."""
    monkeypatch.setattr("harness.sweep.runner.ask", lambda request, follow: prompting.ask(request, as_progress(follow)))


@pytest.mark.long
@pytest.mark.slow
def test_a_tuned_cell_answers_by_its_weights_and_its_base_without(results, here, capsys, tmp_path):
    found = asked(capsys, "How many?", "--study", "demo", *results.where)
    assert found["models"] == ["base", results.cell.name], "what left no weights is not asked"
    tokenizer = AutoTokenizer.from_pretrained(embedded.folder("tiny"))
    ids = tokenizer("Question: How many?\nAnswer:", return_tensors="pt")
    base = loading.load(results.cell, torch.device("cpu"))
    expected = []
    for folder in (None, results.folder / "demo" / results.cell.name):
        net = base if folder is None else PeftModel.from_pretrained(base, folder)
        written = net.generate(**ids, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        expected.append([tokenizer.decode(written[0, ids.input_ids.shape[1] :], skip_special_tokens=True).strip()])
    assert found["answers"] == expected
    assert expected[0] != expected[1]

    both = asked(capsys, "How many?", "--cells", f"demo/{results.cell.name},whole/{results.cell.name}", *results.where)
    assert both["models"] == ["base", f"demo/{results.cell.name}", f"whole/{results.cell.name}"]
    assert both["answers"] == [*expected, expected[1]], "the same weights, merged"
    assert main(["ask", "How many?", "--study", "demo", "--out", str(tmp_path / "a.html"), *results.where]) == 0
    assert "1. How many?" in capsys.readouterr().out
    assert results.cell.name in (tmp_path / "a.html").read_text()
    assert main(["ask", "How many?", "--cells", "bare", *results.where]) == 2
    assert "save=adapter" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.slow
def test_a_real_server_is_asked_beside_what_is_here_in_a_job_of_its_own(results, harness, tmp_path, monkeypatch):
    """The whole way: the command line, a job, an adapter on disk, and `transformers serve`."""
    monkeypatch.chdir(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(embedded.folder("tiny"))
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained("served")
    loading.load(results.cell, torch.device("cpu")).save_pretrained("served")
    with serve("served") as url:
        (tmp_path / "prompts.jsonl").write_text('{"question": "One?"}\n{"prompt": "Two?"}\n')
        line = [
            "--prompts",
            "prompts.jsonl",
            "--cells",
            f"demo/{results.cell.name}",
            "--api",
            "served",
            "--judge",
            "served",
        ]
        line += ["--base-url", url, "--tokens", "8", "--as-typed", *results.where]
        run = harness("ask", *line, "--format", "json")
        assert run.returncode == 0, run.stderr
        found = json.loads(run.stdout)
        assert found["models"] == ["base", results.cell.name, "served"]
        assert found["answers"][2] == found["answers"][0], "the same weights, asked as typed, here and there"
        values = {v["model"]: v["value"] for v in found["judge"]["verdicts"]}
        assert values == {1: None, 2: 0.5}, "a random model is no judge, and equal answers want none"


def test_a_missing_answer_is_told_by_the_exit_status(here, capsys):
    with server(lambda prompt, number: 400 if prompt == "two" else "yes") as models:
        line = ["ask", "one", "two", "--api", "m", "--base-url", models.url, "--format", "json"]
        assert main(line) == 1
        assert json.loads(capsys.readouterr().out)["answers"] == [["yes", None]]
        assert main([*line[:2], *line[3:]]) == 0


def test_bad_input_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": 5}\n')
    for line, said in (
        ([], "nothing to ask"),
        (["--prompts", "empty.txt"], "nothing to ask"),
        (["--prompts", "absent.txt"], "absent.txt"),
        (["--prompts", "bad.jsonl"], "line 1"),
        (["hi", "--api", "m"], "--base-url"),
        (["hi", "--judge", "m"], "--base-url"),
        (["hi", "--api", "m", "--base-url", "http://x/v1", "--judge", "m"], "two models"),
        (["hi"], "no records"),
        (["hi", "--tokens", "0"], "--tokens"),
    ):
        assert main(["ask", *line]) == 2
        (error,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
        assert said in error


def test_a_cell_without_weights_says_how_to_have_some(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    record = make_record("lora", settings={"method": {"optim": {}, "load": {}}})
    write(record, tmp_path / "results" / "demo" / f"{record.cell.name}.json")
    for line in (["hi"], ["hi", "--cells", record.cell.name]):
        assert main(["ask", *line]) == 2
        assert "save=adapter" in capsys.readouterr().err
