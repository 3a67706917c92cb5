"""Models behind an API, asked at real servers over a wire that breaks: every item once, nothing paid for twice."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import scripted
import torch
from aiohttp import web
from job_helpers import DATA, composed, needs_data, run_here, run_request
from serving import NAME, LogProbabilities, Wire, chatty, serve
from tiny_encoder import saved_encoder
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import units
from harness.errors import UserError
from harness.job.evaluate import scoring
from harness.job.models import embedded
from harness.plugins.api import requests
from harness.plugins.api.job import chat_tasks, endpoint, lm_eval_model, run_api_cell
from harness.plugins.api.job.lm_eval_model import AnswerStore, StoredAnswer
from harness.plugins.api.requests import ApiAccess
from harness.protocol import Progress
from harness.record import encode, read
from harness.settings import ModelSettings
from harness.sweep.store import Study
from harness.validate import SETTINGS

ITEMS = 6
TASK = ("eval=wordmath_short", f"eval.limit={ITEMS}", "data=wordmath_short")
HERE = ("method=base", "model=tiny", "train.precision=fp32", "train.validation_items=2", "infer.repeats=0")
KEY = "planted-key-of-the-api"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The real server, on the tiny model."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # a model's name that is a place on this machine would be refused
        chatty(Path(NAME))
        with serve(NAME) as url:
            yield url


@pytest.fixture
def wire(served):
    with Wire(served) as wire:
        yield wire


def cell(base_url: str, *overrides: str):
    return composed("method=api", f"model.base_url={base_url}", f"model.name={NAME}", *TASK, *overrides)


def asking(folder: Path, cell, **settings) -> ApiAccess:
    usual = {"concurrency": 3, "per_minute": None, "timeout": 30.0, "retries": 3, "backoff": 0.01, "key_env": None}
    prices = {"price_read": 1.0, "price_written": 2.0}
    answers = {"answers": str(folder / "answers" / f"{cell.name}.jsonl")}
    return ApiAccess(**(usual | prices | answers | settings))


def ask(folder: Path, cell, **settings):
    """The record of `cell`, run in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{cell.name}.json"
    how = asking(folder, cell, **settings)
    return run_request(cell, "test", path, None, lambda event: None, extra=encode(how))


def estimate(folder: Path, cell, data_root: str | None = None):
    """What `cell` would still ask in `folder`."""
    return run_api_cell.estimate(cell, asking(folder, cell), data_root)


def items(folder: Path, record) -> pd.DataFrame:
    return pd.read_parquet(folder / f"{record.cell.name}.items.parquet")


@pytest.fixture(scope="module")
def whole(served, tmp_path_factory):
    """A run at the real server, with nothing in between: its record and its items."""
    folder = tmp_path_factory.mktemp("whole")
    record = ask(folder, cell(served))
    return SimpleNamespace(record=record, items=items(folder, record), folder=folder, url=served)


# A cell like any other


@pytest.mark.long
def test_a_chat_is_scored_on_the_items_that_a_model_here_is(whole, tmp_path):
    record = whole.record
    assert (record.status, record.failure) == ("ok", None)
    assert {score.task for score in record.scores} == {"wordmath_short (chat)"}
    assert {score.n for score in record.scores} == {ITEMS}
    here = run_here(tmp_path, composed(*HERE, *TASK))
    assert record.items == here.items
    assert set(whole.items["hash"]) == set(items(tmp_path, here)["hash"])


def test_requests_hold_the_task_in_the_models_own_format(whole):
    """An answer is what the model, run here, writes after its chat template."""
    folder = embedded.folder("tiny")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    task = scoring.Tasks(whole.record.cell.settings.eval, None).leaves["wordmath_short"]
    row = whole.items.query("filter == 'flexible-extract'").iloc[0]
    prompt = f"user: {task.doc_to_text(task.eval_docs[int(row['item'])])}\nassistant:"
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.inference_mode():
        text = tokenizer.decode(model.generate(ids, max_new_tokens=96, do_sample=False)[0, ids.shape[1] :])
    answers = {a.answer for a in AnswerStore(whole.folder / "answers" / f"{whole.record.cell.name}.jsonl").own.values()}
    assert any(answer and text.startswith(answer) for answer in answers)


def test_unknown_figures_of_an_api_model_are_null(whole):
    record = whole.record
    for part in ("parameters", "probe", "train", "merge", "disk"):
        assert getattr(record, part) is None
    assert (record.inference, record.validation, record.fingerprints) == ({}, [], {})
    assert set(vars(record.phases["score"].memory).values()) == {None}
    assert "device" not in record.environment


