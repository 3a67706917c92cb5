"""The Hydra app behind ``run``, ``sweep``, ``plan`` and ``calibrate``: composes cells, plans a grid, runs each cell.

A named sweep is a config in ``sweeps/`` or its ``published/`` that extends ``conf/config.yaml``; its axes stand under
``hydra.sweeper.params``. The sweeper plans before it launches: every point is composed and checked, equal points
collapse into one cell, recorded cells are skipped. The rest goes to whichever launcher Hydra was given. A sweeper that
tunes (Optuna's) minimises each cell's validation loss.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config_folders import CONF, named_sweeps, offered_sweeps, published_sweeps, require_own_names
from harness.errors import UserError, one_of
from harness.program import PROGRAM
from harness.protocol import PlanCells
from harness.sweep import runner
from harness.sweep.app import messages
from harness.sweep.app.plugins import register
from harness.sweep.app.running import RunPoint
from harness.sweep.app.session import Options, Session

NOT_A_LAUNCH = {"--cfg", "-c", "--hydra-help", "--info", "-i"}
TUNED = "hydra/sweeper"  # in a sweep's defaults
PLACES = {"study", "results_dir", "data_root"}  # settings that say where, and not what to run


@dataclass(frozen=True)
class Arguments:
    """What is typed for Hydra.

    command: ``run``, ``sweep``, ``plan`` or ``calibrate``. settings: overrides; the first may be the name of a sweep
    instead. hydra: options of Hydra's, as typed. config_dir: a further folder of configs (null: none).
    """

    command: str
    settings: list[str]
    hydra: list[str]
    config_dir: str | None


def main(arguments: Arguments, options: Options) -> Session:
    """Run ``run``, ``sweep``, ``plan`` or ``calibrate``; returns what became of it.

    Raises UserError for bad input, KeyboardInterrupt when stopped.
    """
    register()
    require_own_names()
    conf = _primary_folder(arguments.config_dir)
    if arguments.command == "sweep" and not arguments.hydra and _keys(arguments.settings) <= PLACES:
        raise UserError(f"`sweep` requires a grid: KEY=A,B,C, or one of {_offered()}.")
    messages.refuse_slips(arguments.settings)
    launches = not NOT_A_LAUNCH & set(arguments.hydra)
    if options.plan and launches:
        runner.prepare(PlanCells)  # libraries are imported while Hydra composes
    arguments = replace(arguments, settings=[messages.quoted(setting) for setting in arguments.settings])
    name, overrides = _named_sweep(arguments)
    # Without these, Hydra would leave an app.log in the user's folder.
    defaults = {"hydra/job_logging": "none", "hydra/hydra_logging": "none"}
    if options.plan or options.calibrate:
        defaults["hydra/sweeper"] = "grid"
    keys = _keys(overrides)
    overrides += [f"{group}={choice}" for group, choice in defaults.items() if group not in keys]
    hydra_options = [*arguments.hydra, *(["--config-dir", arguments.config_dir] if arguments.config_dir else [])]
    if arguments.command != "run" and launches:
        hydra_options.append("--multirun")
    if threading.current_thread() is threading.main_thread():  # Python lets no other one handle signals
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's stop is as orderly as Ctrl-C
    session = Session(options)
    try:
        with _errors_in_a_sentence(overrides), _help_that_is_no_text():
            for search in _searches(_sweep_file(name, arguments.config_dir), overrides):
                sys.argv = [f"{PROGRAM} {arguments.command}", *search, *hydra_options]
                hydra.main(config_path=str(conf), config_name=name, version_base="1.3")(RunPoint(session))()
    finally:
        if session.progress is not None:
            session.progress.close()
    for outcome in session.outcomes:
        if isinstance(outcome, UserError):
            raise outcome
    return session


@contextmanager
def _help_that_is_no_text() -> Iterator[None]:
    """Lets Hydra 1.3 make its parser, one of whose help texts is an object that becomes text when it is printed.

    argparse reads each help text as it is added since Python 3.14, and refuses such an object.
    """
    if not hasattr(argparse.ArgumentParser, "_check_help"):
        yield
        return
    argparse.ArgumentParser._check_help = lambda parser, action: None  # hides the one that is inherited
    try:
        yield
    finally:
        del argparse.ArgumentParser._check_help


@contextmanager
def _errors_in_a_sentence(overrides: list[str]) -> Iterator[None]:
    """Turns what Hydra raises for bad `overrides` into a UserError; with HYDRA_FULL_ERROR=1 it stays as it is.

    Hydra would print a traceback, or several lines, and exit.
    """
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        if full_error:
            raise
        raise UserError(messages.sentence(error)) from None
    except ValueError:
        messages.require_choices(overrides)
        raise
    except AssertionError:  # OmegaConf's, on a value below one that is null
        messages.require_slots(overrides)
        raise
    except AttributeError as error:  # OmegaConf's, on a dictionary in place of null
        messages.require_dictionary(error)
        raise
    finally:
        if not full_error:
            del os.environ["HYDRA_FULL_ERROR"]


def _keys(overrides: list[str]) -> set[str]:
    return {override.partition("=")[0] for override in overrides}


def composed(*overrides: str) -> DictConfig:
    """The configuration that `overrides` mean, for a command that runs no cell; UserError if they mean none."""
    register()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose("config", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(messages.sentence(error)) from None


def _primary_folder(config_dir: str | None) -> Path:
    """The folder of config.yaml; UserError if there is none."""
    if config_dir is not None and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir must be a folder of config files, got {config_dir}, which is none.")
    for folder in (CONF, *([Path(config_dir).absolute()] if config_dir else [])):
        if (folder / "config.yaml").is_file():
            return folder
    raise UserError(f"There is no {CONF}/config.yaml; name the folder that holds it with --config-dir.")


def _named_sweep(arguments: Arguments) -> tuple[str, list[str]]:
    """The name of the config that is composed, and its overrides."""
    settings = arguments.settings
    if arguments.command == "run" or not settings or "=" in settings[0] or settings[0].startswith(("+", "~")):
        return "config", [*settings]
    name, *overrides = settings
    own = [path.stem for path in Path(arguments.config_dir).glob("*.yaml")] if arguments.config_dir else []
    one_of("sweep", name, sorted({*named_sweeps(), *own}), _offered(*own))
    return name, overrides


def _sweep_file(name: str, config_dir: str | None) -> Path | None:
    """The file of the named sweep; None of ``config``, which is none."""
    own = {path.stem: path for path in Path(config_dir).glob("*.yaml")} if config_dir else {}
    return (named_sweeps() | own).get(name)


def _searches(file: Path | None, overrides: list[str]) -> list[list[str]]:
    """The overrides of one run of Hydra after another: one, but of a tuning sweeper one for each method.

    Such a sweeper would take the method for one more axis of its search, and try the methods unequally often. file: of
    the named sweep, null without one.
    """
    sweepers = [each.partition("=")[2] for each in overrides if each.startswith("hydra/sweeper=")]
    # Unresolved: an entry may name another one's choice, as `eval: ${data}`.
    content: Any = OmegaConf.to_container(OmegaConf.load(file)) if file is not None else {}
    entries = [entry for entry in content.get("defaults", []) if isinstance(entry, dict)]
    named = [str(value) for entry in entries for key, value in entry.items() if TUNED in str(key)]
    methods = next((each.partition("=")[2] for each in overrides if each.startswith("method=")), "")
    if (sweepers or named or ["grid"])[-1] in ("grid", "basic") or "," not in methods:
        return [overrides]
    others = [each for each in overrides if not each.startswith("method=")]
    return [[f"method={method}", *others] for method in methods.split(",")]


def _offered(*own: str) -> str:
    """The named sweeps that a message lists, with the user's `own`, and the number of the published ones."""
    names = ", ".join(sorted({*offered_sweeps(), *own}))
    return f"{names}, and {len(published_sweeps())} of published studies in sweeps/published/"
