"""Problems of reasoning-gym: parts without a common question, the package's verifiers, and a cell from both."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations

import pandas as pd
import pytest
from job_helpers import composed, no_peak, run_request  # noqa: F401

from harness.errors import UserError
from harness.job import preflight, prepared_inputs
from harness.job.data import cached, sources
from harness.job.data.generators import reasoning_gym

pytest.importorskip("reasoning_gym", reason="the extra `gym` is not installed")
SIZES = {"train": 60, "validation": 20, "test": 40}
GYM = (
    *("model=tiny", "data=reasoning_gym", *(f"data.load.{part}={size}" for part, size in SIZES.items())),
    *("rank=4", "train.precision=fp32", "train.max_steps=2", "train.batch_size=2", "train.validation_items=2"),
    *("infer.repeats=0", "eval.limit=4", "eval.batch_size=4"),
)
RUN_ANSWERS = {
    *("binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication", "puzzle24"),
    *("simple_integration", "spiral_matrix", "string_insertion"),
}


def parts(task: str, seed: int = 0, **options) -> dict[str, list[dict[str, str]]]:
    return reasoning_gym.load(task, options, seed, **SIZES)


def verifier(task: str, **options) -> reasoning_gym.Verifier:
    return reasoning_gym.Verifier(task, options, 0, **SIZES)


# The parts


@pytest.mark.parametrize(("task", "options"), [("gsm_symbolic", {}), ("chain_sum", {"max_terms": 2, "max_digits": 1})])
def test_no_question_is_twice_in_a_part_or_in_two(task, options):
    """Sums of two digits are 200 problems, so that parts which are merely drawn apart would share some."""
    found = parts(task, **options)
    assert {part: len(items) for part, items in found.items()} == SIZES
    questions = {part: {item["question"] for item in items} for part, items in found.items()}
    assert {part: len(of) for part, of in questions.items()} == SIZES
    assert not any(one & other for one, other in combinations(questions.values(), 2))


def test_another_seed_has_another_test_and_more_training_keeps_it():
    first = reasoning_gym.load("gsm_symbolic", {}, 0, **SIZES)
    assert reasoning_gym.load("gsm_symbolic", {}, 0, **SIZES | {"train": 90})["test"] == first["test"]
    seen = {item["question"] for items in first.values() for item in items}
    assert not seen & {item["question"] for item in reasoning_gym.load("gsm_symbolic", {}, 1, **SIZES)["test"]}


@pytest.mark.long
def test_another_process_draws_the_same():
    """`list_functions` draws from Python's own random numbers too."""
    program = (
        "import json\nfrom harness.job.data.generators import reasoning_gym\n"
        f"drawn = [reasoning_gym.load(task, {{}}, 0, **{SIZES}) for task in ('gsm_symbolic', 'list_functions')]\n"
        "print(json.dumps(drawn))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(said.stdout) == [parts("gsm_symbolic"), parts("list_functions")]


def test_a_worked_solution_is_learned_where_there_is_one():
    assert all("\n#### " in item["answer"] for item in parts("gsm_symbolic")["train"])
    assert all(item["answer"].lstrip("-").isdigit() for item in parts("chain_sum", max_terms=3)["train"])


# The verifiers


def test_the_package_says_what_an_answer_is_worth():
    found = verifier("word_sorting", transformation="lowercase")
    item = parts("word_sorting", transformation="lowercase")["test"][0]
    assert item["question"] == item["question"].lower().replace("ascii/unicode", "ASCII/Unicode").replace(
        "your task is", "Your task is"
    ).replace("your output", "Your output").replace("now,", "Now,")
    right = found.score(item["question"], item["answer"])
    part = found.score(item["question"], item["answer"].rpartition(", ")[0])
    assert right == 1.0
    assert 0 < part < 1
    assert found.score(item["question"], "no such words") == 0.0


def test_a_verifier_that_fails_on_an_answer_takes_it_for_wrong(monkeypatch):
    found = verifier("chain_sum")
    question = parts("chain_sum")["test"][0]["question"]
    monkeypatch.setattr(type(found._dataset), "score_answer", lambda self, answer, entry: int(answer))
    assert found.score(question, "1") == 1.0
    assert found.score(question, "one") == 0.0


@pytest.mark.long
def test_verifiers_that_evaluate_answers_ask_for_leave():
    from reasoning_gym.factory import DATASETS

    assert {task for task, (kind, _) in DATASETS.items() if reasoning_gym.evaluates(kind)} == RUN_ANSWERS
    asked = (*GYM, "data.task=n_queens", "+data.options={n: 5, min_remove: 3, max_remove: 4}")
    with pytest.raises(UserError, match=r"held_out requires eval\.unsafe_code=true"):
        preflight.check([composed(*asked)], None)


# The cell


@pytest.mark.long
def test_a_cell_is_trained_on_its_problems_and_scored_by_the_verifier(tmp_path):
    cell = composed(*GYM)
    assert (cell.data, cell.settings.eval.tasks) == ("gsm_symbolic", ["held_out"])
    done = run_request(cell, "gym", tmp_path / "cell.json", None, lambda event: None)
    assert done.status == "ok", done.failure
    assert [(s.metric, s.filter, s.n) for s in done.scores] == [
        ("solved", "flexible-extract", 4),
        ("solved", "strict-match", 4),
    ]
    assert done.contamination["held_out"].items == 4
    rows = pd.read_parquet(tmp_path / "cell.items.parquet")
    questions = [item["question"] for item in parts("gsm_symbolic")["test"]]
    for row in rows.itertuples():
        question = questions[row.item]
        assert row.question == f"Question: {question}\nAnswer:"
        assert row.cluster == verifier("gsm_symbolic").template(question)
    assert prepared_inputs.same_items(done, None)


def test_right_answers_are_solved_in_both_forms():
    settings = composed(*GYM, "eval.num_fewshot=1").settings
    task = prepared_inputs.tasks(settings.eval, settings.data, None).leaves["held_out"]
    first = cached.splits(settings.data, None)["train"][0]
    assert task.fewshot_context(task.eval_docs[0], 1).startswith(
        f"Question: {first['question']}\nAnswer: {first['answer']}\n\nQuestion: "
    )
    for doc in task.eval_docs:
        result = doc["answer"].rpartition("#### ")[2]
        written = {doc["answer"]: 1.0, f"So it is {result}.": 1.0, "None.": 0.0, f"{result}1": 0.0}
        for answer, solved in written.items():
            number = task._filters[0].filters[0]().apply([[answer]], [doc])[0][0]
            assert task.process_results(doc, [number]) == {"solved": solved}, answer
        assert task.process_results(doc, [doc["answer"]]) == {"solved": 1.0}


# What can't be


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["data.task=gsm_symbolik"],
            r"data\.task=gsm_symbolik is unknown to reasoning-gym\. Did you mean gsm_symbolic",
        ),
        (["+data.options.terms=2"], r"data\.options\.terms is no option of data\.task=gsm_symbolic, which has: diff"),
        (["+data.options.seed=2"], r"data\.options\.seed is no option of data\.task=gsm_symbolic"),
        (["+data.options.difficulty=3"], r"data\.options don't fit data\.task=gsm_symbolic"),
        (
            ["data.task=chain_sum", "+data.options={min_terms: 3, max_terms: 2}"],
            r"data\.options don't fit data\.task=chain_sum: max_terms must be >= min_terms\.",
        ),
        (["data.task=ransom_note"], r"data\.task=ransom_note requires PYTHONHASHSEED=0 in the environment"),
        (["data.load.test=0"], r"data\.load\.test must be 1 or more, got 0"),
        (
            ["data.task=chain_sum", "+data.options={min_terms: 1, max_terms: 1, max_digits: 1}"],
            r"data\.load\.test must be at most 10, the different problems that data\.task=chain_sum has left of 1000",
        ),
        (["data.task=graph_color"], r"data\.task=graph_color has problems without an answer"),
        (["data.answers=exact"], r"data\.answers=exact can't be combined with data\.task=gsm_symbolic"),
    ],
)
def test_what_can_not_be_is_said_in_one_sentence(overrides, said):
    with pytest.raises(UserError, match=said):
        preflight.check([composed(*GYM, *overrides)], None)


@pytest.mark.parametrize("given", ["data.task=chain_sum", "+data.options.max_terms=3"])
def test_other_data_have_no_task(given):
    with pytest.raises(UserError, match=r"data\.(task|options) requires data=reasoning_gym, got data=facts"):
        composed("model=tiny", "data=facts", given)


def test_without_the_package_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r"data=reasoning_gym requires the extra `gym`: pip install -e '\.\[gym\]'"):
        sources.splits(composed(*GYM, "data.load.seed=7").settings.data, None)
