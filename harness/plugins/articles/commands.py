"""The command `claims`, and the tables of articles that `table --article` renders."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli import results
from harness.cli.output import render
from harness.cli.parser import CommandLine, add_tables
from harness.errors import UserError
from harness.record import Record

if TYPE_CHECKING:
    from harness.plugins.articles.article import Article
    from harness.report.tables.table import Table

ARTICLE = "beyond_lora"  # the default of --article


def add(command_line: CommandLine) -> None:
    parser = command_line.command("table")
    parser.add_argument(
        "--article",
        nargs="?",
        const=ARTICLE,
        metavar="NAME",
        help=f"the table of an article, measured (default: {ARTICLE})",
    )
    parser.set_defaults(run=table)

    parser = command_line.group("compare").add(
        claims,
        "claims",
        "Show the verdicts of the records on an article's claims, a line a claim. A verdict uses all studies.",
        "--long",
        after="figures",
    )
    add_tables(parser)
    parser.add_argument(
        "--long", action="store_true", help="also each claim in words, each study's verdict, remarks and commands"
    )
    parser.add_argument(
        "--published",
        action="store_true",
        help="judge the claims on others' published results: the tables of RESULTS/published/, by a meta-analysis",
    )
    parser.add_argument(
        "--article", default=ARTICLE, metavar="NAME", help=f"article whose claims are judged (default: {ARTICLE})"
    )


def table(options: argparse.Namespace) -> int:
    """Render an article's table of one study or of all; without --article, the core's tables."""
    if not options.article:
        return results.table(options)
    for option, value in (("--columns", options.columns), ("--price", options.price)):
        if value not in (None, []):
            raise UserError(f"{option} can't be combined with --article, which has the article's columns.")

    from harness.plugins.articles.article import find

    article = find(options.article)
    if (article_table := article.table) is None:
        raise UserError(f"--article {article.name} has no table; `claims --article {article.name}` has its verdicts.")
    return results.render_studies(options, lambda records, folder: [article_table(records, folder)])


def claims(options: argparse.Namespace) -> int:
    """Render the verdicts of all studies, or of one, on an article's claims; with --published of others' results."""
    from harness.plugins.articles.article import find
    from harness.plugins.articles.verdict_tables import claim_lines, claim_tables

    article = find(options.article)
    if options.published:
        return _published(article, options)

    def tables(studies: Sequence[tuple[list[Record], Path]]) -> list[Table]:
        verdicts = article.merged(studies)
        return claim_tables(article, verdicts, explained=True) if options.long else [claim_lines(article, verdicts)]

    return results.render_joined(options, tables)


def _published(article: Article, options: argparse.Namespace) -> int:
    """Render the verdicts of others' published results."""
    from harness.plugins.articles.published_figures import FOLDER, published_figures
    from harness.plugins.articles.published_tables import effect_table, verdict_table

    if options.study is not None:
        raise UserError("--published can't be combined with --study: its tables are of no study.")
    if not article.published:
        raise UserError(f"--article {article.name} has no claims that are judged on published results.")
    figures = published_figures(options.results_dir / FOLDER)
    verdicts = article.judged_by_others(figures)
    tables = [verdict_table(article, verdicts, explained=options.long)]
    render([*tables, effect_table(verdicts, figures)] if options.long else tables, options)
    return 0