def test_the_record_says_what_was_asked_and_what_it_cost(whole):
    answers = AnswerStore(whole.folder / "answers" / f"{whole.record.cell.name}.jsonl").own.values()
    spent = whole.record.api
    assert (spent.kind, spent.requests, spent.cached, spent.tries, spent.concurrency) == ("chat", ITEMS, 0, 0, 3)
    assert spent.read == sum(answer.read for answer in answers) > 0
    assert spent.written == sum(answer.written for answer in answers) > 0
    assert spent.dollars == pytest.approx((spent.read + 2 * spent.written) / 1e6)
    assert spent.seconds == pytest.approx(sum(answer.seconds for answer in answers))
    assert read(whole.folder / f"{whole.record.cell.name}.json").api == spent


def test_without_prices_it_cost_nobody_knows_what(whole, tmp_path):
    found = cell(whole.url)
    (tmp_path / "answers").symlink_to(whole.folder / "answers")
    assert ask(tmp_path, found, price_read=None).api.dollars is None


# A wire that breaks


@pytest.mark.long
def test_whatever_breaks_now_and_then_every_item_is_answered_once(wire, whole, tmp_path):
    faults = ["429", "500", None, "cut", "malformed", "503", None, "hollow", "page", "torn", "slow"]
    wire.faults = list(faults)
    record = ask(tmp_path, cell(wire.base_url), retries=8, timeout=2.0)
    assert record.status == "ok", record.failure
    assert record.api.tries == len([fault for fault in faults if fault])
    assert record.api.requests == ITEMS
    kept = [json.loads(line)["key"] for line in next((tmp_path / "answers").iterdir()).read_text().splitlines()]
    assert len(kept) == len(set(kept)) == ITEMS
    compared = ["item", "filter", "metric", "value", "prediction"]
    assert items(tmp_path, record)[compared].equals(whole.items[compared])


def test_after_a_permanent_failure_a_rerun_requests_only_the_rest(wire, whole, tmp_path):
    wire.faults, wire.always = [None, None], "500"
    broken = ask(tmp_path, cell(wire.base_url), concurrency=1, retries=2)
    assert (broken.status, broken.failure.phase, broken.scores) == ("failed", "score", [])
    assert broken.failure.reason == (
        f"{wire.base_url}/chat/completions did not answer (3 tries): HTTP 500, 'busy'; earlier answers are saved: "
        "rerun the same command to ask for the rest."
    )
    assert (broken.api.requests, broken.api.tries) == (2, 2)
    assert broken.api.dollars > 0
    assert len(wire.asked) == 2 + 3, "no other item was begun"

    wire.always = None
    resumed = ask(tmp_path, cell(wire.base_url))
    assert resumed.status == "ok"
    assert set(Counter(wire.given).values()) == {1}
    assert len(wire.given) == ITEMS
    assert resumed.api.requests == ITEMS
    assert resumed.api.cached == 0, "those before it broke are its own"
    assert resumed.api.dollars == pytest.approx(whole.record.api.dollars)
    assert [s.value for s in resumed.scores] == [s.value for s in whole.record.scores]


def test_progress_counts_answers_of_all_requests_and_stored_ones_take_no_time(wire, tmp_path):
    def told(**settings):
        """What the cell told of its answers."""
        found, events = cell(wire.base_url), []
        how = asking(tmp_path, found, concurrency=1, retries=0, **settings)
        run_request(found, "test", tmp_path / f"{found.name}.json", None, events.append, extra=encode(how))
        assert [Progress(**event).phase for event in events if "answered" in event or event["phase"] == "score"]
        return [{name: event.get(name) for name in ("answered", "of")} | {"left": event.get("seconds_left")}
                for event in events if "answered" in event]  # fmt: skip

    wire.faults, wire.always = [None, None], "500"
    (first, *_) = told()
    assert (first["answered"], first["of"]) == (1, ITEMS)
    assert first["left"] > 0
    wire.always = None
    (stored, *_, last) = told()
    assert stored == {"answered": 2, "of": ITEMS, "left": None}
    assert last == {"answered": ITEMS, "of": ITEMS, "left": 0.0}


def test_answers_under_way_when_another_is_given_up_are_kept(wire, tmp_path):
    wire.faults, wire.seconds = ["slow", "500"], 0.5
    broken = ask(tmp_path, cell(wire.base_url), concurrency=2, retries=0)
    assert broken.status == "failed"
    assert len(wire.given) == broken.api.requests == 1


