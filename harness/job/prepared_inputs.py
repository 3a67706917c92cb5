"""Prepares what cells share, without a device: splits, tokenizer, tokenised examples, tasks, fingerprints.

Inputs are cached for cells with the same settings, until the files behind them change.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase

from harness.job import own_files
from harness.job.data import batching, cached, chat, columns, contamination, documents, encoding, sources
from harness.job.data.cached import HELD, Root
from harness.job.evaluate import scoring
from harness.job.evaluate.held_out import bertscore
from harness.job.evaluate.held_out import task as held_out
from harness.job.evaluate.task_index import IncludedTasks
from harness.job.models import loading
from harness.record import Contamination, HeldOut, Lengths, OwnData, Record
from harness.settings import (
    HELD_OUT,
    DataSettings,
    EvalSettings,
    InferSettings,
    MethodSettings,
    ModelSettings,
    Settings,
)


@dataclass(frozen=True)
class PreparedInputs:
    """The inputs of a cell.

    steps: what each optimizer step's micro-batches have drawn; none for an untuned model. held_out: examples for the
    validation loss, or what is compared. rewarded: of a cell that compares answers, those that `tasks` asks of its own
    test part. fingerprints: of data, model and BERTScore's encoder. contamination: of each task by the training
    examples. own_data: how the user's own file was read (null: of other data). lengths: of the training's records
    (null: of an untuned model). notes: a sentence on the user's own file, and on records that are too long.
    """

    tokenizer: PreTrainedTokenizerBase
    tasks: scoring.Tasks
    steps: list[list[list[encoding.Drawn]]]
    held_out: list[encoding.Drawn]
    rewarded: list[encoding.Compared]
    fingerprints: dict[str, str]
    contamination: dict[str, Contamination]
    own_data: OwnData | None
    lengths: Lengths | None
    notes: list[str]

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        trained = (examples for step in self.steps for batch in step for examples in batch)
        return max(len(sequence.ids) for example in (*trained, *self.held_out) for sequence in example.sequences)

    @property
    def answers(self) -> HeldOut | None:
        """The size of the answers behind the validation loss; None of answers that are compared."""
        examples = [drawn for drawn in self.held_out if isinstance(drawn, encoding.Example)]
        if len(examples) < len(self.held_out):
            return None
        tokens = sum(len(example.supervised) for example in examples)
        return HeldOut(tokens, encoding.answer_bytes(self.tokenizer, examples))

    @property
    def turn_end(self) -> int | None:
        """The token that ends the assistant's turns, if it ends answers of the data; else None."""
        end = chat.turn_end(self.tokenizer)
        sequences = (sequence for example in self.held_out for sequence in example.sequences)
        return end if any(end == sequence.ids[at] for sequence in sequences for at in sequence.supervised) else None

    def samples(self, device: torch.device, size: int) -> Iterator[batching.Batch]:
        """Training examples in their order, padded, `size` a batch; of answers that are compared the good ones."""
        layout = batching.Layout(flat=False, pad=self.tokenizer.pad_token_id)
        examples: list[encoding.Drawn] = [
            example for step in self.steps for micro in step for drawn in micro for example in drawn.right
        ]
        for i in range(0, len(examples), size):
            yield layout.batch(examples[i : i + size]).to(device)


def inputs_of(settings: Settings, data_root: str | None, include_path: str | None = None) -> PreparedInputs:
    """The inputs for the settings of a cell. Raises UserError if model, data or tasks can't be loaded.

    include_path: as in harness.config.EvalConfig.
    """
    root = cached.root_of(settings.data, data_root)
    key = replace(settings, method=MethodSettings(), infer=InferSettings(), speedups=None)  # these change no input
    include = IncludedTasks.in_folder(include_path)
    inputs = _made(key, loading.state(settings.model), root, settings.method.tuned, include)
    encoder = encoder_fingerprint(settings.eval)
    return inputs if encoder is None else replace(inputs, fingerprints=inputs.fingerprints | {"encoder": encoder})


def tasks(
    settings: EvalSettings, data: DataSettings, data_root: str | None, include_path: str | None = None
) -> scoring.Tasks:
    """The tasks of an evaluation. Raises UserError if one can't be loaded, or does not work with `settings`.

    data: those of the cell, whose test part may be one of the tasks. include_path: as in harness.config.EvalConfig.
    """
    return _tasks(settings, *_tested(settings, data, data_root), IncludedTasks.in_folder(include_path))


