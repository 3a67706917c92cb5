"""Scores the live model by lm-eval: unchanged stock tasks, our generated ones, and the test part of one's own data.

Scores are computed from the items that lm-eval returns, so that each has its n and standard error, also if a stratified
sample has a single item of a subject. A test compares them with lm-eval's own aggregates.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import random
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from typing import Any, Literal

import lm_eval
import pandas as pd
import torch
from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.model import LM, CacheHook
from lm_eval.api.task import Task
from lm_eval.filters import build_filter_ensemble
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable, hash_string
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from harness import task_names
from harness.errors import UserError
from harness.grouping import grouped
from harness.job.data import chat, sources
from harness.job.data.labels import Labels
from harness.job.evaluate import linear_weights, request_cache, windows
from harness.job.evaluate.answer_batch import AnswerBatch
from harness.job.evaluate.answer_engines import ElsewhereWriter
from harness.job.evaluate.clusters import cluster_of
from harness.job.evaluate.cut_requests import CutRequests
from harness.job.evaluate.decoding import plain_generation
from harness.job.evaluate.engine import Engine
from harness.job.evaluate.held_out import bertscore, classes
from harness.job.evaluate.held_out.task import HeldOutTask
from harness.job.evaluate.plain_model import PlainModel
from harness.job.evaluate.task_index import IncludedTasks, index_of, ours, runs_code
from harness.job.measure import device
from harness.job.models import hub
from harness.job.models.structure import inner, prompted
from harness.job.training import attention
from harness.record import ClassCounts, Score, cluster_numbers, clustered_error, subject_weights
from harness.settings import HELD_OUT, EvalSettings

UNASKED = ("plain_text",)  # tasks of texts that go on, which nobody asks for
PLAIN = {"apply_chat_template": False, "fewshot_as_multiturn": False, "chat_template": None, "tokenizer_name": ""}
FEWSHOT_SEED = 1234  # lm-eval's default, for tasks that draw their examples


class Tasks:
    """The tasks and groups of an evaluation, loaded, each with its sample of items.

    settings: `eval` of the cell. own: the task ``held_out``, made from the cell's data, if it is asked for. Raises
    UserError for an unknown task, missing data, a task without a value for each item, and a task that runs code without
    eval.unsafe_code=true.

    include: a folder of further tasks. put: lm-eval's keywords for the prompt's form, and for running code.
    messages_alone: whether the model takes nothing but messages, so that every task is asked in them.
    """

    messages_alone = False

    def __init__(
        self,
        settings: EvalSettings,
        data_root: str | None,
        own: HeldOutTask | None = None,
        include: IncludedTasks | None = None,
    ):
        manager = index_of(settings.tasks, include)
        if HELD_OUT in settings.tasks and own is None:
            raise UserError(f"eval.tasks={HELD_OUT} requires training data in columns, such as data=local.")
        if manager is not ours() and data_root is None:
            hub.settle()
        _check_permitted(settings, manager, own, include)
        with sources.with_data_root(data_root):
            self.by_name: dict[str, dict[str, Any]] = {
                name: {"tasks": {HELD_OUT: own}, "groups": {}} if name == HELD_OUT else self._load(manager, name)
                for name in settings.tasks
            }
        self.leaves: dict[str, Task] = {
            leaf: task for loaded in self.by_name.values() for leaf, task in loaded["tasks"].items()
        }
        self._settle(settings)
        self.sample = self._drawn(settings)
        self._requests: dict[tuple[Any, ...], list[Instance]] = {}
        self._chat: dict[str, Any] = {}
        self._origin = None if include is None else include.state

    def _drawn(self, settings: EvalSettings) -> dict[str, list[int]]:
        """Indices of the sampled items by leaf task."""
        sample: dict[str, list[int]] = {}
        for name, loaded in self.by_name.items():
            sizes = {leaf: len(task.eval_docs) for leaf, task in loaded["tasks"].items()}
            if twice := sorted(sample.keys() & sizes):
                raise UserError(f"eval.tasks must not overlap: {name} contains {twice[0]}, as does an earlier task.")
            indices = stratified(sizes, settings.limit, settings.seed)
            sample |= {leaf: self._by_label(leaf, items, settings.seed) for leaf, items in indices.items()}
        return sample

    def _by_label(self, leaf: str, items: list[int], seed: int | None) -> list[int]:
        """As many items of `leaf` as `items`: of labels each has its share."""
        task = self.leaves[leaf]
        if not isinstance(task, HeldOutTask) or task.labels is None or len(items) == len(task.eval_docs):
            return items
        of = grouped((doc["answer"], item) for item, doc in enumerate(task.eval_docs))
        places = stratified({label: len(members) for label, members in of.items()}, len(items), seed)
        return sorted(of[label][at] for label, each in places.items() for at in each)

    def _settle(self, settings: EvalSettings) -> None:
        """Set number and seed of the tasks' few-shot examples, and `put`."""
        for task in self.leaves.values():
            if settings.num_fewshot is not None and task.get_config("num_fewshot") != 0:  # a task that has none
                task.set_config(key="num_fewshot", value=settings.num_fewshot)
            elif task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
            task.build_all_requests = functools.partial(self._request, task)
        self.put = {
            "apply_chat_template": settings.chat_template,
            "fewshot_as_multiturn": settings.fewshot_as_multiturn,
            "system_instruction": settings.system_instruction,
            "confirm_run_unsafe_code": settings.unsafe_code,
        }

    def build(self) -> None:
        """Build the requests of the sample once for all cells: few-shot contexts take milliseconds an item.

        Requests in a chat template are not built, as they depend on the model's tokenizer.
        """
        if self.put["apply_chat_template"]:
            return
        for leaf, items in self.sample.items():
            if not _is_chat(self.leaves[leaf]):
                self.leaves[leaf].build_all_requests(samples=items, system_instruction=self.put["system_instruction"])

    def chat_by(self, lm: LM) -> None:
        """Have conversations written by the chat template of `lm`, whatever is said of the other tasks."""
        template = {"chat_template": lm.apply_chat_template, "tokenizer_name": lm.tokenizer_name}
        self._chat = {"apply_chat_template": True} | template

    @property
    def by_template(self) -> bool:
        """Whether items are asked in a chat template."""
        return bool(self.put["apply_chat_template"]) or any(map(_is_chat, self.leaves.values()))

    @property
    def written(self) -> bool:
        """Whether a task asks for written answers."""
        return any(task.OUTPUT_TYPE == "generate_until" for task in self.leaves.values())

    @property
    def notes(self) -> list[str]:
        """Sentences that say how the test part of one's own data is scored."""
        return [note for task in self.leaves.values() if isinstance(task, HeldOutTask) for note in task.notes]

    def texts(self) -> dict[str, list[str]]:
        """The sampled items' questions by task, without few-shot examples."""
        return {
            name: [
                task.questions[item] if isinstance(task, HeldOutTask) else _asked(task, task.eval_docs[item])
                for leaf, task in loaded["tasks"].items()
                for item in self.sample.get(leaf, [])
            ]
            for name, loaded in self.by_name.items()
        }

    def _request(self, task: Task, *, samples: list[int], **keywords: Any) -> None:
        """lm-eval's `build_all_requests`, except that it reuses requests that were built before, here or elsewhere."""
        if _is_chat(task):
            keywords |= self._chat
        elif not self.messages_alone and (isinstance(task, HeldOutTask) or task.config.task in UNASKED):
            keywords.update(PLAIN)
        # A tokenizer name is given with a chat template; everything else is fixed by the settings.
        key = (task.config.task, tuple(samples), keywords.get("tokenizer_name") or "")
        if key not in self._requests:
            self._requests[key] = request_cache.built(
                task, request_cache.RequestForm(samples, FEWSHOT_SEED, keywords, self._origin)
            )
        # Copies, as answers are stored in them.
        task._instances = [dataclasses.replace(built, resps=[], filtered_resps={}) for built in self._requests[key]]

    @staticmethod
    def _load(manager: TaskManager, name: str) -> dict[str, Any]:
        try:
            loaded = manager.load([name])
        except Exception as error:  # a task's own code and the hub raise many kinds
            raise sources.missing(f"The data of the task {name}", error) from error
        for task in loaded["tasks"].values():
            if task.config.custom_dataset is None:
                sources.require(task.config.dataset_path)
            if not _means(task):
                raise UserError(
                    f"eval.tasks={name} measures a corpus, not items, and so has no standard error "
                    f"({', '.join(task.aggregation())}); use eval.tasks=[plain_text], which has a loss of each passage."
                )
        return loaded