def test_permanent_failures_are_not_retried(wire, tmp_path, monkeypatch):
    wire.key = KEY
    with pytest.raises(UserError, match=r"refused the request \(HTTP 401.*check the key that model\.key_env names"):
        ask(tmp_path, cell(wire.base_url), concurrency=1)
    assert len(wire.asked) == 1
    assert not list(tmp_path.glob("*.json"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(UserError, match="401"):
        ask(tmp_path, cell(wire.base_url), concurrency=1)
    assert "Authorization" not in wire.headers[-1], "the key of another endpoint was sent"


def test_the_key_comes_from_the_variable_that_is_named_and_lands_nowhere(wire, tmp_path, monkeypatch):
    monkeypatch.setenv("MINE", KEY)  # a name that says nothing of secrets
    found = cell(wire.base_url, "model.key_env=MINE")
    wire.key = "another"  # and an endpoint that tells what it was sent
    with pytest.raises(UserError, match=r"401.*not Bearer \*\*\*"):
        ask(tmp_path, found, key_env="MINE", concurrency=1)
    wire.key = KEY
    assert ask(tmp_path, found, key_env="MINE").status == "ok"
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 3
    assert not any(KEY.encode() in path.read_bytes() for path in written)


def test_no_more_requests_are_under_way_than_are_wanted(wire, tmp_path):
    wire.always, wire.seconds = "slow", 0.1
    assert ask(tmp_path, cell(wire.base_url), concurrency=2).status == "ok"
    assert wire.most == 2


def test_no_more_requests_a_minute_are_begun_than_are_wanted(wire, tmp_path):
    assert ask(tmp_path, cell(wire.base_url), per_minute=600.0).status == "ok"
    # A tenth of a second apart, but for what a thread wakes late.
    assert all(time - wire.times[0] > 0.1 * i - 0.05 for i, time in enumerate(wire.times))


def test_a_busy_endpoint_is_left_alone_as_long_as_it_asks_for(wire, tmp_path):
    wire.faults = ["429"]
    assert ask(tmp_path, cell(wire.base_url), concurrency=1).status == "ok"
    assert wire.times[1] - wire.times[0] > 0.95


# Log-probabilities


@pytest.fixture(scope="module")
def likely():
    with LogProbabilities() as site:
        yield site


COMPARED = ("eval.tasks=[facts,plain_text,wordmath_short]", "eval.limit=4", "data=wordmath_short")


@pytest.mark.long
def test_completions_measure_what_a_model_here_does(likely, tmp_path):
    """Of the same weights: log-probabilities, bits a byte and greedy texts, item by item."""
    here = run_here(tmp_path, composed(*HERE, *COMPARED))
    there = ask(tmp_path, cell(likely.base_url, *COMPARED, "model.tokenizer=embedded:tiny"))
    assert there.status == "ok", there.failure
    assert there.api.kind == "completions"
    assert there.items == here.items
    for one, other in zip(here.scores, there.scores, strict=True):
        assert (one.task, one.metric, one.filter, one.n, one.version) == (
            *(other.task, other.metric, other.filter),
            *(other.n, other.version),
        )
        assert one.value == pytest.approx(other.value, abs=1e-3)
    key = ["task", "item", "filter", "metric"]
    both = items(tmp_path, here).merge(items(tmp_path, there), on=key)
    assert len(both) == len(items(tmp_path, here))
    written = both[both["task"] == "wordmath_short"]
    assert (written["prediction_x"] == written["prediction_y"]).all()
    bits = both[both["metric"] == "bits_per_byte"]
    assert (bits["value_x"] - bits["value_y"]).abs().max() < 1e-3


def test_an_endpoint_without_log_probabilities_says_how_to_do_without(served, tmp_path):
    found = cell(served, "eval.tasks=[facts]", "eval.limit=1", "model.tokenizer=embedded:tiny")
    with pytest.raises(UserError, match=r"refused .*\(HTTP 400.*omit model\.tokenizer to ask the tasks as chat"):
        ask(tmp_path, found)


@pytest.mark.parametrize("kept", [slice(-1, None), slice(None, -1)], ids=["echo is ignored", "nothing is written"])
def test_log_probabilities_of_other_tokens_than_the_prompts_are_refused(likely, tmp_path, kept):
    """Many servers take `echo` and ignore it; lm-eval would sum up what is left, which may be nothing."""

    class Partial(Wire):
        async def answer(self, request):
            whole = json.loads((await super().answer(request)).body)
            logprobs = whole["choices"][0]["logprobs"]
            logprobs |= {name: values[kept] for name, values in logprobs.items()}
            return web.json_response(whole)

    with Partial(likely.base_url) as there:
        found = cell(there.base_url, "eval.tasks=[facts]", "eval.limit=1", "model.tokenizer=embedded:tiny")
        says = r"of each token of a prompt and of the one after it, \d+ in all, got \d+; omit model\.tokenizer to ask"
        with pytest.raises(UserError, match=says):
            ask(tmp_path, found)


@pytest.mark.long
def test_tasks_of_log_probabilities_without_a_chat_form_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"^eval\.tasks=facts requires log-probabilities, .*model\.tokenizer"):
        estimate(tmp_path, cell("http://127.0.0.1:9/v1", "eval.tasks=[wordmath,facts]"))


@pytest.mark.long
def test_ones_own_data_are_asked_as_chats_where_that_can_be(served, tmp_path):
    text = "A story of the number {} that goes on for quite a while."
    rows = [{"question": f"Tell of {i}.", "answer": text.format(i), "from": [text.format(i), "No"]} for i in range(60)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    root = str(tmp_path)
    own = ("data=local", "data.path=mine.jsonl", f"data_root={root}", "eval=local", "eval.tasks=[held_out]")
    own = (*own, f"eval.bertscore={saved_encoder(tmp_path / 'encoder')}")
    asked, here = cell(served, *own), composed(*HERE, *own, f"eval.limit={ITEMS}")
    paths = [tmp_path / "chat.json", tmp_path / "here.json"]
    extra = {"extra": encode(asking(tmp_path, asked))}
    one = run_request(asked, "test", paths[0], root, lambda event: None, **extra)
    other = run_request(here, "test", paths[1], root, lambda event: None)
    assert (one.status, one.failure) == (other.status, other.failure) == ("ok", None)
    assert {(s.task, s.n) for s in one.scores} == {("held_out (chat)", other.scores[0].n)}
    assert [s.metric for s in one.scores] == ["rougeL", "bleu", "bertscore"]
    assert one.items == other.items
    assert asked.settings.data.test_share == 0.1
    with pytest.raises(UserError, match=r"eval\.tasks=held_out requires log-probabilities, which chat endpoints"):
        estimate(tmp_path, cell(served, *own[:-1], "data.columns.options=from"), root)


def test_a_chat_model_is_told_the_labels_and_its_answers_are_counted(tmp_path, served):
    rows = [{"question": f"Is {i} even?", "answer": ("no", "yes")[i % 2]} for i in range(60)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ("data=local", "data.path=mine.jsonl", f"data_root={tmp_path}", "eval=local", "eval.tasks=[held_out]")
    asked = cell(served, *own)
    extra = {"extra": encode(asking(tmp_path, asked))}
    one = run_request(asked, "test", tmp_path / "chat.json", str(tmp_path), lambda event: None, **extra)
    assert (one.status, one.failure) == ("ok", None)
    assert [(s.task, s.metric) for s in one.scores] == [("held_out (chat)", "acc"), ("held_out (chat)", "f1_macro")]
    counts = one.classes["held_out (chat)"]
    assert counts.labels == ["no", "yes"]
    assert sum(map(sum, counts.counts)) == one.scores[0].n


@pytest.mark.long
@needs_data
def test_the_chat_form_of_mmlu_has_the_same_items():
    settings = composed("eval.tasks=[mmlu]", "eval.limit=20").settings.eval
    compared, written = scoring.Tasks(settings, str(DATA)), chat_tasks.ChatTasks(settings, str(DATA))
    assert list(written.by_name) == ["mmlu_generative (chat)"]
    assert written.sample == {f"{leaf}_generative": chosen for leaf, chosen in compared.sample.items()}
    for leaf, chosen in compared.sample.items():
        for item in chosen:
            other = written.leaves[f"{leaf}_generative"]
            assert compared.leaves[leaf].eval_docs[item]["question"] == other.eval_docs[item]["question"]
    assert {task.OUTPUT_TYPE for task in written.leaves.values()} == {"generate_until"}


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        (" b. no", "[invalid]"),
        ("C. Mitochondria", "C"),
        ("(D) both of them", "D"),
        ("**A**", "A"),
        ("The correct answer is C. Syntax.", "C"),
        ("Answer: **B**", "B"),
        ("The answer is option D", "D"),
        ("A plant is what makes its own food.", "[invalid]"),
        ("E. none of them", "[invalid]"),
        ("Bessie could only detect it", "[invalid]"),
    ],
)
def test_a_letter_is_read_from_a_reply_that_says_more(reply, letter):
    found = re.findall(chat_tasks.LETTER.format("ABCD"), reply)
    assert next(("".join(groups) for groups in found), "[invalid]") == letter


@pytest.mark.long
@needs_data
def test_a_chat_that_says_more_than_the_letter_is_scored_by_the_letter_too(tmp_path):
    """lm-eval's own filter wants the letter alone, and has such answers all wrong."""
    right = "The correct answer is C. That is all there is to it."
    with scripted.server(lambda prompt, number: right) as server:
        cell_ = cell(server.url, "eval.tasks=[mmlu]", "eval.limit=12")
        record = run_request(
            cell_, "test", tmp_path / "x.json", str(DATA), lambda event: None, extra=encode(asking(tmp_path, cell_))
        )
    found = {score.filter: score.value for score in record.scores}
    rows = pd.read_parquet(tmp_path / "x.items.parquet")
    share = (rows[rows["filter"] == "letter"]["target"] == "C").mean()
    assert 0 < share < 1
    assert found == {"get_response": 0.0, "letter": share}


# Models that think before they answer


def of_scripted(folder, script, *overrides):
    """The record and the requests of a cell whose model answers as `script` says."""
    with scripted.server(script) as there:
        return ask(folder, cell(there.url, *overrides), concurrency=1), there.asked


def test_refused_parameters_are_left_out_and_recorded(tmp_path):
    asked = []

    def script(prompt, number):
        return scripted.refusal(asked[number]) or "It is 7.\n#### 7\nQuestion: and more?"

    with scripted.server(script) as there:
        asked = there.asked
        record = ask(tmp_path, cell(there.url), concurrency=1)
    assert (record.status, record.api.tries, record.api.left_out) == ("ok", 0, ["stop", "temperature"])
    refused, taken = asked[:-ITEMS], asked[-ITEMS:]
    assert len(refused) == 3, "each is told once, and then left out"
    assert all(body["max_completion_tokens"] == 40 for body in taken)
    assert all(not body.keys() & scripted.REFUSED.keys() for body in taken)
    kept = AnswerStore(tmp_path / "answers" / f"{record.cell.name}.jsonl").own.values()
    assert {answer.answer for answer in kept} == {"It is 7.\n#### 7\n"}, "what would have ended it still does"


def refusing(*numbers: int):
    """A script that refuses the requests of these numbers for their content, and answers all others alike."""
    return lambda prompt, number: {"text": 400, "error": "filtered"} if number in numbers else "#### 7"


def test_a_request_whose_content_is_refused_is_an_empty_answer(tmp_path):
    warnings = []
    with scripted.server(refusing(1, 3)) as there:
        found = cell(there.url)
        how = asking(tmp_path, found, concurrency=1)
        path = tmp_path / f"{found.name}.json"
        record = run_request(found, "test", path, None, warnings.append, extra=encode(how))
    assert (record.status, record.api.requests, record.api.refused) == ("ok", ITEMS - 2, 2)
    assert {score.n for score in record.scores} == {ITEMS}
    kept = items(tmp_path, record).query("filter == 'flexible-extract'")
    assert sorted(kept["prediction"]).count("['[invalid]']") == 2
    (said,) = [event["warning"] for event in warnings if "warning" in event]
    assert said == (
        f"{there.url}/chat/completions refuses a request (HTTP 400, "
        """'{"error": {"message": "filtered"}}'); its answer counts as empty."""
    )


def test_an_answer_that_a_filter_held_back_is_empty_and_counted(tmp_path):
    """Azure sends it with HTTP 200, as far as it was written."""

    def script(prompt, number):
        return {"text": "#### 1", "finish": "content_filter"} if number == 1 else "#### 7"

    record = of_scripted(tmp_path, script)[0]
    assert (record.status, record.api.requests, record.api.refused) == ("ok", ITEMS - 1, 1)
    kept = items(tmp_path, record).query("filter == 'flexible-extract'")
    assert sorted(kept["prediction"]).count("['[invalid]']") == 1
    with pytest.raises(UserError, match=r"refused the request \(finish_reason content_filter, '\{"):
        of_scripted(tmp_path / "all", lambda prompt, number: {"text": "", "finish": "content_filter"})


def test_refused_requests_are_asked_again_with_the_cell(tmp_path):
    asked = []
    with scripted.server(lambda prompt, number: refusing(*([1, 3] if number < ITEMS else []))(prompt, number)) as there:
        asked = there.asked
        assert ask(tmp_path, cell(there.url), concurrency=1).api.refused == 2
        again = ask(tmp_path, cell(there.url), concurrency=1)
    assert (again.api.requests, again.api.refused, len(asked)) == (ITEMS, 0, ITEMS + 2)


@pytest.mark.parametrize(("items", "requests"), [(6, 6), (12, 10)])
def test_an_endpoint_that_refuses_all_stops_the_cell(tmp_path, items, requests):
    with scripted.server(refusing(*range(99))) as there:
        with pytest.raises(UserError, match=r"refused the request \(HTTP 400.*filtered.*check the settings, and the"):
            ask(tmp_path, cell(there.url, f"eval.limit={items}"), concurrency=1)
        assert len(there.asked) == requests


def test_a_filter_s_403_is_of_the_content_and_another_one_of_the_key(tmp_path):
    flagged = {"text": 403, "error": "Your chosen model requires moderation and your input was flagged"}
    with scripted.server(lambda prompt, number: flagged if number == 2 else "#### 7") as there:
        assert ask(tmp_path / "one", cell(there.url), concurrency=1).api.refused == 1
    with scripted.server(lambda *_: {"text": 403, "error": "no access"}) as there:
        with pytest.raises(UserError, match=r"HTTP 403.*check the key that model\.key_env names"):
            ask(tmp_path / "other", cell(there.url), concurrency=1)
        assert len(there.asked) == 1


def test_a_model_has_room_to_think_and_is_scored_by_what_it_says_then(tmp_path):
    said = "<think>\nQuestion: 5?\n\nNo.</think>\n\n#### 7\n\nQuestion: and more?"
    record, asked = of_scripted(tmp_path, lambda prompt, number: said, "model.thinking=1000")
    assert record.status == "ok"
    assert {(body["max_tokens"], "stop" in body) for body in asked} == {(1040, False)}
    kept = AnswerStore(tmp_path / "answers" / f"{record.cell.name}.jsonl").own.values()
    assert {answer.answer for answer in kept} == {"#### 7\n\n"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("<think>\nIt may be 12, or", ""),  # cut off: the last number is none that it answered
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "12?"}]}, {"type": "text", "text": "7"}], "7"),
        (None, ""),
        ("7 < 12", "7 < 12"),
    ],
)
def test_thoughts_are_no_answer(content, said):
    assert endpoint.spoken(content) == said


