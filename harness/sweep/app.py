"""The Hydra app behind ``run`` and ``sweep``: composes cells, plans a grid, has each cell run. The only Hydra entry.

A named sweep is a config in ``sweeps/`` that extends ``conf/config.yaml``; its axes stand under
``hydra.sweeper.params``. The sweeper here plans before it launches: every point is composed and checked,
equal points collapse into one cell, recorded cells are left out. What remains goes to whichever launcher
Hydra was given. A sweeper that tunes (Optuna's) gets each cell's validation loss to minimise.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import importlib.util
import itertools
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from harness import config as settings_of
from harness import record, units
from harness.config import CONF, SWEEPS, Config, one_of
from harness.errors import UserError, about_file
from harness.record import Cell, Failure, Record, RecordError, behind_api, device_count
from harness.sweep import api_cost, micro_batch, planner, runner
from harness.sweep import cells as cells_of
from harness.sweep.launchers import lost_workers
from harness.sweep.launchers.local_parallel import LocalParallel, enough
from harness.sweep.launchers.lost_workers import Lost
from harness.sweep.lease import Claim, Held
from harness.sweep.progress import Progress, following
from harness.sweep.store import Study

# Hydra instantiates no sweeper from outside the package hydra_plugins, so this module poses as one of its modules.
PLUGINS = "hydra_plugins.harness"
# The extra that brings a choice of a config group which a plugin adds.
EXTRAS = {
    ("hydra/sweeper", "optuna"): "optuna",
    ("hydra/launcher", "submitit_local"): "slurm",
    ("hydra/launcher", "submitit_slurm"): "slurm",
    ("hydra/launcher", "ray"): "ray",
}
NOT_A_LAUNCH = {"--cfg", "-c", "--help", "-h", "--hydra-help", "--info", "-i", "--shell-completion", "-sc", "--version"}


@dataclass
class Options:
    """What a command line asks for beside Hydra's settings.

    plan: predict and launch nothing; fit: leave out what is predicted not to fit. budget: bytes, null for this
    machine's device; device: whose kernels are planned for, null for a GPU's if the budget is one's; money: dollars
    that may be spent, null for any; throughput: raw tokens/s, null for what records say.
    """

    planner: bool = False
    fit: bool = False
    budget: int | None = None
    device: str | None = None
    money: float | None = None
    throughput: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a cell came to: its record's status, and its last validation loss, which is its value to be minimised."""

    status: str
    loss: float | None

    def __float__(self) -> float:
        if self.loss is None:
            raise ValueError(f"a cell that ended as {self.status} has no validation loss")
        return self.loss


_options = Options()
_progress: Progress | None = None  # of the sweep that this process runs; None in a launcher's worker process
_outcomes: list[Outcome | UserError] = []  # of the cells that this process ran or had run; why, if one was refused
_known: dict[str, Record | None] = {}  # by id of the cells that this process is to run, their records when it planned


class SweepsOnSearchPath(SearchPathPlugin):
    def manipulate_search_path(self, search_path) -> None:
        search_path.append("sweeps", f"file://{SWEEPS}")


