"""Settings of models behind an API, and options of the commands that ask models, run by the command line."""

from __future__ import annotations

import json

import pytest
from scripted import problem, server
from serving import NAME, LogProbabilities, chatty
from tested_settings import Line, lines

ASKED = f"method=api model.name={NAME} data=wordmath_short eval=wordmath_short eval.limit=2"


@pytest.mark.long
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


ASK = "--study told --results-dir results"


@lines(
    "sweep model=tiny rank=4 train.max_steps=1 train.batch_size=2 train.validation_items=2 infer.repeats=0 "
    "eval.tasks=[held_out] eval.limit=3 data=local data_root={folder} data.path=mine.jsonl data.answers=text "
    "method=base,lora study=told save=adapter",
    Line(
        f"ask --prompts prompts.txt {ASK} --cells lora --as-typed --api one,two --base-url {{url}} --judge wise "
        "--judge-url {url} --tokens 4 --concurrency 2 --timeout 20 --out answers.html --format text",
        said="one",
    ),
    Line('ask "What is it?" --study told --tokens 3 --format json', said='"prompts"'),
    Line(
        "judge told --study told --results-dir results --judge wise --base-url {url} --task held_out --against base "
        "--concurrency 1 --timeout 30 --format text",
        said="told/lora",
    ),
    Line("judge told --judge wise --base-url {url} --replace --against base --format json", said='"wins"'),
    Line(
        "synthesize --source {folder}/mine.jsonl --n 3 --base-url {url} --model writer --kinds new --eval none "
        "--most 9 --out made.jsonl --concurrency 1 --timeout 30 --seed 4 --data-root {folder} --format text",
        said="made.jsonl: 3 problems",
    ),
    Line(
        "synthesize --source wordmath_short --n 2 --base-url {url} --model writer --kinds new --eval none "
        "--out more.jsonl --format json",
        said='"kept": 2',
    ),
)
@pytest.mark.long
def test_models_are_asked_judged_and_write_problems(run, tmp_path):
    rows = [{"question": f"What is {i} and {i}?", "answer": f"{i} + {i} = {2 * i}\n#### {2 * i}"} for i in range(90)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "prompts.txt").write_text("Who is it?\nWhere?\n")
    with server(lambda prompt, number: '{"better": "A"}' if "<answer A " in prompt else problem(number)) as there:
        run(url=there.url)
    assert {body["model"] for body in there.asked} == {"one", "two", "wise", "writer"}
    assert "Who is it?" in (tmp_path / "answers.html").read_text()
    assert len((tmp_path / "made.jsonl").read_text().splitlines()) == 3
