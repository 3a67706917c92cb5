"""Where config files lie: those that the harness ships, and a user's own in the working folder.

A checkout has them in ``conf/`` and ``sweeps/``; a wheel holds the same folders within the package. ``./conf`` and
``./sweeps`` of the working folder add choices and named sweeps to them, and can't replace any.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from harness.errors import UserError

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent
SHIPPED = PACKAGE / "shipped" if (PACKAGE / "shipped").is_dir() else ROOT
CONF = SHIPPED / "conf"
SWEEPS = SHIPPED / "sweeps"


def conf_folders() -> list[Path]:
    """The folders of config groups, in the order in which they are searched."""
    return _existing(CONF, Path.cwd() / "conf")


def sweep_folders() -> list[Path]:
    """The folders of named sweeps, in the order in which they are searched."""
    return _existing(SWEEPS, Path.cwd() / "sweeps")


def group_files(group: str) -> dict[str, Path]:
    """The files of a config group by choice, sorted."""
    return _by_name(folder / group for folder in conf_folders())


def named_sweeps() -> dict[str, Path]:
    """The files of named sweeps by name, sorted."""
    return _by_name(sweep_folders())


def require_own_names() -> None:
    """Raise UserError if a file in the working folder has the name of a shipped one and other content."""
    for shipped, *own in (conf_folders(), sweep_folders()):
        for folder in own:
            for path in sorted(folder.rglob("*.yaml")):
                name = path.relative_to(folder)
                grouped = folder.name != "conf" or len(name.parts) > 1  # conf/config.yaml may be another program's
                if grouped and (shipped / name).is_file() and (shipped / name).read_bytes() != path.read_bytes():
                    raise UserError(
                        f"{folder.name}/{name} would replace a config of the harness; give the file another name."
                    )


def _existing(shipped: Path, own: Path) -> list[Path]:
    return [shipped, *([own] if own.is_dir() and not (shipped.is_dir() and own.samefile(shipped)) else [])]


def _by_name(folders: Iterable[Path]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for folder in folders:
        for path in folder.glob("*.yaml"):
            files.setdefault(path.stem, path)
    return dict(sorted(files.items()))
