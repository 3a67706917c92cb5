"""What Hydra has to know of the harness: its resolvers, schema, sweeper, launcher and search path.

Hydra instantiates no plugin from outside the package hydra_plugins, so this module poses as one of its modules.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf.basecontainer import BaseContainer

from harness import config as settings_of
from harness.config import Config, FullConfig
from harness.config_folders import conf_folders, plugin_groups, sweep_folders
from harness.sweep.app.sweeper import GridSweeper
from harness.sweep.launchers.local_parallel import LocalParallel


class ConfigFolders(SearchPathPlugin):
    """Searches for configs in all folders of config files. The first, conf/, is Hydra's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in (*sweep_folders(), *conf_folders()[1:]):
            search_path.append("harness", f"file://{folder}")


def _with_defaults() -> type[Config]:
    selected = ["_self_", *({group: "none"} for group in plugin_groups())]
    defaults = ("defaults", list[Any], dataclasses.field(default_factory=lambda: [*selected]))
    namespace = {"__module__": __name__}  # where pickle finds it
    return dataclasses.make_dataclass("DefaultConfig", [defaults], bases=(FullConfig,), namespace=namespace)


DefaultConfig = _with_defaults()
"""FullConfig with the choice ``none`` of each config group that plug-ins add; conf/config.yaml has those of its own."""


def register() -> None:
    """Register all of it; calling it again changes nothing."""
    settings_of.register_resolvers()
    ConfigStore.instance().store(name="schema", node=DefaultConfig)
    for plugin in (GridSweeper, LocalParallel, ConfigFolders):
        Plugins.instance().register(plugin)
    # The package exists only where a plugin is installed.
    if "hydra_plugins" not in sys.modules and importlib.util.find_spec("hydra_plugins") is None:
        sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
    sys.modules["hydra_plugins.harness"] = sys.modules[__name__]


@contextmanager
def own_hydra() -> Iterator[None]:
    """Within this context Hydra has a state of its own: the program around it may be a Hydra app itself.

    Importing Hydra, its plugins and this package fills its store of configs, once for a process; that has happened
    before, so both states have it.
    """
    Plugins.instance()
    theirs, resolvers = Singleton._instances, BaseContainer._resolvers
    running = (GlobalHydra, HydraConfig)
    Singleton._instances = copy.deepcopy({kind: of for kind, of in theirs.items() if kind not in running})
    BaseContainer._resolvers = dict(resolvers)
    try:
        yield
    finally:
        Singleton._instances, BaseContainer._resolvers = theirs, resolvers