class GridSweeper(Sweeper):
    """Plans the product of all axes, then hands the points that are left to the launcher."""

    __module__ = PLUGINS

    # `plan` puts it in the place of whichever a sweep names.
    def __init__(self, params: dict[str, Any] | None, candidates: list[str] | None = None, **_):
        self._params, self._candidates = params, candidates

    def setup(self, *, hydra_context, task_function, config) -> None:
        self.config, self._loader = config, hydra_context.config_loader
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list:
        asked = grid(self._params, self._candidates, arguments)
        if _options.plan:
            self._predict(asked)
            return []
        study, left = self._plan(asked)
        if not left:
            return []
        returns = self._all_run(study, left)
        outcomes = [job.return_value for job in returns]
        _outcomes.extend(outcomes)
        statuses = ["refused" if isinstance(o, UserError) else o.status for o in outcomes]
        counts = ", ".join(f"{statuses.count(s)} {s}" for s in sorted(set(statuses)))
        print(f"Done: {counts}. `python -m harness table` renders the table.", file=sys.stderr)
        return returns

    def _all_run(self, study: Study, left: list[tuple[Cell, list[str]]]) -> list[JobReturn]:
        """Have all cells run, first those that no other sweep runs; what others leave undone is run when they end."""
        returns, held = [], []
        while left:
            launched = self._launched(study, left, len(returns))
            held += [pair for pair, job in zip(left, launched, strict=True) if isinstance(job.return_value, Held)]
            returns += [job for job in launched if not isinstance(job.return_value, Held)]
            if not held:
                break
            cells = [cell for cell, _ in held]
            print(f"Waiting for other sweeps to end {', '.join(c.name for c in cells)}.", file=sys.stderr)
            free = study.wait(cells)
            left, held = [p for p in held if p[0] in free], [p for p in held if p[0] not in free]
        return returns

    def _launched(self, study: Study, left: list[tuple[Cell, list[str]]], first: int) -> Sequence[JobReturn]:
        """What came of all of `left`; UserError if the launcher can't run them (there is no Slurm here, or no Ray).

        first: the number of the first of them among all that the launcher is given.
        """
        points = [point for _, point in left]
        if type(self._launcher).__name__ == "BasicLauncher":  # of a class that Hydra's scan for plugins made anew
            return self._launcher.launch(points, initial_job_idx=first)
        try:
            with following(study, [cell for cell, _ in left], _progress), lost_workers.heard_of(self._launcher):
                jobs = self._launcher.launch(points, initial_job_idx=first)
        except KeyboardInterrupt:
            if type(self._launcher).__name__ == "SlurmLauncher":
                name = self.config.hydra.launcher.name
                print(f"What Slurm holds goes on there; `scancel --name={name}` ends it.", file=sys.stderr)
            raise
        except Exception as error:
            if isinstance(self._launcher, LocalParallel):
                raise
            raise UserError(f"{type(self._launcher).__name__} broke off: {_first_line(error)}") from error
        for (cell, _), job in zip(left, jobs, strict=True):
            if isinstance(job.return_value, Lost):
                why = job.return_value.why
                print(f"{cell.name} is lost: its worker {why}. The same command runs it again.", file=sys.stderr)
                job.return_value = Outcome("lost", None)
        return jobs

    def _plan(self, asked: list[list[str]]) -> tuple[Study, list[tuple[Cell, list[str]]]]:
        """Where to, and the cells to run, each with its point: equal ones once, recorded ones not at all.

        Raises UserError if a point can't work.
        """
        for key in ("study", "results_dir", "data_root"):
            if len({o for point in asked for o in point if o.startswith(f"{key}=")}) > 1:
                raise UserError(f"{key} can't be swept over: a sweep is one study; run one sweep for each {key}.")
        wanted: dict[str, tuple[Cell, list[str]]] = {}
        architectures: dict[str, dict[str, Any]] = {}
        asking: dict[str, dict[str, Any]] = {}
        for point in asked:
            composed = self._compose(point)
            cell = cells_of.from_config(composed)
            wanted.setdefault(cell.id, (cell, point))
            architectures |= _architecture(composed, point)
            asking |= _asking(cell, composed)
        study = _study(composed)
        left, bare = [], []
        for cell, point in wanted.values():
            found = study.recorded(cell)
            if _to_run(found, composed):
                left.append((cell, point))
                _known[cell.id] = found
            elif found.status == "ok":  # the job removes them, unless it was killed at that moment
                shutil.rmtree(study.checkpoints(cell), ignore_errors=True)
                bare += [found] if _bare(found, study, composed.save) else []
        _announce(study, len(asked), len(wanted), len(left))
        _say_bare(bare, study, composed.save)
        if left:
            if type(self._launcher).__name__ in ("BasicLauncher", "LocalParallel"):  # others run cells elsewhere
                enough(max(device_count(cell.settings) for cell, _ in left))
            _check([cell for cell, _ in left], composed.data_root, asking)
            study.plan(cell for cell, _ in wanted.values())
            if _options.fit:
                left = _fitting(left, architectures, study, composed.data_root)
            global _progress
            _progress = Progress(len(left))
        return study, left

    def _compose(self, point: list[str]) -> DictConfig:
        composed = self._loader.load_sweep_config(self.config, point)
        with flag_override(composed, ["struct", "readonly"], False):
            del composed["hydra"]  # it has values that only a launched job fills in
        return composed

    def _predict(self, asked: list[list[str]]) -> None:
        """Print what the points would take; one that can't be is a line with its reason."""
        planned: dict[str, tuple[str, Cell | str]] = {}
        elsewhere: dict[str, Cell] = {}
        architectures: dict[str, dict[str, Any]] = {}
        asking: dict[str, dict[str, Any]] = {}
        for point in asked:
            composed = self._compose(point)
            architectures |= _architecture(composed, point)
            try:
                cell = cells_of.from_config(composed)
            except UserError as error:
                planned.setdefault(str(error), (" ".join(point), str(error)))
                continue
            if behind_api(cell):
                elsewhere[cell.id] = cell
                asking |= _asking(cell, composed)
            else:
                planned.setdefault(cell.id, (cell.name, cell))
        if elsewhere:
            _check(list(elsewhere.values()), composed.data_root, asking)
        if not planned:
            return
        made = planner.make(list(planned.values()), architectures, composed.data_root, _options.budget, _options.device)
        results = Path(composed.results_dir).expanduser()
        print("\n".join(planner.lines(made, results, _options.throughput)))


