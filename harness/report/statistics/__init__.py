"""Estimates, tests and ties: samples in, numbers out; nothing here knows a study.

One estimator for each kind of quantity. Each takes its data in a shape that shows what is independent of what:

| Quantity | Independent units | Module |
| --- | --- | --- |
| accuracies and other scores of items | seeds, and clusters of items | `accuracies` |
| validation losses | seeds | `ratios.of_losses` |
| peaks of memory | seeds; learning rates of one seed are no repeats | `ratios.of_memory` |
| times and rates | runs; runs of a method that follow each other are one | `ratios.of_times` |
| best learning rates | seeds | `optima` |
| shares of runs | settings and runs | `shares` |
| variation from seed to seed | seeds | `spreads` |

All use the same intervals (`estimates`), the same shrinkage of variances over methods (`variances`) and the same
correction for many tests (`ties.holm`). benchmarks/VALIDITY.md has their coverage and error rates in simulated studies.
"""

from harness.report.statistics.accuracies import (
    Answers,
    differences,
    levels,
    mcnemar,
    mean_intervals,
    over_items,
    seed_level,
)
from harness.report.statistics.estimates import (
    ALPHA,
    TAILS,
    Difference,
    Interval,
    Statistic,
    preference,
    seeds_interval,
    share_interval,
    summary_interval,
)
from harness.report.statistics.luck import luck
from harness.report.statistics.optima import optimum, ratio_of_optima
from harness.report.statistics.pairing import own_variances, seed_effects, told_by_others
from harness.report.statistics.ranges import range_p, range_quantile
from harness.report.statistics.ranks import MethodRank, ranks
from harness.report.statistics.ratios import MemoryPeak, Ratio, Run, of_losses, of_memory, of_times, units, within
from harness.report.statistics.shares import Outcomes, difference_of_shares
from harness.report.statistics.spreads import spread_ratio
from harness.report.statistics.ties import Family, false_discoveries, holm, letters, step_charge, stepwise
from harness.report.statistics.variances import Level, combined_known, moderated
