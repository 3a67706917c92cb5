"""The Hydra app behind ``run``, ``sweep`` and ``plan``: composes cells, plans a grid, runs each cell.

A named sweep is a config in ``sweeps/`` that extends ``conf/config.yaml``; its axes stand under
``hydra.sweeper.params``. The sweeper plans before it launches: every point is composed and checked, equal points
collapse into one cell, recorded cells are skipped. The rest goes to whichever launcher Hydra was given. A sweeper that
tunes (Optuna's) minimises each cell's validation loss.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

import hydra
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from harness import units
from harness.config import CONF, SWEEPS
from harness.errors import UserError, one_of
from harness.sweep.app import messages
from harness.sweep.app.plugins import register
from harness.sweep.app.point import RunPoint
from harness.sweep.app.session import Options, Session

NOT_A_LAUNCH = {"--cfg", "-c", "--help", "-h", "--hydra-help", "--info", "-i", "--shell-completion", "-sc", "--version"}


def main(command: str, arguments: list[str]) -> int:
    """Run ``run``, ``sweep`` or ``plan`` with Hydra's arguments; returns the exit status (1 if a cell failed).

    Raises UserError for bad input, KeyboardInterrupt when stopped.
    """
    register()
    name = "config"
    options, arguments = _ours(command, arguments)
    session = Session(options)
    ours = {"hydra/job_logging": "none", "hydra/hydra_logging": "none"}  # else an app.log appears in the user's folder
    if command in ("sweep", "plan"):
        if arguments and "=" not in arguments[0] and not arguments[0].startswith(("-", "+", "~")):
            name, *arguments = arguments
            one_of("sweep", name, sorted(path.stem for path in SWEEPS.glob("*.yaml")))
        if command == "plan":
            ours["hydra/sweeper"] = "grid"
        if not any(a.partition("=")[0] in NOT_A_LAUNCH for a in arguments):
            arguments = [*arguments, "--multirun"]
    overrides, hydra_options = _split(command, arguments)
    given = {o.partition("=")[0] for o in overrides}
    overrides += [f"{group}={choice}" for group, choice in ours.items() if group not in given]
    sys.argv = [f"python -m harness {command}", *overrides, *hydra_options]

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's stop is as orderly as Ctrl-C
    # Hydra prints a traceback, or several lines, and exits; the user gets one sentence from us instead.
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra.main(config_path=str(CONF), config_name=name, version_base="1.3")(RunPoint(session))()
    except (HydraException, OmegaConfBaseException) as error:
        if full_error:
            raise
        raise UserError(messages.sentence(error)) from None
    except ValueError:
        messages.require_choices(overrides)
        raise
    finally:
        if not full_error:
            del os.environ["HYDRA_FULL_ERROR"]
        if session.progress is not None:
            session.progress.close()
    for outcome in session.outcomes:
        if isinstance(outcome, UserError):
            raise outcome
    return int(any(outcome.status != "ok" for outcome in session.outcomes))


def composed(*overrides: str) -> DictConfig:
    """The configuration that `overrides` mean, for a command that runs no cell; UserError if they mean none."""
    register()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose("config", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(messages.sentence(error)) from None


def _ours(command: str, arguments: list[str]) -> tuple[Options, list[str]]:
    """The options that are ours, and the arguments left for Hydra; UserError for a bad one."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)

    def refuse(message: str):
        raise UserError(f"{message}; `python -m harness --help` shows the options of {command}.")

    parser.error = refuse
    if command == "plan":
        parser.add_argument("--throughput", type=float)
    if command == "sweep":
        parser.add_argument("--fit", action="store_true")
    parser.add_argument("--budget", type=units.parse_budget)
    parser.add_argument("--device")
    found, rest = parser.parse_known_args(arguments)
    plan, fit = command == "plan", getattr(found, "fit", False)
    memory, dollars = found.budget, None
    if isinstance(memory, units.Dollars):
        memory, dollars = None, memory
    if memory is not None and not plan and not fit:
        raise UserError(
            "--budget in bytes is for `plan` and `sweep --fit`; add --fit to skip cells that do not fit, or name a "
            "sum of money, as 5USD, for what models behind an API may cost."
        )
    if found.device is not None:
        one_of("--device", found.device, ["cpu", "cuda"])
        if not plan and not fit:
            raise UserError("--device is for `plan` and `sweep --fit`; cells run on the device that is here.")
    throughput = getattr(found, "throughput", None)
    if throughput is not None and not throughput > 0:
        raise UserError(f"--throughput must be positive, got {throughput}.")
    return Options(plan, fit, memory, dollars, found.device, throughput), rest


def _split(command: str, arguments: list[str]) -> tuple[list[str], list[str]]:
    """The overrides and the options among `arguments`; UserError where Hydra's parser would exit with its usage."""

    def refuse(message: str):
        raise UserError(f"{message}; `python -m harness {command} --hydra-help` lists the options.")

    parser = get_args_parser()
    parser.error = refuse
    overrides = parser.parse_intermixed_args(arguments).overrides
    return overrides, [a for a in arguments if a not in overrides]
