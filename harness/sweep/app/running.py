"""What Hydra, a launcher's worker and the sweep itself call with each grid point: it runs the point's cell."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness import config as settings_of
from harness import units
from harness.errors import UserError, about_file
from harness.protocol import Rendezvous
from harness.record import Record, RecordError, train_memory
from harness.score_names import score_label
from harness.sweep import machines, runner
from harness.sweep.app import inputs, messages
from harness.sweep.app.checking import check
from harness.sweep.app.pending import lacks_weights, to_run, warn_of_missing_weights
from harness.sweep.app.point import Point, point_of
from harness.sweep.app.session import Outcome, Session
from harness.sweep.changed_file import changed_file
from harness.sweep.lease import Held
from harness.sweep.progress import SweepProgress
from harness.sweep.store import Study

FILE = "point"  # the setting that names a point's file, in place of the settings that it was composed of


class RunPoint:
    """Runs a grid point and returns its outcome, or the error that refused it.

    An error is returned, not raised: Hydra would print lines of its own and end the sweep. Pickled for a worker, it
    leaves its session behind: a worker knows only its own cell.
    """

    def __init__(self, session: Session | None = None):
        self.session = session or Session()

    def __reduce__(self) -> tuple[type[RunPoint], tuple[()]]:
        return RunPoint, ()

    def __call__(self, work: Point | DictConfig) -> Outcome | UserError:
        """Run `work`: a point, or what Hydra composed, which is a point's file or the settings of a point."""
        try:
            point = work if isinstance(work, Point) else _composed(work)
            os.chdir(point.folder)  # a worker may have been started in another one
            cell, study = point.cell, point.study
            earlier, again = self._known(point)
            if not again and earlier is not None and not to_run(earlier, point):
                return self._skip(point, earlier)
            rendezvous = None if again else machines.rendezvous(cell.settings.train.nodes)
            if (outcome := self._elsewhere(point, rendezvous)) is not None:
                return outcome
            if self.session.progress is None:
                self._check_alone(point)
            with study.lease(cell) as lease:
                if not again and (recorded := study.recorded(cell)) is not None and recorded != earlier:
                    return self._skip(point, recorded)
                with self._progress(point) as progress:
                    warn = self.session.progress is None
                    request = dataclasses.replace(point.request, warn=warn, rendezvous=rendezvous)
                    record = (runner.repeat if again else runner.run)(request, study, lease, progress.update)
                    self.session.record, self.session.folder = record, study.folder
                    progress.end(record)
            return self._ended(record, study)
        except Exception as error:
            if (refusal := _refusal(error)) is None:
                raise
        if self.session.progress is None:
            self.session.outcomes.append(refusal)
        return refusal

    def _check_alone(self, point: Point) -> None:
        """Raise UserError if the cell of `point` can't run, or would cost more than it may; a sweep's are checked."""
        if point.is_local:
            inputs.require([point])  # its job checks the rest
        else:
            check([point], self.session.options)

    def _known(self, point: Point) -> tuple[Record | None, bool]:
        """The record of the cell of `point` when it was planned, and whether a recorded cell is to be measured again.

        A record that came after the plan is another sweep's, made at the same time; a cell is not run by both.
        """
        cell, planned = point.cell, self.session.recorded
        recorded = point.study.recorded(cell) if point.repeat or cell.id not in planned else None
        return planned.get(cell.id, recorded), point.repeat and recorded is not None and recorded.status == "ok"

    def _elsewhere(self, point: Point, rendezvous: Rendezvous | None) -> Outcome | None:
        """What became of `point`, if this machine is not the one that runs it and records it."""
        if rendezvous is None:
            return Outcome("spare", None) if machines.spare() else None
        return self._assist(point, rendezvous) if rendezvous.number > 0 else None

    def _ended(self, record: Record, study: Study) -> Outcome:
        """How a cell that ran ended; a single cell is summed up."""
        if self.session.progress is None:
            self.session.outcomes.append(Outcome.of_record(record))
            _print_summary(record, study)
        return Outcome.of_record(record)

    @contextmanager
    def _progress(self, point: Point) -> Iterator[SweepProgress]:
        """Shows the progress of the cell of `point`: as a part of its sweep, or alone."""
        planned = self.session.progress
        progress = planned or SweepProgress([point.cell])
        try:
            progress.start(point.cell)
            yield progress
        finally:
            progress.clear()
            if planned is None:
                progress.close()

    def _skip(self, point: Point, recorded: Record) -> Outcome:
        """Say that the cell of `point` is `recorded` already."""
        self.session.record, self.session.folder = recorded, point.study.folder
        print(f"{point.cell.name} is recorded in {point.study.path(point.cell)} ({recorded.status}).", file=sys.stderr)
        changed = changed_file([recorded], point.request.data_root) if self.session.progress is None else None
        if changed is not None:
            print(f"warning: {changed}; to train it again: {point.study.anew(recorded)}.", file=sys.stderr)
        if lacks_weights(recorded, point.study, point.request.save):
            warn_of_missing_weights([recorded], point.study, point.request.save)
        if self.session.progress is None:
            self.session.outcomes.append(Outcome.of_record(recorded))
        else:
            self.session.progress.skip(recorded.cell)
        return Outcome.of_record(recorded)

    def _assist(self, point: Point, rendezvous: Rendezvous) -> Outcome:
        """Train the cell of `point` along with the first machine, whose record it is."""
        runner.assist(point.request, rendezvous, point.study)
        recorded = point.study.recorded(point.cell)
        if recorded is None:
            raise UserError(f"{point.cell.name} has no record: the first machine ended without one.")
        self.session.record, self.session.folder = recorded, point.study.folder
        self.session.outcomes.append(Outcome.of_record(recorded))
        return Outcome.of_record(recorded)


def _refusal(error: Exception) -> UserError | None:
    """`error` as one sentence, without a traceback, if it refuses a point; None for all others."""
    if isinstance(error, Held):
        return Held(str(error))
    if isinstance(error, UserError | RecordError):
        return UserError(str(error))
    if isinstance(error, OmegaConfBaseException):
        return UserError(messages.sentence(error))
    if isinstance(error, OSError) and error.filename is not None:  # about a file of the user's
        return UserError(about_file(error))
    return None


def _composed(config: DictConfig) -> Point:
    """The point that Hydra was given: by its file, or by the settings that it composed."""
    settings_of.register_resolvers()
    if FILE in config:
        return Point.read(Path(config[FILE]))
    hydra = HydraConfig.get()
    os.chdir(hydra.runtime.cwd)
    messages.require_settings(config)
    overrides: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)  # a value may be an interpolation
    if note := messages.dtype_note(overrides, config):
        print(note, file=sys.stderr)
    point = point_of(config, [])
    return point.at(hydra.job.num + 1) if hydra.mode == RunMode.MULTIRUN else point


def _print_summary(record: Record, study: Study) -> None:
    """What a single cell shows: its loss, speed and memory, its scores, and where its record lies."""
    figures = []
    if (loss := record.validation_loss) is not None:
        figures.append(f"validation loss {loss:.4g}")
    if rate := record.tokens_per_second:
        figures.append(f"{rate:.0f} tokens/s")
    if (peak := train_memory(record)) is not None:
        figures.append(f"peak train memory {units.size(peak)}")
    if figures:
        print(", ".join(figures))
    for score in record.scores:
        error = "" if score.stderr is None else f" ± {score.stderr:.4f}"
        name = score_label(score.task, score.metric, score.filter)
        print(f"{name}: {score.value:.4f}{error}, n = {score.n}, {score.num_fewshot} shots")
    print(f"record: {study.path(record.cell)}")
