"""What Hydra has to know of the harness: its resolvers, schema, sweeper, launcher and search path.

Hydra instantiates no plugin from outside the package hydra_plugins, so this module poses as one of its modules.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from harness import config as settings_of
from harness.config import SWEEPS, Config
from harness.sweep.app.sweeper import GridSweeper
from harness.sweep.launchers.local_parallel import LocalParallel


class SweepsOnSearchPath(SearchPathPlugin):
    def manipulate_search_path(self, search_path) -> None:
        search_path.append("sweeps", f"file://{SWEEPS}")


def register() -> None:
    """Register all of it; calling it again changes nothing."""
    settings_of.register_resolvers()
    ConfigStore.instance().store(name="schema", node=Config)
    for plugin in (GridSweeper, LocalParallel, SweepsOnSearchPath):
        Plugins.instance().register(plugin)
    # The package exists only where a plugin is installed.
    if "hydra_plugins" not in sys.modules and importlib.util.find_spec("hydra_plugins") is None:
        sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
    sys.modules["hydra_plugins.harness"] = sys.modules[__name__]