@pytest.mark.parametrize(
    ("reply", "name"),
    [
        ("`temperature` is deprecated for this model.", "temperature"),  # Anthropic
        ("Argument not supported on this model: stop", "stop"),  # xAI
        ("Model grok-4.6 does not support parameter stop.", "stop"),
        (
            '{"detail": [{"type":"extra_forbidden","loc":["body","seed"],"msg":"Extra inputs are not permitted"}]}',
            "seed",
        ),
        (r"Invalid JSON payload received. Unknown name \"seed\": Cannot find field.", "seed"),  # Gemini
        ("Unrecognized request argument supplied: seed", "seed"),
        ("max_tokens is too large: 9000. This model supports at most 4096.", None),
        ("Unsupported parameter: 'messages'", None),
    ],
)
@pytest.mark.parametrize("status", [400, 422])
def test_parameters_are_refused_in_many_words(reply, name, status):
    asked = {"max_tokens": 10, "temperature": 0, "stop": ["."], "seed": 1}
    refused = set()

    def script(prompt, number):
        return {"text": status, "error": reply} if name is None or name in there.asked[number] else "7"

    async def ask(address) -> None:
        peer = endpoint.Endpoint(f"{address}/chat/completions", None, 10.0, 0, 0.0)
        messages = [{"role": "user", "content": "?"}]
        await peer.ask_all({0: asked | {"messages": messages, "model": "m"}}, 1, lambda key, text: text, keep)

    def keep(key, answer) -> None:
        refused.update(asked.keys() - answer.asked.keys())

    with scripted.server(script) as there:
        if name is None:
            with pytest.raises(endpoint.Unsuccessful):
                asyncio.run(ask(there.url))
        else:
            asyncio.run(ask(there.url))
    assert refused == ({name} if name else set())


