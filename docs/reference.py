"""Writes the page of all settings, `docs/settings.md`, from harness/config.py: `python docs/reference.py`."""

from __future__ import annotations

from pathlib import Path

from harness.config_help import ConfigGroup, config_groups

SETTINGS = Path(__file__).with_name("settings.md")
HEAD = """\
# Settings

Made from `harness/config.py` by `make pages`. `run`, `sweep` and `plan` take each setting as `KEY=VALUE`;
`harness run --help` lists them too. For a list, write `eval.tasks=[mmlu,gsm8k]`; for nothing, write `null`.

A default in `${…}` is computed from other settings. *file* means that the chosen file of the group sets it:
`model=qwen3_1_7b` is `conf/model/qwen3_1_7b.yaml`. Such a file also replaces other defaults of its group.
"""


def section(group: ConfigGroup) -> str:
    """A heading, the group's comment and a table of its settings."""
    cells = [("Setting", "Type", "Default", "Meaning"), ("---",) * 4]
    for key, kind, default, comment in group.fields:
        cells.append((f"`{key}`", kind.replace(" | ", " or "), _default(default), _escaped(comment)))
    rows = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([f"## {group.key or 'General'}", "", group.comment.replace("``", "`"), "", *rows]) + "\n"


def settings_page() -> str:
    """The text of docs/settings.md."""
    return "\n".join([HEAD, *map(section, config_groups())])


def _default(default: str | None) -> str:
    if default is None:
        return "*file*"
    text = default.replace("\n", "\\n")
    return f"`{text}`"


def _escaped(comment: str) -> str:
    return comment.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    SETTINGS.write_text(settings_page(), encoding="utf-8")
