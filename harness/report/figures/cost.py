"""The cost of training and inference: memory by kind, tokens per second."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.report.figures import charts, style
from harness.report.figures.study_results import StudyResults, is_untuned
from harness.report.frame import KINDS
from harness.report.memory import MEANINGS, instruments
from harness.report.statistics import Interval, seeds_interval
from harness.report.tables.entries import rate
from harness.report.tables.rows import Row
from harness.units import size


def memory(study: StudyResults) -> style.Drawn | None:
    """Peak memory of a training step by kind of tensor."""
    by_title = study.once(charts.memory)
    if not by_title:
        return None
    titled = {": ".join(filter(None, [title, _least_memory(rows)])): rows for title, rows in by_title.items()}
    figure, panels = style.bar_panels(titled, per_bar=0.2)
    handles = {}
    for rows, axes in zip(by_title.values(), panels, strict=False):
        left = np.zeros(len(rows))
        for kind, colour, hatch in zip(KINDS, KIND_COLOURS, style.HATCHES, strict=True):
            sizes = np.array([row.kinds[kind] / 2**30 for row in rows])
            handles[kind] = axes.barh(range(len(rows)), sizes, left=left, color=colour, hatch=hatch, **style.EDGE)
            left += sizes
        style.label_bars(
            axes, [style.label(row, rows) + (" (forward pass)" if is_untuned(row) else "") for row in rows]
        )
        axes.set_xlabel("live tensors at the peak (GiB)")
    style.add_legend(figure, handles)
    records = [record for rows in by_title.values() for row in rows for record in row.records]
    beside = f" The table's headline is {MEANINGS['allocator']}." if "allocator" in instruments(records) else ""
    return style.Drawn(
        figure,
        "Live tensors at the peak of a training step, by kind. Gradients may be freed before the peak; an untuned "
        "model only has a forward pass." + beside + style.left_out(by_title),
    )


def _least_memory(rows: Sequence[Row]) -> str:
    """Which tuned methods peak lowest and highest; empty for fewer than two."""
    peaks = {style.label(row, rows): sum(row.kinds.values()) for row in rows if not is_untuned(row)}
    if len(peaks) < 2:
        return ""
    least, most = min(peaks, key=peaks.__getitem__), max(peaks, key=peaks.__getitem__)
    return f"{least} peaks lowest ({size(peaks[least])}), {most} highest ({size(peaks[most])})"


KIND_COLOURS = ["#0072B2", "#F0E442", "#D55E00", "#56B4E9", "#FFFFFF"]


def throughput(study: StudyResults) -> style.Drawn | None:
    """Tokens per second of each method in training and in decoding."""
    groups = {(title, part): rows for part, measures in RATES.items() for title, rows in study.alike(*measures).items()}
    if not groups:
        return None
    titled = {": ".join(filter(None, [*key, _fastest(rows, key[1])])): rows for key, rows in groups.items()}
    figure, panels = style.bar_panels(titled, per_bar=0.3)
    handles = {}
    for ((_, part), rows), axes in zip(groups.items(), panels, strict=False):
        present = {name: said for name, said in RATES[part].items() if any(row.values(name) for row in rows)}
        for i, measure in enumerate(present):
            colour, hatch = RATE_LOOKS[measure]
            thick = 0.8 / len(present)
            at = [(j + (i - (len(present) - 1) / 2) * thick, row.values(measure)) for j, row in enumerate(rows)]
            at = [(y, values) for y, values in at if values]
            means = [float(np.mean(values)) for _, values in at]
            spans = [
                seeds_interval(values) or Interval(mean, mean, mean)
                for (_, values), mean in zip(at, means, strict=True)
            ]
            how: style.Style = {"color": colour, "hatch": hatch, **style.EDGE}
            if any(span.low < span.high for span in spans):
                how["xerr"] = np.array([[span.value - span.low, span.high - span.value] for span in spans]).T
            handles[present[measure]] = axes.barh([y for y, _ in at], means, thick, **how)
        style.label_bars(axes, [style.label(row, rows) for row in rows])
        axes.set_xlabel("tokens/s")
    style.add_legend(figure, handles)
    return style.Drawn(
        figure,
        "Raw tokens per second in training (median step, and over all steps) and tokens per second in decoding. Bars: "
        "95% intervals over seeds, if there are several." + style.left_out(groups),
    )


RATES = {
    "training": {"tokens_per_second_steady": "median step", "tokens_per_second_amortised": "all steps"},
    "decoding": {
        "base_decode_tokens_per_second": "without adapter",
        "unmerged_decode_tokens_per_second": "unmerged",
        "merged_decode_tokens_per_second": "merged",
    },
}
RATE_LOOKS = {
    "tokens_per_second_steady": ("#0072B2", ""),
    "tokens_per_second_amortised": ("#F0E442", "///"),
    "base_decode_tokens_per_second": ("#999999", ""),
    "unmerged_decode_tokens_per_second": ("#FFFFFF", ".."),
    "merged_decode_tokens_per_second": ("#56B4E9", "xx"),
}


def _fastest(rows: Sequence[Row], part: str) -> str:
    """Which methods were fastest and slowest by their highest rate, untested; empty for fewer than two."""
    rates = {style.label(row, rows): [row.mean(name) for name in RATES[part]] for row in rows}
    best = {name: max(filter(None, of)) for name, of in rates.items() if any(of)}
    if len(best) < 2:
        return ""
    first, last = max(best, key=best.__getitem__), min(best, key=best.__getitem__)
    return f"fastest measured {first} ({rate(best[first])} tokens/s), slowest {last} ({rate(best[last])})"