def test_room_to_think_is_part_of_a_cell_and_of_its_estimate(tmp_path):
    plain, roomy = cell("http://h/v1"), cell("http://h/v1", "model.thinking=1000")
    assert plain.id == cell("http://h/v1", "model.thinking=0").id != roomy.id
    guessed = estimate(tmp_path, roomy)
    assert guessed["written"] == 1040 * ITEMS


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 716, "completion_tokens": 126, "total_tokens": 1009}, (716, 293)),  # xAI, Gemini
        ({"prompt_tokens": 716, "completion_tokens": 293, "total_tokens": 1009}, (716, 293)),
        ({"prompt_tokens": 716, "completion_tokens": 293}, (716, 293)),
        ({"prompt_tokens": "716", "completion_tokens": 293, "total_tokens": 1009}, (None, 293)),
        (None, (None, None)),
    ],
)
def test_thoughts_count_as_written(usage, counts):
    assert endpoint.token_counts({"usage": usage}) == counts


def test_answers_that_were_cut_off_are_counted(tmp_path):
    def script(prompt, number):
        return {"text": "It is", "finish": "length" if number < 2 else "stop"}

    assert of_scripted(tmp_path, script)[0].api.cut == 2


# The command line


@pytest.mark.slow
def test_a_sweep_above_its_budget_is_refused_before_any_request(inside, tmp_path, wire):
    grid = ["sweep", "base_models", *TASK, "eval.limit=2", "model.price.read=1", "model.price.written=1e6"]
    other = f"method=api model.base_url={wire.base_url} model.name={NAME},{NAME}"
    grid += [f"hydra.sweeper.candidates=['{other}']"]
    refused = inside(*grid, "--budget", "79USD")
    assert refused.returncode == 2
    assert "2 requests, about 8" in refused.stderr
    assert refused.stderr.strip().splitlines()[-1] == (
        "error: Nothing was requested: the cost may reach $80.00, above the budget of 79USD; raise it, or evaluate "
        "fewer items with eval.limit=."
    )
    assert wire.asked == []
    assert list(tmp_path.iterdir()) == []


