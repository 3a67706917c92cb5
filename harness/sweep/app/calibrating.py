"""`calibrate`: times the kernels of a grid's cells on this machine's device, for `plan` to use from then on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness import record, units
from harness.errors import UserError
from harness.protocol import PlannedCell, Progress
from harness.record import Calibration
from harness.sweep import runner
from harness.sweep.app.point import Point, architectures, point_of
from harness.sweep.app.predicting import Compose


def calibrate(requested: Sequence[list[str]], compose: Compose) -> None:
    """Time the kernels of the `requested` cells, write them beside the records, and print their rates.

    Raises UserError if a cell can't work, is not trained here, or if earlier calibrations are damaged.
    """
    points: dict[str, Point] = {}
    for overrides in requested:
        composed, applicable = compose(overrides)
        point = point_of(composed, applicable)
        if not point.is_local or not point.cell.settings.method.tuned:
            raise UserError(f"calibrate requires methods that train here, got method={point.cell.method}.")
        points.setdefault(point.cell.id, point)
    results = Path(composed.results_dir).expanduser()
    earlier = record.calibrations(results)
    of = architectures(list(points.values()))
    cells = [PlannedCell(point.cell, of.get(point.cell.model)) for point in points.values()]
    calibration = runner.calibrate(cells, _tell)
    same = next((one for one in earlier if one.device == calibration.device), None)
    united = calibration.united(same)
    path = record.write_calibration(united, results)
    print("\n".join(lines(united, path)))


def lines(calibration: Calibration, path: Path) -> list[str]:
    """What a calibration says: the rate of the fastest product, of what moves most, and the host's."""
    products = [kernel.flops / kernel.seconds for kernel in calibration.kernels if kernel.flops]
    others = [kernel for kernel in calibration.kernels if not kernel.flops]
    parts = [f"products up to {max(products) / 1e12:.3g} TFLOP/s"] if products else []
    if others:
        largest = max(others, key=lambda kernel: kernel.moved)
        parts.append(f"memory {largest.moved / largest.seconds / 1e9:.3g} GB/s in the largest operation")
    parts.append(f"{calibration.launch * 1e6:.3g} µs of the host for an operation")
    return [
        f"{calibration.device[1]}: {units.plural(len(calibration.kernels), 'kernel')} timed; {', '.join(parts)}.",
        f"Written to {path}. `plan` estimates times from it.",
    ]


def _tell(progress: Progress) -> None:
    if progress.other is not None:
        print(f"Timing the kernels of {progress.other['cell']} ({progress.step} of {progress.of}).", flush=True)
