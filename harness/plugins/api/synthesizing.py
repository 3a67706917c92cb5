"""``harness synthesize``: the request for a job that has a model write problems, and its summary as lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich import progress

from harness import terminal, units
from harness.errors import UserError
from harness.plugins.api.requests import Synthesize
from harness.protocol import Progress
from harness.settings import DataSettings, EvalSettings
from harness.sweep import app, cells, runner


def synthesize(
    source: str, tasks: list[str] | None, data_root: str | None, out: Path, n: int, **options: Any
) -> dict[str, Any]:
    """Have a model write `n` problems from `source`, a file of items or a data set of conf/data; returns a summary.

    tasks: evaluation tasks whose items are kept out (null: those of the data set). options: the other fields of
    Synthesize. Raises UserError for bad input.
    """
    is_file = Path(source).suffix in (".jsonl", ".json") or Path(source).is_file()
    if is_file and tasks is None:
        raise UserError(
            f"--source {source} requires --eval: the tasks whose items are kept out, such as gsm8k,mmlu, or none."
        )
    if out.exists() and not out.with_suffix(".answers.jsonl").exists():
        raise UserError(f"{out} exists without the answers that it was made from; name another file with --out.")
    config = app.composed(*([] if is_file else [f"data={source}"]))
    settings: Any = OmegaConf.to_container(config, resolve=True)
    evaluation = cells.part(EvalSettings, settings["eval"] | ({} if tasks is None else {"tasks": tasks}))
    shown = terminal.console(to_stderr=True)
    bar = progress.Progress(
        progress.BarColumn(),
        progress.TextColumn("{task.completed} of {task.total} problems, {task.fields[asked]} asked"),
    )
    task = bar.add_task("", total=n, asked=0)

    def follow(event: Progress) -> None:
        counts = event.other or {}
        if "kept" in counts:
            bar.update(task, completed=counts["kept"])
        elif "asked" in counts:
            bar.update(task, asked=counts["asked"])

    on_terminal = terminal.live(shown, get_renderable=bar.get_renderable) if shown.is_terminal else nullcontext()
    with on_terminal:
        return runner.ask(
            Synthesize(
                file=str(Path(source).absolute()) if is_file else None,
                data=None if is_file else cells.part(DataSettings, settings["data"]),
                eval=evaluation,
                data_root=data_root and str(Path(data_root).expanduser().absolute()),
                out=str(out.absolute()),
                n=n,
                **options,
            ),
            follow,
            "The job that asks for problems",
        )


def lines(summary: dict[str, Any], out: Path) -> Iterator[str]:
    """The summary for a terminal."""
    kinds = ", ".join(f"{n} {kind}" for kind, n in summary["kept_by_kind"].items()) or "none"
    kept, asked = units.plural(summary["kept"], "problem"), units.plural(summary["asked"], "answer")
    yield f"{out}: {kept} ({kinds}) of {asked} by {summary['model']}."
    if bare := summary["kept_without_checked_steps"]:
        yield f"{bare} of them have no calculation that could be checked."
    rejected = ", ".join(f"{found['count']} {reason}" for reason, found in summary["rejected"].items())
    yield f"Rejected: {rejected or 'none'}; {out.with_suffix('.report.json')} has examples."
    evaluation = ", ".join(summary["evaluation"])
    yield f"Kept out: {evaluation}." if evaluation else "No evaluation was kept out."
    for name, which in (("tokens_of_this_call", "This call"), ("tokens", "All calls")):
        told = summary[name]
        spent = "unknown"
        if told["read"] is not None:
            spent = f"{units.plural(told['read'], 'token')} read, {told['written']:,} written"
        yield f"{which}: {units.plural(told['answers'], 'answer')}, {spent}."
