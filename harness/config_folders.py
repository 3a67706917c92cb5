"""Where config files lie: those that the harness ships, and a user's own in the working folder.

A checkout has them in ``conf/`` and ``sweeps/``; a wheel holds the same folders within the package. ``./conf`` and
``./sweeps`` of the working folder add choices and named sweeps to them, and can't replace any.

``sweeps/`` has the grids for a model of one's own. Those of published studies, and those made to judge an article, lie
in ``sweeps/published/``: they run by name as well, and help and messages only count them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from harness import plugin
from harness.errors import UserError

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent
SHIPPED = PACKAGE / "shipped" if (PACKAGE / "shipped").is_dir() else ROOT
CONF = SHIPPED / "conf"
SWEEPS = SHIPPED / "sweeps"
PUBLISHED = SWEEPS / "published"


def conf_folders() -> list[Path]:
    """The folders of config groups, in the order in which they are searched."""
    return [*_shipped_conf(), *_own("conf", CONF)]


def sweep_folders() -> list[Path]:
    """The folders of named sweeps, in the order in which they are searched."""
    return [SWEEPS, PUBLISHED, *_own("sweeps", SWEEPS)]


def group_files(group: str) -> dict[str, Path]:
    """The files of a config group by choice, sorted."""
    return _by_name(folder / group for folder in conf_folders())


def plugin_groups() -> list[str]:
    """The config groups that plug-ins add to those in conf/, sorted: those with a choice ``none``, the default."""
    return sorted(path.parent.name for folder in _plugin_conf() for path in folder.glob("*/none.yaml"))


def selected_groups() -> tuple[str, ...]:
    """The config groups of which a command line selects a choice, by GROUP=NAME."""
    return ("method", "model", "data", "eval", *plugin_groups(), "hydra/launcher", "hydra/sweeper")


def named_sweeps() -> dict[str, Path]:
    """The files of all named sweeps by name, sorted."""
    return _by_name(sweep_folders())


def offered_sweeps() -> dict[str, Path]:
    """The files of the named sweeps that help and messages list, by name, sorted: all but those in PUBLISHED."""
    return {name: path for name, path in named_sweeps().items() if path.parent != PUBLISHED}


def published_sweeps() -> dict[str, Path]:
    """The files of the named sweeps of published studies and articles, by name, sorted."""
    return _by_name([PUBLISHED])


def require_own_names() -> None:
    """Raise UserError if a file in the working folder has the name of a shipped one and other content."""
    for shipped, own in ((_shipped_conf(), _own("conf", CONF)), ([SWEEPS, PUBLISHED], _own("sweeps", SWEEPS))):
        for folder in own:
            for path in sorted(folder.rglob("*.yaml")):
                name = path.relative_to(folder)
                namesakes = [place / name for place in shipped if (place / name).is_file()]
                grouped = folder.name != "conf" or len(name.parts) > 1  # conf/config.yaml may be another program's
                if grouped and any(namesake.read_bytes() != path.read_bytes() for namesake in namesakes):
                    raise UserError(
                        f"{folder.name}/{name} would replace a config of the harness; give the file another name."
                    )


def _shipped_conf() -> list[Path]:
    return [CONF, *_plugin_conf()]


def _plugin_conf() -> list[Path]:
    return [part.conf for part in plugin.installed() if part.conf is not None]


def _own(name: str, shipped: Path) -> list[Path]:
    """The folder `name` of the working folder, in a list; an empty one if it is missing, or is `shipped` itself."""
    own = Path.cwd() / name
    return [own] if own.is_dir() and not (shipped.is_dir() and own.samefile(shipped)) else []


def _by_name(folders: Iterable[Path]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for folder in folders:
        for path in folder.glob("*.yaml"):
            files.setdefault(path.stem, path)
    return dict(sorted(files.items()))
