"""What a cell to predict takes of its data, if that and the tokenizer are on this machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from harness import data_files
from harness.job.data import batching, encoding, lengths, sources
from harness.job.models import loading
from harness.job.training import objectives
from harness.record import Cell
from harness.settings import HELD_OUT, DataSettings, ModelSettings

CHARACTERS = 4  # of a token: a rule of thumb for English in vocabularies of 32,000 tokens and more
UNKNOWN = "<unknown>"
CHATML = (  # in place of a model's own template
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class DrawnExamples:
    """The micro-batches of each step as the cell asks for them; of an untuned one, of its validation.

    referred: all that is compared whose log-probabilities under the base its objective asks for, some of it several
    times.
    """

    steps: list[list[list[encoding.Drawn]]]
    referred: list[encoding.Compared]


def draw(cell: Cell, data_root: str | None) -> DrawnExamples | None:
    """The examples of `cell`; None if its data or tokenizer is not on this machine."""
    if not _is_here(cell, data_root) or (tokenizer := _tokenizer(cell.settings.model)) is None:
        return None
    return _drawn(cell, cell.settings.data, data_root, tokenizer)


def draw_by_characters(cell: Cell, data_root: str | None) -> DrawnExamples | None:
    """As `draw`, with CHARACTERS of a text for a token; None if the data are not here, or can't be read so."""
    if not _is_here(cell, data_root):
        return None
    data = replace(cell.settings.data, too_long="cut")  # nothing is refused by a length that is estimated
    try:
        return _drawn(cell, data, data_root, _by_characters())
    except Exception:  # what is wrong with the data is said where a tokenizer reads them; templates fail in many ways
        return None


def _is_here(cell: Cell, data_root: str | None) -> bool:
    """Whether the data are no data set of the hub, or below `data_root`."""
    path = cell.settings.data.load.get("path")
    return path is None or data_root is not None or bool(data_files.behind(Path(path)))


def _drawn(cell: Cell, data: DataSettings, data_root: str | None, tokenizer: PreTrainedTokenizerBase) -> DrawnExamples:
    settings, train, tuned = cell.settings, cell.settings.train.validated(), cell.settings.method.tuned
    splits = sources.splits(data, data_root)
    encode = encoding.encoder(tokenizer, data, train.max_length, train.paired, data_root)
    fitted = lengths.fitted(splits, data, tokenizer, train.max_length, train.paired, train.validation_items, data_root)
    steps = batching.scheduled(fitted.train, train.tuned(), cell.seed, encode) if tuned else []
    held_out = encode(fitted.validation) if train.refers or not tuned else []
    if not tuned:
        size = train.micro_batch
        steps = [[held_out[i : i + size]] for i in range(0, len(held_out), size)]
    if not train.refers:
        return DrawnExamples(steps, [])
    objective = objectives.pairwise(train, valued=False)
    if not tuned:  # the objective says how they are divided
        steps = [[[*part]] for part in objective.parts(encoding.compared(held_out), train.micro_batch)]
    tested = splits["test"][: settings.eval.limit] if tuned and HELD_OUT in settings.eval.tasks else []
    scored = [held_out, encode(tested) if tested else []]
    trained = [encoding.compared(micro) for step in steps for micro in step]
    parts = [part for items in scored for part in objective.parts(encoding.compared(items), train.micro_batch)]
    return DrawnExamples(steps, objective.referred([*trained, *parts]))


def _by_characters() -> PreTrainedTokenizerBase:
    """A tokenizer of which each token is CHARACTERS long, for lengths alone."""
    splitter = Tokenizer(models.WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN))
    splitter.pre_tokenizer = pre_tokenizers.Split(Regex(rf"[\s\S]{{1,{CHARACTERS}}}"), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=splitter, unk_token=UNKNOWN, eos_token=UNKNOWN, chat_template=CHATML
    )


def _tokenizer(model: ModelSettings) -> PreTrainedTokenizerBase | None:
    """The tokenizer of `model`; None if its files are not on this machine."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(loading.source(model), local_files_only=True, **loading.which(model))
        return tokenizer if loading.reads_text(tokenizer) else None
    except Exception:  # without files each family's tokenizer fails in its own way
        return None
