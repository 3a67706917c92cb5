"""The model card of saved weights, made from their record: what they are, how they score, what they cost, how to load.

It says what the record says and nothing beside it; of licences the record knows nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from harness import redact, units
from harness.record import Record
from harness.settings import plain

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
EMBEDDED = re.compile(r"[\w.-]+")  # a name that is safe in a shell
AUTO_CLASS = re.compile(r"AutoModel\w+", re.ASCII)
WHAT = {"adapter": "adapter", "merged": "model with its adapter merged in", "model": "whole model", "gguf": "model"}
SCORES = ("Task", "Metric", "Filter", "Score", "± one standard error", "Items", "Shots", "Version")
LIBRARY = {"adapter": "peft", "merged": "transformers", "model": "transformers", "gguf": "gguf"}

ADAPTER = """\
from peft import PeftModel
from transformers import {auto}, AutoTokenizer

base = {auto}.from_pretrained({base})
model = PeftModel.from_pretrained(base, "FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
"""
WHOLE = """\
from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
"""
GGUF = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", gguf_file={file})
tokenizer = AutoTokenizer.from_pretrained("FOLDER", gguf_file={file})
"""
TEXT = "AutoModelForCausalLM"  # the class that loads models of text, where a record names no other
USE = {"adapter": ADAPTER, "merged": WHOLE, "model": WHOLE, "gguf": GGUF}


def text(record: Record, form: str | None = None) -> str:
    """The card, as Markdown with a head of YAML that the hub reads.

    form: of the weights that it lies beside, a key of USE; null for the saved ones. Raises ValueError if it is null and
    the record has none.
    """
    if form is None:
        if record.saved is None:
            raise ValueError(f"{record.cell.name} has no saved weights")
        form = record.saved.form
    cell, base, (_, revision) = record.cell, base_name(record), base_of(record)
    named = json.dumps(base if on_hub(record) else "BASE") + (f", revision={json.dumps(revision)}" if revision else "")
    use = USE[form].format(base=named, file=json.dumps(f"{cell.name}.gguf"), auto=_auto_class(record))
    parts = [
        _head(record, form),
        f"# {one_line(cell.name)}\n",
        f"The {WHAT[form]} that `{one_line(cell.method)}` made of `{one_line(base)}` by training on "
        f"`{one_line(cell.data)}`. This card was made from the record `{one_line(cell.name)}.json` of the study "
        f"`{one_line(record.study)}`; nothing "
        "in it was written by hand.\n",
        "## Use\n",
        f"```python\n{use}```\n",
        *(_whence(record) if form == "adapter" else ()),
        *_quantised(record, form),
        "## Training\n",
        _table(("What", "Value"), _training(record)),
        "## Scores\n",
        _table(SCORES, _scores(record)),
        "Scores are fractions of 1 where they are shares, and losses where lower is better.\n",
        "## Cost\n",
        _table(("What", "Value"), _cost(record)),
        "## Made with\n",
        _table(("What", "Version"), _versions(record.environment)),
        "## Licence\n",
        "None is given here: what may be done with these weights follows from the licences of the base model and of "
        "the data, which the record does not know.\n",
    ]
    return redact.redact("\n".join(parts))


def tuned_from(record: Record) -> str:
    """The path or the hub's name of the base model; the model's own name if it is behind an API."""
    return record.cell.settings.model.path or record.cell.model


def on_hub(record: Record) -> bool:
    """Whether the base model is one of the hub: its fingerprint then has the hub's name, else a hash."""
    base = tuned_from(record)
    if (fingerprint := record.fingerprints.get("model")) is None:
        return HUB_ID.fullmatch(base) is not None
    return fingerprint.rpartition("@")[0] == base


def base_name(record: Record) -> str:
    """What the base model is called where others read it: of a folder of this machine its last part alone."""
    base = tuned_from(record)
    return base if on_hub(record) or base.startswith("embedded:") else Path(base).name


def base_of(record: Record) -> tuple[str | None, str | None]:
    """The path of the base model as its settings name it (None behind an API), and its commit if it is the hub's."""
    model = record.cell.settings.model
    name, _, commit = record.fingerprints.get("model", "").rpartition("@")
    return model.path, commit if name == model.path else model.revision


def _head(record: Record, form: str) -> str:
    source = record.cell.settings.data.load.get("path")
    metadata: dict[str, Any] = {"library_name": LIBRARY[form], "pipeline_tag": "text-generation"}
    if on_hub(record):
        metadata["base_model"] = tuned_from(record)
        # The hub would take a GGUF for its base in another number format.
        metadata["base_model_relation"] = "adapter" if form == "adapter" else "finetune"
    if isinstance(source, str) and HUB_ID.fullmatch(source) and not record.cell.settings.data.own:
        metadata["datasets"] = [source]
    metadata["tags"] = [record.cell.method]
    return "\n".join(["---", *(f"{key}: {as_yaml(value)}" for key, value in metadata.items()), "---", ""])


def as_yaml(value: Any) -> str:
    """`value` in a line of YAML: JSON, but with characters as they are, as YAML does not join surrogates."""
    return json.dumps(value, ensure_ascii=False)


def _auto_class(record: Record) -> str:
    """The class of transformers that loads the base model. Readers run the card, so it may be no other code."""
    name = str(record.environment.get("auto_class", TEXT))
    return name if AUTO_CLASS.fullmatch(name) else TEXT


def _whence(record: Record) -> Iterator[str]:
    """What stands for BASE, which is on no hub."""
    if on_hub(record):
        return
    kind, _, name = tuned_from(record).partition(":")
    if kind == "embedded" and EMBEDDED.fullmatch(name):
        prints = f"python -c 'from harness.job.models import embedded; print(embedded.folder(\"{name}\"))'"
        yield f"BASE is the folder that `{prints}` prints, with finetune-harness installed.\n"
    else:
        yield "BASE is the folder of the base model.\n"
    if _auto_class(record) != TEXT:
        return  # peft finds models of text alone
    yield (
        'On the machine that trained it, `AutoPeftModelForCausalLM.from_pretrained("FOLDER")` finds it by the path in '
        "`adapter_config.json`.\n"
    )


def _quantised(record: Record, form: str) -> Iterator[str]:
    if (bits := record.cell.settings.method.bits) is None:
        return
    if form == "adapter":
        yield f"It was trained and scored on a base quantised to {bits} bits; on the full base it is another model.\n"
    else:
        yield (
            f"Its base was quantised to {bits} bits for training, and scored so; these are its weights expanded, which "
            "is the same model up to rounding.\n"
        )


def _training(record: Record) -> Iterator[tuple[str, str]]:
    cell, settings = record.cell, record.cell.settings
    yield "base model", f"`{base_name(record)}`, {record.fingerprints.get('model', 'no fingerprint')}"
    yield "method", cell.method
    axes = {"rank": cell.rank, "alpha": cell.alpha, "learning rate": cell.lr, "seed": cell.seed} | cell.knobs
    yield from ((name, _said(value)) for name, value in axes.items() if value is not None)
    if settings.method.adapt:
        yield from ((f"adapt.{key}", _said(value)) for key, value in settings.method.adapt.items())
    yield "data", f"{cell.data}, {record.fingerprints.get('data', 'no fingerprint')}"
    yield "prompt", f"`{settings.data.prompt or ''!r}`"
    yield from ((f"train.{key}", _said(value)) for key, value in plain(settings.train).items())
    if train := record.train:
        yield "steps", str(train.steps)
        yield "tokens", f"{train.tokens.raw:,} raw, {train.tokens.supervised or 0:,} of them in the loss"
    if record.validation:
        yield "validation loss", f"{record.validation[-1].loss:.4g} nats per {settings.loss_term}"
    yield "precision", str(record.environment.get("precision"))


def _scores(record: Record) -> Iterator[tuple[str, ...]]:
    for s in record.scores:
        error = "–" if s.stderr is None else f"{s.stderr:.4g}"
        yield s.task, s.metric, s.filter, f"{s.value:.4g}", error, str(s.n), str(s.num_fewshot), s.version


def _cost(record: Record) -> Iterator[tuple[str, str]]:
    if record.parameters:
        share = record.parameters.trainable / record.parameters.total
        yield "trained weights", f"{units.count(record.parameters.trainable)} ({100 * share:.3g}% of all)"
    if record.probe:
        yield "peak memory of tensors in a training step", units.size(record.probe.peak.total)
    if rate := record.tokens_per_second:
        yield "training speed", f"{units.significant(rate, 3)} tokens/s"
    yield "time of the whole job", f"{record.seconds:.0f} s"
    device, cpu = record.environment.get("device") or {}, record.environment.get("cpu") or {}
    yield "device", str(device.get("name") or cpu.get("name") or device.get("type"))


def _versions(environment: dict[str, Any]) -> Iterator[tuple[str, str]]:
    versions, git = environment.get("versions") or {}, environment.get("git") or {}
    if git.get("commit"):
        yield "finetune-harness", git["commit"][:12] + (" and changes" if git.get("dirty") else "")
    yield from ((name, str(version)) for name, version in versions.items() if version)


def one_line(text: str) -> str:
    """`text` as what can't end a line, or the code that it stands in."""
    return re.sub(r"[\s`]+", " ", text)


def _said(value: Any) -> str:
    return f"`{value}`" if isinstance(value, str) else json.dumps(value)


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    cells = [tuple(text.replace("|", "\\|").replace("\n", " ") for text in row) for row in rows]
    if not cells:
        return "Nothing was measured.\n"
    lines = [header, ("---",) * len(header), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
