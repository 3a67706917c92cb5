"""Scores: which items are asked, what lm-eval makes of the same, and stock tasks through a local folder."""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import weakref
from pathlib import Path

import datasets
import lm_eval
import pandas as pd
import pytest
import torch
from huggingface_hub import constants
from job_helpers import DATA, moved, needs_data, prepared, tiny
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from harness.errors import UserError
from harness.job import preflight
from harness.job.evaluate import linear_weights, scoring, task_index
from harness.job.evaluate.scoring import Tasks, stratified
from harness.job.models import hub
from harness.report.statistics.accuracies import over_items
from harness.settings import EvalSettings


def settings(
    *tasks: str, limit: int | None = None, num_fewshot: int | None = None, seed: int = 0, **more
) -> EvalSettings:
    return EvalSettings(list(tasks), limit, num_fewshot, batch_size=8, seed=seed, **more)


@pytest.fixture(scope="module")
def bench():
    return prepared(tiny("method=base"))


@pytest.fixture(scope="module")
def scored(bench):
    """Both generated tasks, scored on some items: the tasks, the scores, the items."""
    tasks = Tasks(settings("facts", "wordmath", limit=40), None)
    return tasks, *scoring.score(bench.net, bench.tokenizer, tasks, 8, None)[:2]


@pytest.fixture
def offline(monkeypatch):
    """The hub is out of reach, at once."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_looked", None)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


# The sample

SIZES = {"a": 500, "b": 300, "c": 150, "d": 49, "e": 1}


@pytest.mark.parametrize("limit", [1, 7, 57, 100, 999])
def test_a_sample_has_its_size_and_is_proportional(limit):
    sample = stratified(SIZES, limit, seed=0)
    assert sum(map(len, sample.values())) == limit
    for name, size in SIZES.items():
        items = sample.get(name, [])
        assert abs(len(items) - limit * size / 1000) < 1
        assert items == sorted(set(items))
        assert all(0 <= i < size for i in items)
    assert all(sample.values())  # a stratum without items is left out


@pytest.mark.parametrize("limit", [None, 1000, 5000])
def test_no_limit_is_every_item(limit):
    assert stratified(SIZES, limit, seed=0) == {name: list(range(size)) for name, size in SIZES.items()}


def test_a_sample_depends_on_its_seed_and_not_on_the_order_of_strata():
    sample = stratified(SIZES, 100, seed=0)
    assert stratified(dict(reversed(SIZES.items())), 100, seed=0) == sample
    assert stratified(SIZES, 100, seed=1) != sample
    assert stratified({"a": 500}, 50, seed=0)["a"] != list(range(50))  # not simply the first


def test_equal_shares_go_round_by_name():
    assert {k: len(v) for k, v in stratified({"z": 10, "a": 10, "m": 10}, 4, seed=0).items()} == {
        "z": 1,
        "a": 2,
        "m": 1,
    }


def test_every_cell_is_asked_the_same():
    first, again = (Tasks(settings("facts", limit=10), None).sample for _ in range(2))
    assert first == again
    assert Tasks(settings("facts", limit=10, seed=1), None).sample != first


# Scores


def test_scores_are_lm_evals_own(bench, scored):
    tasks, scores, items = scored
    engine = HFLM(pretrained=bench.net, tokenizer=bench.tokenizer, batch_size=8)
    result = lm_eval.simple_evaluate(
        engine, tasks=["facts", "wordmath"], samples=tasks.sample, task_manager=task_index.ours()
    )["results"]
    names = {"acc", "acc_norm", "exact_match"}
    assert {s.metric for s in scores} == names
    assert len(scores) == 4  # exact_match has two filters
    for s in scores:
        assert s.value == pytest.approx(result[s.task][f"{s.metric},{s.filter}"], abs=1e-12)
        if s.clusters is None:
            assert s.stderr == pytest.approx(result[s.task][f"{s.metric}_stderr,{s.filter}"], abs=1e-9)
        else:
            own = items[(items["task"] == s.task) & (items["metric"] == s.metric) & (items["filter"] == s.filter)]
            clusters = own["cluster"].fillna(own["item"].astype(str)).factorize()[0]
            assert s.clusters == clusters.max() + 1
            assert s.stderr == pytest.approx(over_items(own["value"].to_numpy(), clusters)[0] ** 0.5)
        assert (s.n, s.num_fewshot, s.version, s.higher_is_better) == (40, 0, "1.0", True)
    assert all(0 < s.value < 1 for s in scores if s.task == "facts")  # else every standard error were 0


@pytest.mark.long
def test_a_groups_scores_weigh_its_tasks_as_lm_eval_does(bench, tmp_path, monkeypatch):
    ours = Path(scoring.__file__).parent / "tasks" / "facts.yaml"
    for name in ("one", "two"):
        (tmp_path / f"facts_{name}.yaml").write_text(f"include: {ours}\ntask: facts_{name}\n")
    for weighed in (True, False):
        (tmp_path / "world.yaml").write_text(
            "group: world\ntask: [facts_one, facts_two]\n"
            f"aggregate_metric_list: [{{metric: acc, weight_by_size: {str(weighed).lower()}}}]\n"
        )
        manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
        monkeypatch.setattr(scoring, "index_of", lambda *_, manager=manager: manager)
        tasks = Tasks(settings("world"), None)
        tasks.sample = {"facts_one": list(range(10)), "facts_two": list(range(10, 50))}
        found = next(s for s in scoring.score(bench.net, bench.tokenizer, tasks, 8, None)[0] if s.metric == "acc")
        engine = HFLM(pretrained=bench.net, tokenizer=bench.tokenizer, batch_size=8)
        result = lm_eval.simple_evaluate(engine, tasks=["world"], samples=tasks.sample, task_manager=manager)["results"]
        one, two = (result[f"facts_{name}"]["acc,none"] for name in ("one", "two"))
        assert one != two
        assert found.value == pytest.approx(result["world"]["acc,none"])
        assert (found.by_subject, found.n) == (not weighed, 50)
        if not weighed:
            assert found.value == pytest.approx((one + two) / 2)


def test_each_item_has_a_row(scored):
    tasks, scores, items = scored
    assert list(items) == [
        "task",
        "subject",
        "item",
        "hash",
        "filter",
        "metric",
        "value",
        "prediction",
        "target",
        "cluster",
        "question",
    ]
    assert not items.isna().any().any()
    assert not items.duplicated(["subject", "item", "filter", "metric"]).any()
    for (task, metric, kind), group in items.groupby(["task", "metric", "filter"]):
        assert sorted(group["item"]) == tasks.sample[task]
        (found,) = [s for s in scores if (s.task, s.metric, s.filter) == (task, metric, kind)]
        assert found.value == group["value"].mean()
    assert items["hash"].nunique() == 80


def test_items_survive_parquet(scored, tmp_path):
    items = scored[2]
    items.to_parquet(tmp_path / "items.parquet", index=False)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "items.parquet"), items, check_dtype=False)


def test_a_single_item_has_no_standard_error(bench):
    tasks = Tasks(settings("facts", limit=1), None)
    scores, *_ = scoring.score(bench.net, bench.tokenizer, tasks, 1, None)
    assert [(s.n, s.stderr) for s in scores] == [(1, None)] * 2


@pytest.mark.long
def test_the_batch_size_does_not_change_what_is_answered(bench, scored):
    tasks, _, items = scored
    _, again, _ = scoring.score(bench.net, bench.tokenizer, tasks, 3, None)
    judged = items.columns.drop("prediction")  # where likelihoods stand, to a digit that rounding moves
    assert items[judged].equals(again[judged])


# Shots


def prompt(tasks: Tasks) -> str:
    task = tasks.leaves["wordmath"]
    return task.fewshot_context(next(iter(task.test_docs())), num_fewshot=task.config.num_fewshot)


def test_shots_are_what_was_asked_and_nobody_elses(bench):
    none, two = Tasks(settings("wordmath"), None), Tasks(settings("wordmath", limit=2, num_fewshot=2), None)
    assert [prompt(t).count("Question:") for t in (none, two)] == [1, 3]
    assert prompt(two).count("####") == 2
    assert prompt(Tasks(settings("wordmath"), None)) == prompt(none)  # the index is shared, its tasks are not
    scores, *_ = scoring.score(bench.net, bench.tokenizer, two, 2, None)
    assert {s.num_fewshot for s in scores} == {2}


def test_a_task_without_examples_stays_so():
    tasks = Tasks(settings("plain_text", "wordmath", limit=2, num_fewshot=2), None)
    assert {leaf: task.config.num_fewshot for leaf, task in tasks.leaves.items()} == {"plain_text": 0, "wordmath": 2}


@pytest.mark.parametrize("speedups", [True, False])
def test_answers_are_greedy_and_as_long_as_the_task_says_whatever_a_model_s_file_asks(bench, speedups):
    def answers():
        tasks = Tasks(settings("wordmath", limit=4), None)
        return scoring.score(bench.net, bench.tokenizer, tasks, 4, None, speedups)[1]["prediction"]

    before, own = answers(), copy.deepcopy(bench.net.generation_config)
    bench.net.generation_config.update(max_new_tokens=200, repetition_penalty=3.0)
    asked = bench.net.generation_config
    try:
        assert answers().equals(before)
        assert bench.net.generation_config is asked  # which is saved with the model
    finally:
        bench.net.generation_config = own


def test_answers_to_a_template_end_where_its_turns_do(bench, monkeypatch):
    """A base model's file names the end of the text alone, and training taught the end of a turn."""
    ends = []

    def noted(model, *_):
        ends.append(model.generation_config.eos_token_id)
        raise RuntimeError("seen")

    monkeypatch.setattr(scoring, "_engine", noted)
    monkeypatch.setattr(scoring.chat, "turn_end", lambda tokenizer: 7)
    for template in (False, True):
        tasks = Tasks(settings("wordmath", limit=1, chat_template=template), None)
        with pytest.raises(RuntimeError, match=r"^seen$"):
            scoring.score(bench.net, bench.tokenizer, tasks, 1, None)
    assert ends == [[bench.tokenizer.eos_token_id], [bench.tokenizer.eos_token_id, 7]]


