"""Settings of scoring, by the model here and behind an API, run by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripted import server
from serving import NAME, LogProbabilities, chatty
from tested_settings import CELL, lines, refused


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The tiny model with a chat template."""
    return chatty(tmp_path_factory.mktemp("chatty") / NAME)


@lines(
    f"run {CELL} method=base study=chat model.path={{model}} eval.tasks=[parity,facts] eval.include_path={{tasks}} "
    "eval.limit=3 eval.num_fewshot=2 eval.batch_size=3 eval.seed=4 eval.chat_template=true "
    "eval.fewshot_as_multiturn=true eval.system_instruction=Briefly.",
    f"run {CELL} method=base study=unsafe eval.unsafe_code=true",
    f"run {CELL} method=base study=plain eval.vllm_python={{folder}}/python",  # which no engine needs
    refused(f"run {CELL} eval.engine=other", r"eval\.engine=other is unknown"),
    "score chat --tasks facts --limit 2 --num-fewshot 1 --batch-size 2 --replace --chat-template "
    "--fewshot-as-multiturn --system-instruction Kindly. --unsafe-code --include-path {tasks} --data-root {tasks} "
    "--vllm-python {folder}/python",
    "score plain --study plain --tasks wordmath_short --limit 2 --results-dir results --format json",
    "score plain --study plain --tasks wordmath_short --limit 3 --replace --format text",
)
@pytest.mark.long
def test_questions_are_asked_as_settings_say(run, only, tasks, model):
    *_, as_json, _ = run(tasks=tasks, model=model)
    chat = only("chat").cell.settings.eval
    assert (chat.num_fewshot, chat.batch_size, chat.seed) == (2, 3, 4)
    assert chat.chat_template
    assert chat.fewshot_as_multiturn
    assert only("unsafe").cell.settings.eval.unsafe_code
    assert chat.system_instruction == "Briefly."
    by_task = {score.task: score for score in only("chat").scores}
    assert by_task["parity"].n == 3
    assert (by_task["facts"].n, by_task["facts"].num_fewshot) == (2, 1)  # scored again
    assert only("plain").cell.settings.eval.engine == "auto"
    assert json.loads(as_json.stdout)[0]["tasks"]


ASKED = f"method=api model.name={NAME} data=wordmath_short eval=wordmath_short eval.limit=2"


@lines(
    f"run {ASKED} study=asked model.base_url={{url}} model.key_env=KEY_OF_TESTS model.thinking=4 model.price.read=1 "
    "model.price.written=2 api.concurrency=1 api.per_minute=600 api.timeout=50 api.retries=1 api.backoff=0.1 "
    "--budget 5USD",
    f"run {ASKED} study=likely model.base_url={{likely}} model.tokenizer={{folder}}/tok eval.tasks=[facts]",
)
def test_a_model_behind_an_api_is_asked_as_settings_say(run, only, tmp_path, monkeypatch):
    monkeypatch.setenv("KEY_OF_TESTS", "key-of-the-tests")
    chatty(tmp_path / "tok")
    with server(lambda prompt, number: "#### 5" if number else 503) as there, LogProbabilities() as likely:
        run(url=there.url, likely=likely.base_url)
    assert len(there.asked) == 3  # one of two answers at the second attempt
    assert set(there.keys) == {"Bearer key-of-the-tests"}
    assert {body.get("max_tokens", body.get("max_completion_tokens")) for body in there.asked} == {40 + 4}
    asked = only("asked")
    assert (asked.api.concurrency, asked.api.tries, asked.api.requests) == (1, 1, 2)
    assert asked.api.dollars == pytest.approx((20 * 1 + 10 * 2) / 1e6)
    assert {score.n for score in only("likely").scores} == {2}