def _check_permitted(
    settings: EvalSettings, manager: TaskManager, own: HeldOutTask | None, include: IncludedTasks | None
) -> None:
    """Raise UserError for a task that is unknown, or that runs code without permission."""
    for name in settings.tasks:
        if name == HELD_OUT:
            if own is not None and own.runs_code and not settings.unsafe_code:
                raise _runs_code(name)
            continue
        if name not in manager.all_tasks:
            raise task_names.unknown(name, manager.all_tasks, None if include is None else include.path)
        if settings.unsafe_code:
            os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # required when the task's metric is loaded
        elif runs_code(manager.task_index, name):
            raise _runs_code(name)


def _runs_code(name: str) -> UserError:
    return UserError(
        f"eval.tasks={name} requires eval.unsafe_code=true: it runs code that the model writes, with your rights and "
        "on this machine."
    )


def _is_chat(task: Task) -> bool:
    """Whether the items are conversations."""
    return isinstance(task, HeldOutTask) and task.chats


def filtered_too(task: Task, name: str, pattern: str) -> None:
    """Also score answers to `task` by their first match of the regular expression `pattern`."""
    task._filters.append(build_filter_ensemble(name, [("regex", {"regex_pattern": pattern}), ("take_first", None)]))


def _means(task: Task) -> set[str]:
    """The metrics of `task` that are means over items; others (perplexity, F1, BLEU) are of all items at once."""
    if task.OUTPUT_TYPE == windows.KIND and not isinstance(task, HeldOutTask):
        return set()
    return {metric for metric, aggregation in task.aggregation().items() if aggregation is mean}


