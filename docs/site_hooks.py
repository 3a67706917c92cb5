"""Hooks of mkdocs: pages may link to documents and figures outside of docs/, as they do on a Git host.

The target of ``[…](../benchmarks/PLAN.md)`` becomes a page of the site; so do tables and figures of published studies.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = (
    "benchmarks/*.md",
    "results/reference/*/*.md",
    "results/reference/*/*.html",
)


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the files of OUTSIDE to the site, under their paths in the repository."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            uri = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, uri, abs_src_path=str(path), inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links that leave docs/ lead to the files that `on_files` added. Those of a study are headed by its name."""
    if (study := re.fullmatch(r"results/reference/(.+)/(\w+)\.md", page.file.src_uri)) is not None:
        return f"# {study[1]}: {study[2].lower()}\n\n{markdown}"
    up = "../" * page.file.src_uri.count("/")
    return re.sub(rf"\]\({re.escape(up)}\.\./(benchmarks|results)/", rf"]({up}\1/", markdown)