def test_every_cell_is_shown_the_same_examples():
    first, again = (prompt(Tasks(settings("wordmath", num_fewshot=3), None)) for _ in range(2))
    assert first == again


# How a question is put

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def put(bench, tokenizer, **asked):
    """What the model reads before its first answer."""
    tasks = Tasks(settings("wordmath", limit=2, num_fewshot=2, **asked), None)
    tasks.build()
    scoring.score(bench.net, tokenizer, tasks, 2, None)
    return tasks.leaves["wordmath"].instances[0].args[0]


@pytest.mark.long
def test_questions_are_put_as_asked(bench):
    chat = copy.deepcopy(bench.tokenizer)
    chat.chat_template = TEMPLATE
    plain, brief = put(bench, chat), put(bench, chat, system_instruction="Be brief.")
    assert brief == f"Be brief.{plain}"
    one = put(bench, chat, chat_template=True)
    assert one == f"<user>{plain}<assistant>"
    turns = put(bench, chat, chat_template=True, fewshot_as_multiturn=True, system_instruction="Be brief.")
    assert turns.startswith("<system>Be brief.<user>Question:")
    assert [turns.count(f"<{role}>") for role in ("system", "user", "assistant")] == [1, 3, 3]


def test_a_tokenizer_without_a_template_is_refused(bench):
    scoring.check_template(settings("facts"), bench.tokenizer)
    with pytest.raises(UserError, match="chat template"):
        preflight.check([tiny("eval.chat_template=true")], None)