# What it would cost


def test_an_estimate_counts_what_would_be_asked_and_asks_nothing(wire, whole, tmp_path):
    found = cell(wire.base_url)
    guessed = estimate(tmp_path, found)
    assert wire.asked == []
    assert (guessed["requests"], guessed["counted"]) == (ITEMS, False)
    assert 0.5 < guessed["read"] / whole.record.api.read < 3  # the tiny tokenizer's pieces are short
    assert guessed["written"] == 40 * ITEMS >= whole.record.api.written
    wire.faults, wire.always = [None], "500"
    ask(tmp_path, found, concurrency=1, retries=0)
    assert estimate(tmp_path, found)["requests"] == ITEMS - 1


def test_a_tokenizer_counts_what_would_be_read(likely, tmp_path):
    found = cell(likely.base_url, *COMPARED, "model.tokenizer=embedded:tiny")
    counted = estimate(tmp_path, found)
    record = ask(tmp_path, found)
    assert counted["counted"]
    assert (counted["requests"], counted["read"]) == (record.api.requests, record.api.read)
    assert counted["written"] >= record.api.written


def test_a_larger_sample_asks_only_for_what_another_cell_has_not(wire, whole, tmp_path):
    small = ask(tmp_path, cell(wire.base_url, "eval.limit=2"))
    large = ask(tmp_path, cell(wire.base_url))
    assert (small.api.cached, large.api.requests) == (0, ITEMS)
    assert len(wire.given) == len(set(wire.given)) == small.api.requests + large.api.requests - large.api.cached
    assert large.api.read == whole.record.api.read
    assert large.api.dollars <= whole.record.api.dollars