def check_template(settings: EvalSettings, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError if the settings `eval` need a chat template and `tokenizer` has none."""
    if settings.chat_template and tokenizer.chat_template is None:
        raise UserError("eval.chat_template=true requires a tokenizer with a chat template.")


def _asked(task: Task, doc: dict[str, Any]) -> str:
    """An item's question; all choices, if the text begins with a choice."""
    text = task.doc_to_text(doc)
    return text if isinstance(text, str) else "\n".join(map(str, task.doc_to_choice(doc)))


def hash_of(doc: dict[str, Any]) -> str:
    """The hash of an item as lm-eval has it."""
    return hash_string(json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False))


def question_of(task: Task, doc: dict[str, Any]) -> str:
    """An item's question as people read it, with the options that predictions and targets number."""
    text = _asked(task, doc)
    if task.OUTPUT_TYPE != "multiple_choice" or not isinstance(task.doc_to_text(doc), str):
        return text
    return "\n".join([text, *(f"{i}: {option}" for i, option in enumerate(task.doc_to_choice(doc)))])


def stratified(sizes: dict[str, int], limit: int | None, seed: int | None) -> dict[str, list[int]]:
    """Sample `limit` items (null: all) from strata of `sizes`. Returns sorted indices by stratum.

    Shares are proportional, by largest remainders; strata without an item are left out. The sample depends on the
    arguments only, so every cell of a study gets the same questions.
    """
    total = sum(sizes.values())
    if limit is None or limit >= total:
        return {name: list(range(size)) for name, size in sizes.items()}
    exact = {name: limit * size / total for name, size in sizes.items()}
    counts = {name: math.floor(share) for name, share in exact.items()}
    by_remainder = sorted(sizes, key=lambda name: (counts[name] - exact[name], name))
    for name in by_remainder[: limit - sum(counts.values())]:
        counts[name] += 1
    return {
        name: sorted(random.Random(f"{seed} {name}").sample(range(sizes[name]), count))
        for name, count in counts.items()
        if count
    }


