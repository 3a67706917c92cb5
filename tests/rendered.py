"""What tests read of rendered tables, and text that tries to break them."""

from __future__ import annotations

from html.parser import HTMLParser

HOSTILE = [
    "<script>alert(1)</script>",
    "a|b",
    "line\nbreak",
    "\x1b[31mred",
    '"><img src=x>',
    "{} & % $ # _ ~ ^ \\",
    "日本",
]


def rows(table):
    """The table's rows as dicts by column."""
    return [dict(zip(table.columns, cells, strict=True)) for cells in table.rows]


def row(table, method, setting=None):
    (found,) = [r for r in rows(table) if r["Method"] == method and setting in (None, r.get("Setting"))]
    return found


def caption(table):
    return "\n".join([*table.answer, *table.caption])


class Tags(HTMLParser):
    """Collects start tags, and fails on an end tag that closes another."""

    def __init__(self):
        super().__init__()
        self.tags, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
