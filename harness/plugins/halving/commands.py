"""What the help of `sweep` says of early ends."""

from __future__ import annotations

from harness.cli.parser import CommandLine


def add(root: CommandLine) -> None:
    sweep = root.command("sweep")
    early = "stop=asha ends hopeless cells early, which pays with ten settings a method or more."
    sweep.description = f"{sweep.description} {early}"