def own_task(
    settings: EvalSettings, data: DataSettings, data_root: str | None, likelihoods: bool = True
) -> held_out.HeldOutTask | None:
    """The task on the test part of `data`, if `settings` ask for it. likelihoods, and raises: as held_out.task.

    Raises UserError too if the encoder of its scores can't be loaded, which jobs load only after training.
    """
    own = _own(settings, *_tested(settings, data, data_root), likelihoods)
    if own is not None and own.encoder is not None:
        bertscore.Encoder(own.encoder, torch.device("cpu"))
    return own


def encoder_fingerprint(settings: EvalSettings) -> str | None:
    """Identifies the weights of BERTScore's encoder; None if `settings` name none."""
    return None if settings.bertscore is None else loading.fingerprint(ModelSettings(path=settings.bertscore))


def same_items(recorded: Record, data_root: str | None) -> bool:
    """Whether a recorded cell's data, of a hub data set too, still have the items that it was trained on.

    Loads them. harness.sweep.changed_file looks at the bytes of the user's own file alone, without loading any.
    """
    items = cached.splits(recorded.cell.settings.data, data_root)
    return sources.fingerprint(items) == recorded.fingerprints.get("data")


@functools.lru_cache(HELD)
def _made(
    settings: Settings, model_state: str, root: Root, trained: bool, include: IncludedTasks | None
) -> PreparedInputs:
    train = settings.train.validated()
    splits = cached.splits(settings.data, root[0])
    tokenizer = loading.tokenizer(settings.model)
    scoring.check_template(settings.eval, tokenizer)
    tasks = _tasks(settings.eval, *_tested(settings.eval, settings.data, root[0]), include)
    encode = encoding.encoder(tokenizer, settings.data, train.max_length, train.paired, root[0])
    trained_on: dict[int, encoding.Item] = {}  # by identity, as passes repeat items
    cut: set[int] = set()
    fitted = own_files.fitted(settings, root[0])

    def drawing(items: list[encoding.Item]) -> list[encoding.Drawn]:
        trained_on.update((id(item), item) for item in items)
        examples = encode(items)
        both = zip(items, examples, strict=True)
        cut.update(id(item) for item, example in both if any(sequence.cut for sequence in example.sequences))
        return examples

    steps: list[list[list[encoding.Drawn]]] = []
    if trained:
        steps = batching.scheduled(fitted.train, settings.train.tuned(), settings.seed or 0, drawing)
    positions = tasks.sample.get(HELD_OUT, []) if trained and train.paired else []
    rewarded = encode([splits["test"][i] for i in positions]) if positions else []
    questions, texts = _trained_texts([*trained_on.values()], settings.data.documents)
    own = cached.own_data(settings.data, root[0])
    records = len(texts) if settings.data.documents else len(trained_on)
    counts = Lengths(records=records, cut=len(cut), dropped=fitted.dropped) if trained else None
    return PreparedInputs(
        tokenizer,
        tasks,
        steps,
        encode(fitted.validation),
        encoding.compared(rewarded),
        {"data": sources.fingerprint(splits), "model": _fingerprint(settings.model, model_state)}
        | sources.file_fingerprint(settings.data, root[0]),
        {name: contamination.trained_on(items, questions, texts) for name, items in tasks.texts().items()}
        if trained
        else {},
        own,
        counts,
        [*([] if own is None else [own.sentence]), *([] if counts is None else counts.notes(train.max_length))],
    )


def _trained_texts(items: list[encoding.Item], are_blocks: bool) -> tuple[list[str], list[str]]:
    """What the drawn `items` ask, and the same with the answers. are_blocks: of documents, which are both."""
    if are_blocks:
        texts = documents.texts_of(items)
        return texts, texts
    questions = [columns.text_before(item) for item in items]
    return questions, [f"{columns.question_of(item)}\n{columns.answer_of(item)}" for item in items]


def _tested(settings: EvalSettings, data: DataSettings, data_root: str | None) -> tuple[DataSettings, Root]:
    """What of `data` the tasks of `settings` depend on, and where they lie."""
    part = replace(data, limit=None, noise=0.0) if HELD_OUT in settings.tasks else DataSettings()
    return part, cached.root_of(part, data_root)


@functools.lru_cache(HELD)
def _tasks(settings: EvalSettings, data: DataSettings, root: Root, include: IncludedTasks | None) -> scoring.Tasks:
    tasks = scoring.Tasks(settings, root[0], _own(settings, data, root), include)
    tasks.build()
    return tasks


def _own(
    settings: EvalSettings, data: DataSettings, root: Root, likelihoods: bool = True
) -> held_out.HeldOutTask | None:
    return (
        held_out.task(data, cached.splits(data, root[0]), settings.num_fewshot, likelihoods, settings.bertscore)
        if data.load
        else None
    )


@functools.lru_cache(HELD)
def _fingerprint(settings: ModelSettings, state: str) -> str:
    return loading.fingerprint(settings)