# Details


def test_a_cell_that_is_removed_takes_its_answers_along(tmp_path):
    study, found = Study(tmp_path, "s"), cell("http://127.0.0.1:9/v1")
    AnswerStore(study.answers(found)).add(StoredAnswer("a", "text", 1, 2, 0.5))
    study.plan([found])
    study.remove(found.name)
    assert not study.answers(found).exists()


def test_sampled_answers_are_requested_once_per_sample(wire, tmp_path):
    lm = lm_eval_model.engine(ModelSettings(base_url=wire.base_url, name=NAME), asking(tmp_path, cell(wire.base_url)))
    message = lm.apply_chat_template([{"role": "user", "content": "2 + 2 ="}])

    def ask(**settings):
        found = asyncio.run(lm.get_batched_requests([message] * 3, None, gen_kwargs={"max_gen_toks": 2} | settings))
        return [answer for (answer,) in found]

    assert len(set(ask())) == 1
    assert len(wire.asked) == 1
    ask(do_sample=True, temperature=1.0)
    assert len(wire.asked) == 4
    ask(do_sample=True, temperature=1.0)
    assert len(wire.asked) == 4


def test_answers_outlive_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "one.jsonl"
    AnswerStore(path).add(StoredAnswer("a", "text", 1, 2, 0.5))
    with open(path, "a") as file:
        file.write('{"key": "b", "ans')
    again = AnswerStore(path)
    again.add(StoredAnswer("c", [-1.5, True], None, None, 0.5))
    found = AnswerStore(path)
    assert found.own.keys() == {"a", "c"}
    assert AnswerStore(tmp_path / "two.jsonl").get("c") == StoredAnswer("c", [-1.5, True], None, None, 0.5)


@pytest.mark.parametrize(
    ("wait", "seconds"), [(None, 0), ("2", 2), ("0.5", 0.5), ("-3", 0), ("soon", 0), ("1e9", 600), ("nan", 0)]
)
def test_how_long_an_endpoint_asks_to_be_left_alone(wait, seconds):
    assert endpoint._seconds(wait) == seconds


