"""What a plug-in adds to a study's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.report.tables.table import Table


@dataclass(frozen=True)
class PageSection:
    """A section of the page.

    id: of its element. title: in the navigation. contents: by id, tables; None is an empty element that a script draws
    in.
    """

    id: str
    title: str
    heading: str
    contents: Mapping[str, Table | None]


@dataclass(frozen=True)
class PageBlock:
    """Parts of the page of one study.

    sections: after the table of every setting. summary: sentences. data: by name, what scripts read by `block("NAME")`,
    as for BLOCKS in page.py. scripts: files; each is wrapped in a function. commands: the words after ``python -m
    harness`` of what makes these parts.
    """

    sections: Sequence[PageSection] = ()
    summary: Sequence[str] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    scripts: Sequence[Path] = ()
    commands: Sequence[str] = ()
