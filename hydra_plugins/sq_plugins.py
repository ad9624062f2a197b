"""Hydra plugin: YAML files of plugin packages are found beside those of sq."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from sq.core import plugins
from sq.core.paths import CONF


class Choices(SearchPathPlugin):
    """Adds them to the search path of sq's own programs, after sq's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append their folders, unless the path is that of another application."""
        # Not as pkg://mynet.conf: that would import the package, and torch with it, for --help.
        if any(item.path in (str(CONF), f"file://{CONF}") for item in search_path.get_path()):
            for folder in plugins.folders():
                search_path.append(provider="sq.plugins", path=f"file://{folder}")
