"""The task function that Hydra calls with each composed grid point, here or in a launcher's worker."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from harness import config as settings_of
from harness import units
from harness.errors import UserError, about_file
from harness.protocol import LocalPaths, Rendezvous, RunCell
from harness.record import Cell, Record, RecordError, train_memory
from harness.sweep import api_cost, machines, runner
from harness.sweep import cells as cells_of
from harness.sweep.app import messages
from harness.sweep.app.pending import lacks_weights, study_of, to_run, warn_of_missing_weights
from harness.sweep.app.session import Outcome, Session
from harness.sweep.lease import Held, Lease
from harness.sweep.progress import SweepProgress
from harness.sweep.store import Study

Run = Callable[[RunCell, Study, Lease, runner.OnEvent], Record]


class RunPoint:
    """Runs a grid point and returns its outcome, or the error that refused it.

    An error is returned, not raised: Hydra would print lines of its own and end the sweep. Pickled for a worker, it
    leaves its session behind: a worker knows only its own cell.
    """

    def __init__(self, session: Session | None = None):
        self.session = session or Session()

    def __reduce__(self):
        return RunPoint, ()

    def __call__(self, config: DictConfig) -> Outcome | UserError:
        settings_of.register_resolvers()
        try:
            os.chdir(HydraConfig.get().runtime.cwd)  # a worker may have been started in another folder
            return self._run(config)
        except Held as error:
            refusal: UserError = Held(str(error))
        except (UserError, RecordError) as error:
            refusal = UserError(str(error))
        except OmegaConfBaseException as error:
            refusal = UserError(messages.sentence(error))
        except OSError as error:
            if error.filename is None:
                raise  # not about a file of the user's
            refusal = UserError(about_file(error))
        if self.session.progress is None:
            self.session.outcomes.append(refusal)
        return refusal

    def _run(self, config: DictConfig) -> Outcome:
        messages.require_settings(config)
        cell, study = cells_of.from_config(config), study_of(config)
        recorded, progress = self.session.recorded, self.session.progress
        if config.repeat and (found := study.recorded(cell)) is not None and found.status == "ok":
            if machines.spare():
                return Outcome("spare", None)
            with study.lease(cell) as lease:
                return Outcome.of(self._launch(cell, study, lease, config, None, runner.repeat))
        # A record that came after the plan is another sweep's, made at the same time; a cell is not run by both.
        known = recorded[cell.id] if cell.id in recorded else study.recorded(cell)
        if to_run(known, config):
            rendezvous = machines.rendezvous(cell.settings.train.nodes)
            if rendezvous is None and machines.spare():
                return Outcome("spare", None)
            if rendezvous is not None and rendezvous.number > 0:
                return self._assist(cell, study, config, rendezvous)
            with study.lease(cell) as lease:
                found = study.recorded(cell)
                if found is None or found == known:
                    return Outcome.of(self._launch(cell, study, lease, config, rendezvous))
        else:
            found = known
        self.session.record, self.session.folder = found, study.folder
        print(f"{cell.name} is recorded in {study.path(cell)} ({found.status}).", file=sys.stderr)
        if lacks_weights(found, study, config.save):
            warn_of_missing_weights([found], study, config.save)
        if progress is None:
            self.session.outcomes.append(Outcome.of(found))
        else:
            progress.skip()
        return Outcome.of(found)

    def _assist(self, cell: Cell, study: Study, config: DictConfig, rendezvous: Rendezvous) -> Outcome:
        """Train `cell` along with the first machine, whose record it is."""
        runner.assist(runner.request_for(cell, study, config.data_root, rendezvous=rendezvous), study)
        found = study.recorded(cell)
        if found is None:
            raise UserError(f"{cell.name} has no record: the first machine ended without one.")
        self.session.record, self.session.folder = found, study.folder
        self.session.outcomes.append(Outcome.of(found))
        return Outcome.of(found)

    def _launch(
        self,
        cell: Cell,
        study: Study,
        lease: Lease,
        config: DictConfig,
        rendezvous: Rendezvous | None,
        run: Run = runner.run,
    ) -> Record:
        planned = self.session.progress is not None
        access = api_cost.access(cell, config, study)
        if access is not None and not planned:
            counts = runner.check([cell], config.data_root, {cell.id: access})
            api_cost.check(api_cost.estimates([cell], {cell.id: access}, counts), self.session.options.dollars)
        progress = self.session.progress or SweepProgress(1)
        try:
            progress.start(cell)
            request = runner.request_for(
                cell,
                study,
                config.data_root,
                precautions=settings_of.precautions(config),
                warn=not planned,  # a planned sweep has warned when it checked its cells
                save=config.save,
                tracker=config.tracker,
                access=access,
                local=LocalPaths.absolute(config.eval.vllm_python, config.eval.include_path),
                rendezvous=rendezvous,
                position=_position(),
                confirmation=config.confirmation,
                halving=study.halving(settings_of.stop_rule(config)),
            )
            found = run(request, study, lease, progress.update)
            self.session.record, self.session.folder = found, study.folder
            progress.end(found)
        finally:
            progress.clear()
            if not planned:
                progress.close()
        if not planned:
            self.session.outcomes.append(Outcome.of(found))
            _print_summary(found, study)
        return found


def _position() -> int | None:
    """The place of this point among those that its sweep launched, from 1; None of `run`."""
    hydra = HydraConfig.get()
    return hydra.job.num + 1 if hydra.mode == RunMode.MULTIRUN else None


def _print_summary(found: Record, study: Study) -> None:
    """What a single cell shows: its loss, speed and memory, its scores, and where its record lies."""
    figures = []
    if found.validation:
        figures.append(f"validation loss {found.validation[-1].loss:.4g}")
    if found.train is not None and found.train.tokens_per_second_steady:
        figures.append(f"{found.train.tokens_per_second_steady:.0f} tokens/s")
    if (peak := train_memory(found)) is not None:
        figures.append(f"peak train memory {units.size(peak)}")
    if figures:
        print(", ".join(figures))
    for score in found.scores:
        error = "" if score.stderr is None else f" ± {score.stderr:.4f}"
        name = f"{score.task} {score.metric} ({score.filter})"
        print(f"{name}: {score.value:.4f}{error}, n = {score.n}, {score.num_fewshot} shots")
    print(f"record: {study.path(found.cell)}")