# Bad input, and stock tasks; reading lm-eval's index takes some seconds, once


def test_an_unknown_task_is_named_with_its_neighbour():
    with pytest.raises(UserError, match=r"eval\.tasks=gsm8kk is unknown to lm-eval\. Did you mean .*gsm8k"):
        Tasks(settings("gsm8kk"), None)


def test_a_data_root_without_the_tasks_data_is_refused(tmp_path, offline):
    with pytest.raises(UserError, match="The data of the task gsm8k is not in data_root="):
        Tasks(settings("gsm8k"), str(tmp_path))


def test_without_hub_and_data_root_the_remedy_is_said(offline, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(UserError, match=r"the task gsm8k.*HF_HUB_OFFLINE.*data_root="):
        Tasks(settings("gsm8k"), None)


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory):
    """A folder that holds a few made-up items in the layout of the hub's data sets of these names."""
    root = tmp_path_factory.mktemp("hub")

    def lay(name, **configs):
        folder = root / name
        folder.mkdir(parents=True)
        card = "---\nconfigs:\n"
        for config, items in configs.items():
            (folder / f"{config}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
            card += f"- config_name: {config}\n  data_files:\n"
            card += "".join(
                f"  - split: {split}\n    path: {config}.jsonl\n" for split in ("train", "validation", "test")
            )
        (folder / "README.md").write_text(f"{card}---\n")

    choices = {"text": ["red", "blue"], "label": ["A", "B"]}
    questions = [{"question": f"Colour {i}?", "choices": choices, "answerKey": "AB"[i % 2]} for i in range(4)]
    lay("allenai/ai2_arc", **{"ARC-Easy": questions, "ARC-Challenge": questions[:3]})
    lay("EleutherAI/lambada_openai", default=[{"text": f"It was {i} and the end"} for i in range(3)])
    lay("EleutherAI/wikitext_document_level", **{"wikitext-2-raw-v1": [{"page": "A page ."}]})
    return root


def test_any_stock_task_or_group_goes_by_its_name(bench, data_sets):
    """Metrics that are means over items: lambada's perplexity is none."""
    tasks = Tasks(settings("ai2_arc", "lambada_openai"), str(data_sets))
    scores, items, _ = scoring.score(bench.net, bench.tokenizer, tasks, 8, None)
    found = [(s.task, s.metric, s.n) for s in scores]
    assert found == [("ai2_arc", "acc", 7), ("ai2_arc", "acc_norm", 7), ("lambada_openai", "acc", 3)]
    assert set(items["subject"]) == {"arc_easy", "arc_challenge", "lambada_openai"}


def test_a_task_without_a_value_of_each_item_is_refused(data_sets):
    with pytest.raises(UserError, match=r"wikitext measures a corpus, not items.*\(word_perplexity, .*plain_text"):
        Tasks(settings("wikitext"), str(data_sets))


@pytest.mark.parametrize("name", ["humaneval", "mbpp", "longproc"])
def test_a_task_that_runs_code_is_refused_unless_that_is_asked_for(name, offline, monkeypatch, tmp_path):
    if not (Path(lm_eval.__file__).parent / "tasks" / name).is_dir():
        pytest.skip(f"lm-eval {lm_eval.__version__} has no {name}")
    with pytest.raises(UserError, match=rf"eval\.tasks={name} requires eval\.unsafe_code=true: it runs code"):
        Tasks(settings(name), None)
    if name == "humaneval":  # then only its data is missing here
        monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "0")
        with pytest.raises(UserError, match="The data of the task humaneval is not in data_root="):
            Tasks(settings(name, unsafe_code=True), str(tmp_path))


