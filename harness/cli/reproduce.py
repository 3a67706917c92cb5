"""``harness reproduce``: runs cells of a published study again, and says whether they agree with its records."""

from __future__ import annotations

import argparse

from harness.cli.output import print_errors, render, study_names
from harness.cli.parser import Group, add_data_root, add_formats, add_local_paths, add_results_dir, positive
from harness.protocol import LocalPaths
from harness.record import read_study


def add(group: Group) -> None:
    parser = group.add(
        reproduce,
        "reproduce",
        "Run a random sample of a study's cells again, and compare. Exit status 1 if one disagrees with its record.",
        "reference/quickstart --cells 2",
    )
    parser.add_argument("study", metavar="STUDY", help="study below the results folder")
    parser.add_argument("--cells", type=positive, default=3, metavar="N", help="how many cells (default: 3)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the random choice (default: 0)")
    add_results_dir(parser)
    add_data_root(parser)
    add_local_paths(parser)
    add_formats(parser)


def reproduce(options: argparse.Namespace) -> int:
    """Run the cells in the study reproduced/STUDY, and render what came out; 1 if one disagrees or a record is bad."""
    (name,) = study_names(options)

    from harness.studies import reproduce as again
    from harness.sweep.store import Study

    folder = options.results_dir / name
    records, problems = read_study(folder)
    print_errors(problems)
    published = again.sample(name, records, options.cells, options.seed)
    source, study = Study(options.results_dir, name), again.target(options.results_dir, name)
    local = LocalPaths.absolute(options.vllm_python, options.include_path)
    pairs = list(zip(published, again.run_again(source, study, published, options.data_root, local), strict=True))

    from harness.report.reproduction import PublishedStudy, recheck, reproduction_table

    rechecks = recheck(PublishedStudy(records, folder), pairs, study.folder)
    render([reproduction_table(name, rechecks, pairs)], options)
    return int(bool(problems) or any(check.agreement == "disagrees" for check in rechecks))
