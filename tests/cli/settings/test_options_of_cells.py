"""Options of the commands that run, load, keep and remove cells, on a study that is made here."""

from __future__ import annotations

import json

import pytest
from scripted import problem, server
from tested_settings import CELL, Line, lines

PLACES = "--data-root {folder} --vllm-python {folder}/python --include-path {tasks}"


@lines(
    Line(f"run {CELL} study=broken eval.tasks=[] timeout=0.05", 1),
    Line(f"run {CELL} study=broken eval.tasks=[] timeout=0.05 seed=1", 1),
    Line(f"retry --failed --study broken --results-dir results timeout=0.05 {PLACES} --format text", 1, "failed"),
    Line("retry --failed --study broken timeout=300 --format json", said='"status": "ok"'),
    f"run {CELL} study=kept save=adapter",
    Line("logs lora --study kept --results-dir results --format text"),
    Line("logs lora --study kept --format json", said='"log":'),
    Line("logs lora --study kept --follow"),
    Line(f"reproduce kept --cells 1 --seed 1 --results-dir results {PLACES} --format text --wide", said="agree"),
    Line("reproduce kept --cells 1 --format md --out again.md"),
    Line("reproduce kept --cells 1 --format csv", said=","),
    Line("reproduce kept --cells 1 --format html", said="<table"),
    Line("reproduce kept --cells 1 --format latex", said="tabular"),
    "rm lora --study kept --results-dir results --yes --format text",
    Line("rm broken/lora-r4-a8-lr2e-4-s1 --study broken --yes --format json", said='"removed"'),
)
@pytest.mark.long
def test_cells_are_repeated_and_removed(run, tasks, tmp_path):
    run(tasks=tasks)
    assert (tmp_path / "again.md").read_text().startswith("**")
    assert not list((tmp_path / "results" / "kept").glob("lora*"))
    assert len(list((tmp_path / "results" / "broken").glob("lora*.json"))) == 1


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
    with server(lambda prompt, number: '{"better": "A"}' if "<answer A>" in prompt else problem(number)) as there:
        run(url=there.url)
    assert {body["model"] for body in there.asked} == {"one", "two", "wise", "writer"}
    assert "Who is it?" in (tmp_path / "answers.html").read_text()
    assert len((tmp_path / "made.jsonl").read_text().splitlines()) == 3
