"""`flmm refiners`"""

from __future__ import annotations

from flmm_core import plugins
from flmm_core.cli.plugins import plugin_group

command = plugin_group("refiner", "--refiner-option KEY=VALUE", lambda: plugins.load_refiners())