@needs_data
def test_stock_gsm8k_through_a_local_folder(bench):
    assert len(Tasks(settings("gsm8k"), str(DATA)).sample["gsm8k"]) == 1319
    tasks = Tasks(settings("gsm8k", limit=4, num_fewshot=1), str(DATA))
    scores, items, _ = scoring.score(bench.net, bench.tokenizer, tasks, 4, None)
    found = {(s.metric, s.filter, s.n, s.num_fewshot, s.version) for s in scores}
    assert found == {("exact_match", kind, 4, 1, "3.0") for kind in ("strict-match", "flexible-extract")}
    assert len(items) == 8


@needs_data
@pytest.mark.slow
def test_stock_mmlu_through_a_local_folder(bench):
    tasks = Tasks(settings("mmlu", limit=57), str(DATA))
    assert len(tasks.leaves) == 57
    assert sum(len(task.eval_docs) for task in tasks.leaves.values()) == 14042
    assert sum(map(len, tasks.sample.values())) == 57
    (found,), items, _ = scoring.score(bench.net, bench.tokenizer, tasks, 8, None)
    assert (found.task, found.metric, found.n, found.num_fewshot) == ("mmlu", "acc", 57, 0)
    assert set(items["subject"]) == set(tasks.sample)
    assert items.groupby("subject").size().to_dict() == {name: len(v) for name, v in tasks.sample.items()}


