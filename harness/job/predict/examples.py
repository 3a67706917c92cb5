"""What a cell to predict takes of its data, if that and the tokenizer are on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from harness import data_files
from harness.job.data import batching, encoding, lengths, sources
from harness.job.models import loading
from harness.job.training import loop, objectives
from harness.record import Cell
from harness.settings import HELD_OUT, ModelSettings


@dataclass(frozen=True)
class DrawnExamples:
    """The micro-batches of each step as the cell asks for them; of an untuned one, of its validation.

    referred: all pairs whose log-probabilities under the base its objective asks for, some of them several times.
    """

    steps: list[list[list[encoding.Drawn]]]
    referred: list[encoding.Pair]


def draw(cell: Cell, data_root: str | None) -> DrawnExamples | None:
    """The examples of `cell`; None if its data or tokenizer is not on this machine."""
    settings, train, tuned = cell.settings, cell.settings.train.validated(), cell.settings.method.tuned
    path = settings.data.load.get("path")
    if path is not None and data_root is None and not data_files.behind(Path(path)):
        return None  # a hub data set
    if (tokenizer := _tokenizer(settings.model)) is None:
        return None
    splits = sources.splits(settings.data, data_root)
    encode = encoding.encoder(tokenizer, settings.data, train.max_length, train.paired)
    fitted = lengths.fitted(splits, settings.data, tokenizer, train.max_length, train.paired, train.validation_items)
    steps = batching.scheduled(fitted.train, train.tuned(), cell.seed, encode) if tuned else []
    held_out = encode(fitted.validation) if train.refers or not tuned else []
    if not tuned:
        size = train.micro_batch
        steps = [[held_out[i : i + size]] for i in range(0, len(held_out), size)]
    if not train.refers:
        return DrawnExamples(steps, [])
    tested = splits["test"][: settings.eval.limit] if tuned and HELD_OUT in settings.eval.tasks else []
    scored = [held_out, encode(tested) if tested else []]
    trained = [micro for step in steps for micro in step]
    together = [*trained, *(part for pairs in scored for part in loop.parts(pairs, train.micro_batch))]
    batches = [[pair for pair in batch if isinstance(pair, encoding.Pair)] for batch in together]
    return DrawnExamples(steps, objectives.pairwise(train, valued=False).referred(batches))


def _tokenizer(model: ModelSettings) -> PreTrainedTokenizerBase | None:
    """The tokenizer of `model`; None if its files are not on this machine."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(loading.source(model), local_files_only=True, **loading.which(model))
        return tokenizer if loading.reads_text(tokenizer) else None
    except Exception:  # without files each family's tokenizer fails in its own way
        return None
