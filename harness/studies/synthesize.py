"""``python -m harness synthesize``: what a command line asks for, put into words for a job, and its answer as lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from tqdm import tqdm

from harness import record
from harness.errors import UserError
from harness.settings import DataSettings, EvalSettings
from harness.sweep import app, cells, runner


def synthesize(
    source: str, tasks: list[str] | None, data_root: str | None, out: Path, n: int, **asking: Any
) -> dict[str, Any]:
    """Have `n` problems made from `source`, a file of items or a data set of conf/data; the summary of what came.

    tasks: of the evaluation whose items are kept out; null for that of the data set. asking: the other fields of
    ``harness.job.data.generators.synthesis.Asking``. Raises UserError if anything of it can't be.
    """
    is_file = Path(source).suffix in (".jsonl", ".json") or Path(source).is_file()
    if is_file and tasks is None:
        raise UserError(
            f"Say what is to be kept out of problems made from {source}: --eval gsm8k,mmlu, or --eval none for nothing."
        )
    if out.exists() and not out.with_suffix(".answers.jsonl").exists():
        raise UserError(f"{out} is there, and no answers beside it that it was made of; name another file with --out.")
    config = app.composed(*([] if is_file else [f"data={source}"]))
    settings = OmegaConf.to_container(config, resolve=True)
    evaluation = cells.part(EvalSettings, settings["eval"] | ({} if tasks is None else {"tasks": tasks}))
    with tqdm(total=n, unit="problem", disable=None) as bar:

        def follow(event: dict) -> None:
            if "kept" in event:
                bar.update(event["kept"] - bar.n)
            elif "asked" in event:
                bar.set_postfix(asked=event["asked"])

        return runner.synthesize(
            {
                "file": str(Path(source).absolute()) if is_file else None,
                "data": None if is_file else record.encode(cells.part(DataSettings, settings["data"])),
                "eval": record.encode(evaluation),
                "data_root": data_root,
                "out": str(out.absolute()),
                "n": n,
                **asking,
            },
            follow,
        )


def lines(summary: dict[str, Any], out: Path) -> Iterator[str]:
    """What came of it, for a terminal."""
    kinds = ", ".join(f"{n} {kind}" for kind, n in summary["kept_by_kind"].items()) or "none"
    yield f"{out}: {summary['kept']} problems ({kinds}) of {summary['asked']} answers by {summary['model']}."
    if bare := summary["kept_without_checked_steps"]:
        yield f"In {bare} of them there was no calculation that could be checked."
    rejected = ", ".join(f"{found['count']} {reason}" for reason, found in summary["rejected"].items())
    yield f"Rejected: {rejected or 'none'}; {out.with_suffix('.report.json')} has examples."
    evaluation = ", ".join(summary["evaluation"])
    yield f"Kept out of it: {evaluation}." if evaluation else "It was held against no evaluation."
    for name, which in (("tokens_of_this_call", "This call"), ("tokens", "All calls")):
        told = summary[name]
        spent = f"{told['read']:,} tokens read, {told['written']:,} written" if told["read"] is not None else "unknown"
        yield f"{which}: {told['answers']} answers, {spent}."
