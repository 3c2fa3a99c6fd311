"""`flmm finders`"""

from __future__ import annotations

from flmm_core import plugins
from flmm_core.cli.plugins import plugin_group

command = plugin_group(
    "phrase finder", "--phrases NAME:KEY=VALUE", lambda: plugins.load_phrase_finders()
)