def score(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Tasks,
    batch_size: int | Literal["auto"],
    autocast: torch.dtype | None,
    speedups: bool = True,
    tell_batch: Callable[[int], Any] = lambda size: None,
    answered_so_far: Callable[[int, int], None] | None = None,
    writer: ElsewhereWriter | None = None,
    tell_cut: Callable[[CutRequests], Any] = lambda cut: None,
) -> tuple[list[Score], pd.DataFrame, dict[str, str]]:
    """Scores of `model` on the sample of `tasks`, the items behind them, and which of `Engine`'s speed-ups were on.

    The frame has a row for each item, filter and metric: task (as asked for), subject (the leaf task), item (its
    index in the test split), hash (of the document), filter, metric, value, prediction, target, cluster (what it shares
    with other items, or null: `cluster_of`), question (with the options by number, if there are some).

    tell_batch: called with the number of sequences that are answered at a time, and again if it becomes smaller.
    speedups: False for lm-eval's own way (`PlainModel`). autocast: the dtype of linear layers; a model that is not
    peft's is left with its linear layers in it. answered_so_far: called after each answer with the number of
    requests that are answered, and of all. writer: writes the answers of tasks that ask for them, with `model` as it
    lies on disk. tell_cut: called with the numbers of requests and answers that were cut.
    """
    model.eval()
    batch = AnswerBatch(batch_size, inner(model).device, tell_batch)
    count = None if answered_so_far is None else AnswerCount(tasks, answered_so_far)
    end = chat.turn_end(tokenizer) if tasks.by_template else None
    with (
        torch.inference_mode(),
        plain_generation(model, end),
        _engine(model, tokenizer, batch, autocast, speedups) as (lm, used),
    ):
        if count is not None:
            lm.set_cache_hook(count)
        engine = lm
        if writer is not None:
            lm, of_writer = writer.beside(lm, None if count is None else count.add)
            used = ChainMap(of_writer, used)
        scores, items = answered(lm, tasks)
        tell_cut(engine.cut)
    return scores, items, dict(used)


def answered(lm: LM, tasks: Tasks) -> tuple[list[Score], pd.DataFrame]:
    """Scores and items, as in `score`, of `lm`, which answers lm-eval's requests."""
    leaves = {leaf: task for leaf, task in tasks.leaves.items() if leaf in tasks.sample}
    if any(map(_is_chat, leaves.values())):
        tasks.chat_by(lm)
    result = lm_eval.evaluate(lm, {"tasks": leaves}, samples=tasks.sample, bootstrap_iters=0, **tasks.put)
    rows = []
    for name, loaded in tasks.by_name.items():
        for leaf, task in loaded["tasks"].items():
            means, entries = _means(task), result["samples"].get(leaf, [])
            for entry in entries:
                question = question_of(task, entry["doc"])
                rows += [_row(name, leaf, entry, metric, question) for metric in entry["metrics"] if metric in means]
            if isinstance(task, HeldOutTask) and task.labels is not None:
                rows += _class_rows(name, leaf, task, task.labels, entries)
            if isinstance(task, HeldOutTask) and task.encoder is not None:
                rows += _bertscore_rows(name, leaf, task, task.encoder, entries)
    items = pd.DataFrame(rows, columns=None if rows else ["task", "metric", "filter"])  # none of bad answers alone
    scores = [
        _score(name, metric, kind, group, tasks.by_name[name])
        for (name, metric, kind), group in items.groupby(["task", "metric", "filter"], sort=False)
    ]
    return scores, items


class AnswerCount(CacheHook):
    """Counts answers: lm-eval's models tell their cache of each one, and this one keeps none."""

    def __init__(self, tasks: Tasks, tell: Callable[[int, int], None]):
        super().__init__(None)
        self._tasks, self._tell, self._answers = tasks, tell, 0

    def add_partial(self, attr: str, req: Iterable[Any], res: Any) -> None:
        self.add()

    def add(self, count: int = 1) -> None:
        """Count `count` more."""
        self._answers += count
        self._tell(self._answers, max(self._answers, self._of))

    @functools.cached_property
    def _of(self) -> int:
        """All requests; lm-eval builds them before it asks the first."""
        leaves = [task for leaf, task in self._tasks.leaves.items() if leaf in self._tasks.sample]
        return sum(request.repeats for task in leaves for request in task.instances)


@contextlib.contextmanager
def _engine(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    batch: AnswerBatch,
    autocast: torch.dtype | None,
    speedups: bool,
) -> Iterator[tuple[Engine | PlainModel, MutableMapping[str, str]]]:
    """The model that answers lm-eval's requests, and its speed-ups, to be read afterwards."""
    # A chat template that knows thoughts writes an empty one, as it does in training.
    parts = {"pretrained": model, "tokenizer": tokenizer, "mixed_precision_dtype": autocast, "enable_thinking": False}
    if not speedups:
        batch.use_fixed()
        yield Engine(**parts, batch_size=batch) if prompted(model) else PlainModel(**parts, batch_size=batch.size), {}
        return
    with attention.enabled(model), linear_weights.expanded(model) as used, contextlib.ExitStack() as stack:
        lm = Engine(**parts, batch_size=batch)
        if autocast is not None and linear_weights.only_multiplied(model):
            # After lm-eval's class was made, which ties the head to the embedding again.
            if isinstance(model, PeftModel):
                stack.callback(linear_weights.cast(model, autocast))
            else:
                linear_weights.cast_for_good(model, autocast)
        packed = stack.enter_context(linear_weights.packed(model))
        yield lm, ChainMap(lm.used, used, packed)