def _architecture(config: DictConfig, point: list[str]) -> dict[str, dict[str, Any]]:
    """The dimensions that the model's file ships, by its name; none where the point names another model by its path."""
    given = {override.partition("=")[0] for override in point}
    if config.model.architecture is None or ("model.path" in given and "model.architecture" not in given):
        return {}
    return {config.model.name: OmegaConf.to_container(config.model.architecture, resolve=True)}


def _asking(cell: Cell, config: DictConfig) -> dict[str, dict[str, Any]]:
    """How the cell's model is asked, by the cell's id; nothing if it is not behind an API."""
    how = api_cost.asking(cell, config, _study(config))
    return {} if how is None else {cell.id: how}


def _check(cells: list[Cell], data_root: str | None, asking: dict[str, dict[str, Any]]) -> None:
    """Raise UserError if one of `cells` can't be run, or if asking what is behind an API would cost too much."""
    counts = runner.check(cells, data_root, asking)
    api_cost.told(api_cost.estimates(cells, asking, counts), _options.money)


def _fitting(
    left: list[tuple[Cell, list[str]]], architectures: dict[str, dict[str, Any]], study: Study, data_root: str | None
) -> list[tuple[Cell, list[str]]]:
    """Those of `left` that are predicted to fit; the others are recorded as unfit."""
    fitting = [pair for pair in left if behind_api(pair[0])]  # which take no memory here
    left = [pair for pair in left if pair not in fitting]
    if not left:
        return fitting
    made = planner.make(
        [(cell.name, cell) for cell, _ in left], architectures, data_root, _options.budget, _options.device
    )
    for point, (cell, overrides) in zip(made.points, left, strict=True):
        if made.fits(point):
            fitting.append((cell, overrides))
            continue
        reason = planner.refusal(made, point)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        failure = Failure("plan", None, reason)
        unfit = Record(cell, study.name, "unfit", now, 0.0, made.environment, failure)
        with contextlib.suppress(Held), study.claim(cell):  # another sweep may have a larger budget for it
            if study.recorded(cell) == _known[cell.id]:
                record.write(unfit, study.path(cell))
        print(f"{cell.name} is left out. {reason}", file=sys.stderr)
    return fitting