def test_an_endpoint_may_name_a_time():
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert 27 < endpoint._seconds(date) <= 30


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "$0.00"), (12.5, "$12.50"), (1234, "$1,234.00"), (0.0042, "$0.0042"), (3.1e-6, "$0.0000031")],
)
def test_money_as_text(value, text):
    assert units.dollars(value) == text


@pytest.mark.parametrize(
    ("text", "value"), [("5USD", 5.0), ("$0.5", 0.5), ("0.25 usd", 0.25), ("24GB", 24 * 10**9), ("1GiB", 2**30)]
)
def test_a_budget_is_of_money_or_of_bytes(text, value):
    found = units.parse_budget(text)
    assert found == value
    assert isinstance(found, units.Dollars) == ("B" not in text)


def test_without_the_extra_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(requests, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=r"requires the extra `api` .*pip install -e '\.\[api\]'"):
        estimate(tmp_path, cell("http://127.0.0.1:9/v1"))


# Settings


def test_how_it_is_asked_is_no_part_of_a_cell(monkeypatch):
    monkeypatch.setenv("MINE", KEY)
    plain = cell("https://host/v1")
    asked = ("model.key_env=MINE", "model.price.read=3", "model.price.written=3", "api.concurrency=1", "api.timeout=3")
    unused = ("rank=8", "seed=3", "train.max_steps=3", "infer.repeats=1", "speedups=off", "eval.batch_size=3")
    assert cell("https://host/v1/", *asked) == plain
    assert cell("https://host/v1", *unused, "model=tiny", f"model.name={NAME}") == plain
    for other in ("model.name=else", "model.base_url=https://else/v1", "model.tokenizer=else", "eval.limit=3"):
        assert cell("https://host/v1", other).id != plain.id


def test_models_that_are_here_keep_their_cells():
    then = "eval.batch_size=16"  # the default until it became auto
    assert composed("method=base", then).id == "77d330acfd8e161fd21dd59e695de82a185ba9d22f3dfc7474e6b0418c2ddea2"
    lora = composed("method=lora", "model=tiny", "api.concurrency=3", then)
    assert lora.id == "f35ab81b48c50bb33eda6da0c2b0226d6a0cc30764c1e9e98a7afb3f263cf800"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("method=api", r"needs model\.base_url="),
        ("method=api model.base_url=http://h/v1", r"needs model\.name="),
        ("method=lora model.base_url=http://h/v1 model.name=a", "method=lora needs weights"),
        ("method=base model.tokenizer=a", r"model\.tokenizer is for models behind an API"),
        ("method=base model.thinking=9", r"model\.thinking is for models behind an API"),
        ("method=base model.key_env=A", r"model\.key_env is for models behind an API"),
        ("method=api model.base_url=h/v1 model.name=a", r"model\.base_url must be like https://host/v1"),
        ("method=api model.base_url=http://h:80a/v1 model.name=a", r"model\.base_url must be like https://host/v1"),
        ("method=api model.base_url='http://h/v1?key=abcdefgh' model.name=a", r"neither a key nor a query"),
        ("method=api model.base_url=http://h/v1 model.name=a model.key_env=abcdefghijkl", r"the key itself is never"),
        ("method=api model.base_url=http://h/v1 model.name=a model.key_env=NOT_SET", "NOT_SET is not set"),
        ("method=api model.base_url=http://h/v1 model.name=a model.thinking=-1", r"model\.thinking must be .*, got -1"),
        ("method=api model.base_url=http://h/v1 model.name=a model.thinking=9 model.tokenizer=b", "that chat"),
        (
            "method=api model.base_url=http://h/v1 model.name=a model.price.read=-1",
            r"model\.price\.read must be .*, got -1",
        ),
        ("method=api model.base_url=http://h/v1 model.name=a api.timeout=0", r"api\.timeout must be positive, got 0"),
        (
            "method=api model.base_url=http://h/v1 model.name=a api.concurrency=0",
            r"api\.concurrency must be 1 or more, got 0",
        ),
        ("method=api model.base_url=http://h/v1 model.name=a eval.tasks=[]", "has nothing to do"),
        *(
            (f"method=api model.base_url=http://h/v1 model.name=a eval.engine={name}", "for weights that are here")
            for name in SETTINGS["eval.engine"].rule.choices
            if name != "auto"
        ),
    ],
)
def test_impossible_settings_of_an_api_model_are_refused(overrides, says):
    with pytest.raises(UserError, match=says) as refused:
        composed(*overrides.split())
    assert "abcdefgh" not in str(refused.value)
    assert "\n" not in str(refused.value)
