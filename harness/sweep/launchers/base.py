"""What a sweep asks of a launcher: to run points, and to say what it can and can't do."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Sequence

from harness.errors import UserError
from harness.sweep.app.point import Point
from harness.sweep.app.session import Outcome
from harness.sweep.launchers.lost_workers import Lost

Answer = Outcome | UserError | Lost
Run = Callable[[Point], Answer]


class CellLauncher(abc.ABC):
    """Runs the cells of a sweep somewhere.

    on_this_machine: whether its GPUs are this machine's. in_this_process: whether cells show their progress themselves;
    that of others is read from the study's folder. nodes: machines that a cell of several gets; None if it gets one.
    """

    on_this_machine = True
    in_this_process = False
    nodes: int | None = None

    def require(self) -> None:  # noqa: B027 - most launchers promise nothing
        """Raise UserError if it lacks what it promises its cells, before any of them is sent there."""

    def require_nodes(self, counts: set[int]) -> None:
        """Raise UserError if it can't give cells that many machines; a cell of one can do without the others.

        counts: values of train.nodes.
        """
        for count in sorted(counts - {1}):
            if self.nodes is None:
                raise UserError(
                    f"train.nodes={count} requires hydra/launcher=slurm for a sweep; without Slurm, `run` the cell on "
                    "each machine."
                )
            if count != self.nodes:
                raise UserError(
                    f"hydra.launcher.nodes must be {count}, as train.nodes, got {self.nodes}; run one sweep for each "
                    "number."
                )

    def at_a_time(self, devices: int) -> int:
        """How many cells of `devices` GPUs each run at the same time on this machine."""
        return 1

    @abc.abstractmethod
    def run(self, points: Sequence[Point]) -> Iterable[Answer]:
        """What became of `points`, in their order. Raises UserError, now or as they run, if it can't run them."""

    def interrupted(self) -> None:  # noqa: B027 - of most launchers nothing does
        """Say what goes on although the sweep was interrupted."""