def grid(params: dict[str, Any] | None, candidates: list[str] | None, arguments: Sequence[str]) -> list[list[str]]:
    """The points of a sweep's axes, once for each candidate; what `arguments` give a key goes before both.

    candidates: overrides that belong together, such as ``method=base model=tiny``.
    """
    axes = [f"{key}={values}" for key, values in (params or {}).items()]
    return [point for line in candidates or [""] for point in points([*shlex.split(line), *axes, *arguments])]


def points(overrides: list[str]) -> list[list[str]]:
    """All combinations of the values that `overrides` give their keys; a later override of a key replaces it."""
    axes: dict[str, list[str]] = {}
    for override in OverridesParser.create().parse_overrides(overrides):
        key = override.get_key_element()
        if not override.is_sweep_override():
            axes[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            axes[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise UserError(f"{override.input_line} is no list of values; a grid takes key=a,b,c.")
    return [list(point) for point in itertools.product(*axes.values())]


def _announce(study: Study, points: int, cells: int, left: int) -> None:
    same = "" if cells == points else f" ({points} points of the grid, equal ones run once)"
    print(f"{study.name}: {cells} cells{same}, {cells - left} recorded, {left} to run.", file=sys.stderr)


def _study(config: DictConfig) -> Study:
    return Study(Path(config.results_dir).expanduser(), config.study)


def _task(config: DictConfig) -> Outcome | UserError:
    """What Hydra calls for each point, here or in a launcher's worker.

    A cell that is refused returns why instead of raising it: Hydra would print lines of its own, and end the sweep.
    """
    settings_of.register_resolvers()
    try:
        os.chdir(HydraConfig.get().runtime.cwd)  # a worker may have been started in another folder
        return _run(config)
    except Held as error:
        refusal = Held(str(error))
    except (UserError, RecordError) as error:
        refusal = UserError(str(error))
    except OmegaConfBaseException as error:
        refusal = UserError(_sentence(error))
    except OSError as error:
        if error.filename is None:
            raise  # not about a file of the user's
        refusal = UserError(about_file(error))
    if _progress is None:
        _outcomes.append(refusal)
    return refusal


def _run(config: DictConfig) -> Outcome:
    cell, study = cells_of.from_config(config), _study(config)
    # A record that came after the plan is another sweep's, made at the same time, and no cell is to be run by both.
    known = _known[cell.id] if cell.id in _known else study.recorded(cell)
    if _to_run(known, config):
        with study.claim(cell) as claim:
            found = study.recorded(cell)
            if found is None or found == known:
                return _outcome(_launch(cell, study, claim, config))
    else:
        found = known
    print(f"{cell.name} is recorded in {study.path(cell)} ({found.status}).", file=sys.stderr)
    if _bare(found, study, config.save):
        _say_bare([found], study, config.save)
    if _progress is None:
        _outcomes.append(_outcome(found))
    else:
        _progress.skip()
    return _outcome(found)


def _launch(cell: Cell, study: Study, claim: Claim, config: DictConfig) -> Record:
    asking = _asking(cell, config)
    if asking and _progress is None:
        _check([cell], config.data_root, asking)
    progress = _progress or Progress(1)
    progress.start(cell)
    try:
        # A planned sweep has warned when it checked its cells.
        found = runner.run(
            cell,
            study,
            claim,
            config.data_root,
            progress.update,
            settings_of.precautions(config),
            warn=_progress is None,
            save=config.save,
            tracker=config.tracker,
            asking=asking.get(cell.id),
        )
    finally:
        progress.clear()
    progress.end(found)
    if _progress is None:
        progress.close()
        _outcomes.append(_outcome(found))
        _tell(found)
    return found


def _outcome(found: Record) -> Outcome:
    return Outcome(found.status, found.validation[-1].loss if found.status == "ok" and found.validation else None)


def _to_run(found: Record | None, config: DictConfig) -> bool:
    """Whether a cell with this record is to be run; one left out by --fit is: its budget was no result."""
    if found is None or found.status in (*config.retry.statuses, "unfit"):
        return True
    return (config.retry.on_oom or record.fits_itself(found.cell)) and micro_batch.smaller(found) is not None


def _bare(found: Record, study: Study, save: str) -> bool:
    """Whether the tuned weights of a recorded cell are asked for, and are not there in that form."""
    if save == "none" or found.status != "ok" or found.train is None or found.source is not None:
        return False
    return study.weights(found) is None or found.saved.form not in (save, "model")


def _say_bare(bare: list[Record], study: Study, save: str) -> None:
    """Say of recorded cells that the weights asked for are not there; nothing is trained again for that unasked."""
    if bare:
        more = f" and {len(bare) - 1} more" if len(bare) > 1 else ""
        print(
            f"save={save} leaves recorded cells as they are, and of {bare[0].cell.name}{more} there are no such "
            f"weights: {study.anew(bare[0])}, trains it anew.",
            file=sys.stderr,
        )


def _tell(found: Record) -> None:
    for score in found.scores:
        error = "" if score.stderr is None else f" ± {score.stderr:.4f}"
        name = f"{score.task} {score.metric} ({score.filter})"
        print(f"{name}: {score.value:.4f}{error}, n = {score.n}, {score.num_fewshot} shots")


def main(command: str, arguments: list[str]) -> int:
    """Run ``run``, ``sweep`` or ``plan`` with Hydra's arguments; returns the exit status (1 if a cell failed).

    Raises UserError for bad input, KeyboardInterrupt when stopped.
    """
    register()
    name = "config"
    _outcomes.clear()
    _known.clear()
    global _options, _progress
    _options, arguments = _ours(command, arguments)
    ours = {"hydra/job_logging": "none", "hydra/hydra_logging": "none"}  # else an app.log appears in the user's folder
    if command in ("sweep", "plan"):
        if arguments and "=" not in arguments[0] and not arguments[0].startswith(("-", "+", "~")):
            name, *arguments = arguments
            one_of("sweep", name, sorted(path.stem for path in SWEEPS.glob("*.yaml")))
        if command == "plan":
            ours["hydra/sweeper"] = "grid"
        if not any(a.partition("=")[0] in NOT_A_LAUNCH for a in arguments):
            arguments = [*arguments, "--multirun"]
    overrides, options = _split(command, arguments)
    given = {o.partition("=")[0] for o in overrides}
    overrides += [f"{group}={choice}" for group, choice in ours.items() if group not in given]
    sys.argv = [f"python -m harness {command}", *overrides, *options]

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's stop is as orderly as Ctrl-C
    # Hydra prints a traceback, or several lines, and exits; the user gets one sentence from us instead.
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra.main(config_path=str(CONF), config_name=name, version_base="1.3")(_task)()
    except (HydraException, OmegaConfBaseException) as error:
        if full_error:
            raise
        raise UserError(_sentence(error)) from None
    except ValueError:
        _refuse_no_choice(overrides)
        raise
    finally:
        if not full_error:
            del os.environ["HYDRA_FULL_ERROR"]
        if _progress is not None:
            _progress.close()
            _progress = None
    for refusal in _outcomes:
        if isinstance(refusal, UserError):
            raise refusal
    return int(any(outcome.status != "ok" for outcome in _outcomes))


def composed(*overrides: str) -> DictConfig:
    """The configuration that `overrides` mean, for a command that runs no cell; UserError if they mean none."""
    register()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose("config", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_sentence(error)) from None


def register() -> None:
    """Make our resolvers, schema, sweeper and the folder sweeps/ known to Hydra."""
    settings_of.register_resolvers()
    ConfigStore.instance().store(name="schema", node=Config)
    Plugins.instance().register(GridSweeper)
    Plugins.instance().register(LocalParallel)
    Plugins.instance().register(SweepsOnSearchPath)
    # It exists where a plugin is installed.
    if "hydra_plugins" not in sys.modules and importlib.util.find_spec("hydra_plugins") is None:
        sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
    sys.modules[PLUGINS] = sys.modules[__name__]


def _ours(command: str, arguments: list[str]) -> tuple[Options, list[str]]:
    """The options that are ours, and the arguments left for Hydra; UserError for one that can't be."""
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
    options = Options(plan=command == "plan", **vars(found))
    if isinstance(options.budget, units.Dollars):
        options.budget, options.money = None, options.budget
    if options.budget is not None and not options.plan and not options.fit:
        raise UserError(
            "--budget in bytes is for `plan` and `sweep --fit`; add --fit to leave out what does not fit, or name a "
            "sum of money, as 5USD, for what models behind an API may cost."
        )
    if options.device is not None:
        one_of("--device", options.device, ["cpu", "cuda"])
        if not options.plan and not options.fit:
            raise UserError("--device is for `plan` and `sweep --fit`; cells run on the device that is here.")
    if options.throughput is not None and not options.throughput > 0:
        raise UserError(f"--throughput {options.throughput} can't be: it must be positive.")
    return options, rest


def _split(command: str, arguments: list[str]) -> tuple[list[str], list[str]]:
    """The overrides and the options among `arguments`; UserError where Hydra's parser would exit with its usage."""

    def refuse(message: str):
        raise UserError(f"{message}; `python -m harness {command} --hydra-help` lists the options.")

    parser = get_args_parser()
    parser.error = refuse
    overrides = parser.parse_intermixed_args(arguments).overrides
    return overrides, [a for a in arguments if a not in overrides]


def _refuse_no_choice(overrides: list[str]) -> None:
    """Raise UserError for the first override that gives a config group something else than a name."""
    for override in OverridesParser.create().parse_overrides(overrides):
        named = override.is_sweep_override() or isinstance(override.value(), str | list | None)
        if (CONF / override.key_or_group).is_dir() and not named:
            one_of(override.key_or_group, override.get_value_element_as_str(), _choices(override.key_or_group))


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _sentence(error: Exception) -> str:
    """Hydra's or OmegaConf's message as one line, in the words of the command line."""
    if isinstance(error, MissingConfigException):
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        if extra := EXTRAS.get((group, choice)):
            return f"{group}={choice} needs the extra `{extra}`: pip install -e '.[{extra}]' in the project's folder."
        try:
            one_of(group, choice, sorted(error.options or [choice]))
        except UserError as unknown:
            return str(unknown)
    first, cause = _first_line(error), _first_line(error.__cause__ or error)
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} can't be read as KEY=VALUE; quote a value that has special characters."
    if found := re.match(r"Could not override '(.+)'", first):
        return _no_setting(found[1])
    if found := re.match(r"Error merging override (.+)", first):
        return f"{found[1]} can't be: {cause.rstrip('.')}."
    if found := re.match(r"Ambiguous value for argument '(.+)'", first):
        as_list = found[1].replace("=", "=[", 1) + "]"
        return f"{found[1]} names several values: `sweep` runs them all, and {as_list} is one list."
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {first}."
    return " ".join(f"{error} {error.__cause__ or ''}".split())


def _no_setting(key: str) -> str:
    if key.startswith(("method.", "data.load.", "hydra.")):  # open to what the callable they name takes
        return f"There is no setting {key!r}; to add one, put a + before it."
    known = list(_keys(Config))
    near = difflib.get_close_matches(key, known, n=1)
    # A key without its group (max_steps) is as common as a misspelt one.
    near = near or [k for k in known if k.rpartition(".")[2] == key]
    hint = f"did you mean {near[0]}?" if near else "`run --help` lists them."
    return f"There is no setting {key!r}; {hint}"


def _keys(schema: type, prefix: str = "") -> Iterator[str]:
    """The dotted keys of a structured config."""
    for f in dataclasses.fields(schema):
        yield prefix + f.name
        if dataclasses.is_dataclass(f.default_factory):
            yield from _keys(f.default_factory, f"{prefix}{f.name}.")


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