@needs_data
@pytest.mark.slow
def test_an_item_is_not_asked_for_by_two_tasks():
    with pytest.raises(UserError, match="must not overlap: mmlu_anatomy contains mmlu_anatomy"):
        Tasks(settings("mmlu", "mmlu_anatomy", limit=57), str(DATA))


# Requests


def test_requests_are_built_once_and_answered_anew(bench):
    tasks = Tasks(settings("facts", limit=6, num_fewshot=2), None)
    tasks.build()
    (task,) = tasks.leaves.values()
    built = [instance.args for instance in task.instances]
    first, again = (scoring.score(bench.net, bench.tokenizer, tasks, 8, None) for _ in range(2))
    assert [instance.args for instance in task.instances] == built
    assert first[0] == again[0]
    pd.testing.assert_frame_equal(first[1], again[1])
    assert all(len(instance.resps) == 1 for instance in task.instances)
    plain = task.instances[0].args[0]
    tasks.sample = {"facts": [7]}
    _, other, _ = scoring.score(bench.net, bench.tokenizer, tasks, 8, None)
    assert list(other["item"].unique()) == [7]
    assert task.instances[0].args[0] != plain


# In half precision


@pytest.mark.long
@pytest.mark.parametrize("method", ["base", "qlora"])
def test_weights_cast_once_answer_as_those_that_autocast_casts(method, monkeypatch):
    tasks = Tasks(settings("facts", "wordmath", limit=8), None)
    found, once = [], linear_weights.cast
    for cast, expected in ((once, torch.bfloat16), (lambda model, dtype: lambda: None, torch.float32)):
        monkeypatch.setattr(linear_weights, "cast", cast)
        monkeypatch.setattr(linear_weights, "cast_for_good", cast)
        bench, read = moved(f"method={method}"), set()
        head, embedding = bench.net.get_output_embeddings(), bench.net.get_input_embeddings()
        head.register_forward_pre_hook(lambda head, _, read=read: read.add(head.weight.dtype))
        found.append(scoring.score(bench.net, bench.tokenizer, tasks, 8, torch.bfloat16)[1])
        assert read == {expected}
        assert embedding.weight.dtype == torch.float32
    assert {m.weight.dtype for m in bench.net.modules() if type(m) is torch.nn.Linear} == {torch.float32}
    pd.testing.assert_frame_equal(*found)


def test_weights_that_were_cast_are_not_held_beside_their_copies(monkeypatch):
    bench, held = moved("method=base"), []
    before = [weakref.ref(m.weight) for m in bench.net.modules() if type(m) is torch.nn.Linear]

    def packed(model):
        gc.collect()
        held.extend(each() for each in before)
        return contextlib.nullcontext({})

    monkeypatch.setattr(linear_weights, "packed", packed)
    scoring.score(bench.net, bench.tokenizer, Tasks(settings("facts", limit=2), None), 8, torch.bfloat16)
    assert held == [None] * len(before) != []


def test_an_adapters_weights_are_as_before_once_it_is_scored():
    bench = moved("method=qlora")
    before = dict(bench.net.named_parameters(remove_duplicate=False))
    scoring.score(bench.net, bench.tokenizer, Tasks(settings("facts", limit=2), None), 8, torch.bfloat16)
    assert all(before[name] is p for name, p in bench.net.named_parameters(remove_duplicate=False))
