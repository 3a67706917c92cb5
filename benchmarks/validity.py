"""How often verdicts, letters and intervals are wrong, in simulated studies whose truth is known.

    make validity                                       # about three quarters of an hour on one core
    python benchmarks/validity.py --studies 100 --only dora

Each study is made of records, and goes through the functions that `table` and `claims` use. Each line is a situation in
which a verdict would be wrong (a claim at its boundary, on either side; equal methods) or in which an interval should
cover the truth. A verdict may be wrong in 5% of studies; an interval should cover in 93 to 97%; a score may not be
higher or lower than the truth on average.

Writes benchmarks/measured/validity.json after each situation, of which benchmarks/VALIDITY.md is made. Situations that
were not run this time keep what was measured before. A situation's random numbers depend on its name alone.

Of situations that hold, one in twenty is outside its limits by chance in a short run. So a situation that does not hold
in fewer studies than the 500 of the page is simulated again in 500, which decide.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import choices  # noqa: F401  adds its situations to those of situations.py
import decisions  # noqa: F401  likewise
import looks  # noqa: F401  likewise
import numpy as np
from situations import SITUATIONS
from tabulate import tabulate

from harness import plugin
from harness.record.files import write_json
from harness.report.statistics import ALPHA

if any(part.name == "articles" for part in plugin.installed()):
    import article_situations  # noqa: F401  likewise
    import verdict_situations  # noqa: F401  likewise

HERE = Path(__file__).parent
MEASURED, DOCUMENT = HERE / "measured" / "validity.json", HERE / "VALIDITY.md"
ATTAINABLE = HERE / "measured" / "attainable.json"
STUDIES = 500
MOST_WRONG, COVERAGE, LEAST_FOUND = ALPHA, (0.93, 0.97), 0.45


def simulate(name: str, studies: int) -> dict[str, Any]:
    """What came out of `studies` studies of a situation: means with Monte Carlo errors, and of how many."""
    begin = time.perf_counter()
    make = SITUATIONS[name]
    outcomes = [make(np.random.default_rng([zlib.crc32(name.encode()), i])) for i in range(studies)]
    columns = {key: np.array([float(outcome[key]) for outcome in outcomes]) for key in outcomes[0]}
    found = {}
    if "half" in columns:  # an interval of known error would be 1.96 of the standard deviation over studies
        estimates, halves = columns.pop("estimate"), columns.pop("half")
        found["times as wide as needed"] = float(np.median(halves) / (1.96 * estimates.std(ddof=1)))
    if "ratio" in columns:
        found["median high / low"] = float(np.nanmedian(columns.pop("ratio")))
    shares = {}
    for key, values in columns.items():
        known = values[~np.isnan(values)]
        error = float(known.std(ddof=1)) / len(known) ** 0.5 if len(known) > 1 else 0.0
        shares[key] = {"mean": float(known.mean()) if len(known) else None, "error": error, "n": len(known)}
    seconds = round(time.perf_counter() - begin, 1)
    return {"studies": studies, "seconds": seconds, "shares": shares, "widths": found}


def holds(of: dict[str, Any]) -> bool:
    """Whether a situation is within its limits, up to two Monte Carlo standard errors."""
    shares = of["shares"]
    limits = []
    if "wrong" in shares:
        wrong = shares["wrong"]
        limits.append(wrong["mean"] <= MOST_WRONG + 2 * (MOST_WRONG * (1 - MOST_WRONG) / wrong["n"]) ** 0.5)
    for covered in (shares[key] for key in ("covers", "differences") if key in shares):
        margin = 2 * (covered["error"] or (0.03 * 0.97 / covered["n"]) ** 0.5)  # where all cover no error shows
        limits.append(COVERAGE[0] - margin <= covered["mean"] <= COVERAGE[1] + margin)
    if (least := shares.get("covers at least")) is not None:
        limits.append(least["mean"] >= COVERAGE[0] - 2 * (0.07 * 0.93 / least["n"]) ** 0.5)
    if "found" in shares:
        limits.append(shares["found"]["mean"] >= LEAST_FOUND - 2 * shares["found"]["error"])
    if "too high by" in shares:
        limits.append(abs(shares["too high by"]["mean"]) <= 2 * shares["too high by"]["error"])
    return all(limits)


def document(measured: dict[str, dict[str, Any]]) -> str:
    """The Markdown page of what was measured."""
    rows = []
    for name, of in measured.items():
        shown = [
            f"{key} {100 * share['mean']:.1f} ± {100 * share['error']:.1f}%"
            for key, share in of["shares"].items()
            if share["mean"] is not None
        ]
        shown += [f"{key} {width:.2f}" for key, width in of["widths"].items()]
        rows.append([name, f"{of['studies']:,}", ", ".join(shown), "yes" if holds(of) else "**no**"])
    good = sum(holds(of) for of in measured.values())
    return "\n".join(
        [
            "# How often verdicts and intervals are wrong",
            "",
            "Made by `make validity` (`python benchmarks/validity.py`): simulated studies whose truth is known, in the",
            "functions that `table` and `claims` use. A verdict, or two equal methods told apart, may be wrong in 5%",
            "of studies; an interval should cover the truth in 93 to 97%. ± is one Monte Carlo standard error, and a",
            "limit holds if it holds up to two of them. *open* is the share of studies that left the claim open; the",
            "rest of the verdicts is right. *times as wide as needed* compares the median interval of an accuracy with",
            "one whose error is known. A claim that one method is better has a bound of 1 point (1% of a loss) on both",
            "sides: *supported* and *refuted* are wrong within it, *too small to matter* is wrong beyond it.",
            "*too high by* is the mean of a score less its truth, in points: it must be 0 up to two errors.",
            "*covers at least*: best rates, whose intervals allow for what a curve may miss, and may cover more.",
            "*found* is the share of true differences that are told, of which 45% is asked.",
            "*A rerun* is of other seeds on the same items; pairs count whose intervals overlap. *wrong*: what to take",
            "(the method, or of several that tie the one for a limit of memory) differs; at a border, each run names",
            "one, and not the same. *other tie*: the methods that tie differ.",
            "",
            f"{good} of {len(measured)} situations hold.",
            "",
            tabulate(rows, ["Situation", "Studies", "Measured", "Holds"], "pipe", disable_numparse=True),
            "",
            *narrowest(),
            "",
        ]
    )


def narrowest() -> list[str]:
    """Lines on how narrow intervals over few seeds can be, of what benchmarks/attainable.py computed."""
    found = json.loads(ATTAINABLE.read_text(encoding="utf-8"))
    rows = [
        [
            case,
            f"{of['at least 93%']:.2f}",
            f"{of['at least 95%']:.2f}",
            f"{of['mean']:.2f} (median {of['median']:.2f})",
            f"{100 * of['least']:.1f}–{100 * of['most']:.1f}%",
        ]
        for case, of in found.items()
    ]
    head = ["Seeds", "Shortest, covers ≥ 93%", "Shortest, covers ≥ 95%", "Ours", "Ours covers"]
    return [
        "## How narrow intervals of few seeds can be",
        "",
        "Mean lengths in times of an interval whose error is known, where seeds vary by a quarter of what chance by",
        "seed and item makes them vary (1 point, at 400 items). Two seeds of two methods leave two degrees of freedom",
        "to tell how much seeds vary. An interval that also covers where they vary much can't be short where they vary",
        "little: none is shorter than the first columns say (`benchmarks/attainable.py`, by convex programming).",
        "*Ours* is where the spread is pooled over all methods; its coverage is the least and the most at any spread.",
        "",
        tabulate(rows, head, "pipe", disable_numparse=True),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 if a situation does not hold that is new, or held on the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=STUDIES, metavar="N")
    parser.add_argument("--only", default="", metavar="TEXT", help="situations whose name has this text")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no situation after this time")
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    failed = 0
    measured = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else {}
    outside_before = {name for name, of in measured.items() if not holds(of)}
    for name in SITUATIONS:
        if options.only not in name:
            continue
        if time.monotonic() - begin > 60 * options.minutes:
            break
        measured[name] = simulate(name, options.studies)
        if not holds(measured[name]) and options.studies < STUDIES:
            measured[name] = simulate(name, STUDIES)
        held = holds(measured[name])
        failed |= not held and name not in outside_before
        note = "" if held else "does not hold, as before" if name in outside_before else "DOES NOT HOLD"
        print(name, measured[name], note, flush=True)
        measured = {name: measured[name] for name in SITUATIONS if name in measured}
        write_json(measured, MEASURED)
        DOCUMENT.write_text(document(measured), encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