def _row(task: str, leaf: str, entry: dict[str, Any], metric: str, question: str) -> dict[str, Any]:
    return {
        "task": task,
        "subject": leaf,
        "item": entry["doc_id"],
        "hash": entry["doc_hash"],
        "filter": entry["filter"],
        "metric": metric,
        "value": float(entry[metric]),
        "prediction": str(entry["filtered_resps"]),
        "target": str(entry["target"]),
        "cluster": cluster_of(entry["doc"]),
        "question": question,
    }


def _class_rows(
    name: str, leaf: str, task: HeldOutTask, labels: Labels, entries: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows of macro-F1, with labels as predictions and targets."""
    targets = [entry["doc"]["answer"] for entry in entries]
    predictions = [classes.prediction(entry["filtered_resps"], labels.texts) for entry in entries]
    values = classes.macro_f1(targets, predictions)
    return [
        _row(name, leaf, entry | {classes.MACRO_F1: value}, classes.MACRO_F1, question_of(task, entry["doc"]))
        | {"prediction": prediction, "target": target}
        for entry, value, prediction, target in zip(entries, values, predictions, targets, strict=True)
    ]


def _bertscore_rows(
    name: str, leaf: str, task: HeldOutTask, encoder: str, entries: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows of BERTScore; their filter is the encoder's name, as values of different ones can't be compared."""
    answers = [entry["filtered_resps"][0] for entry in entries]
    right = [entry["doc"]["answer"] for entry in entries]
    pairs = zip(entries, bertscore.Encoder(encoder, device.here()).compare(answers, right), strict=True)
    return [
        _row(name, leaf, entry | {bertscore.METRIC: likeness.f1}, bertscore.METRIC, question_of(task, entry["doc"]))
        | {"filter": bertscore.name_of(encoder)}
        for entry, likeness in pairs
    ]


def class_counts(tasks: Tasks, items: pd.DataFrame) -> dict[str, ClassCounts]:
    """By task whose answers are labels, what `items`, as of `answered`, were taken for."""
    counts = {}
    for name, loaded in tasks.by_name.items():
        for task in loaded["tasks"].values():
            if isinstance(task, HeldOutTask) and task.labels is not None:
                rows = items[(items["task"] == name) & (items["metric"] == classes.MACRO_F1)]
                counts[name] = classes.counts(rows, task.labels)
    return counts


def _score(name: str, metric: str, kind: str, items: pd.DataFrame, loaded: dict[str, Any]) -> Score:
    """Mean and its standard error, by the weights of the task's group. items: of this score."""
    first = next(iter(loaded["tasks"].values()))
    values, subjects, n = items["value"].tolist(), items["subject"].tolist(), len(items)
    named = [name if isinstance(name, str) else None for name in items["cluster"]]  # pandas has NaN beside text
    clusters = cluster_numbers(subjects, named)
    by_subject = _by_subject(loaded["groups"].get(name), metric)
    weights = subject_weights(subjects) if by_subject else [1.0] * n
    return Score(
        task=name,
        metric=metric,
        filter=kind,
        value=sum(weight * value for weight, value in zip(weights, values, strict=True)) / n,
        stderr=clustered_error(values, clusters, weights) if n > 1 else None,
        n=n,
        num_fewshot=first.config.num_fewshot,
        version=str(first.VERSION),
        higher_is_better=bool(first.higher_is_better().get(metric, True)),
        clusters=max(clusters) + 1 if max(clusters) + 1 < n else None,
        by_subject=by_subject,
    )


def _by_subject(group: Group | None, metric: str) -> bool:
    """Whether `group` says that `metric` does not weigh subjects by their size."""
    weighed = group.aggregate_metric_list or [] if group else []
    return any(aggregate.metric == metric and not aggregate.weight_by_size for aggregate in weighed)
