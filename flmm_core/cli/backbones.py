"""`flmm backbones`"""

from __future__ import annotations

from flmm_core import plugins
from flmm_core.cli import backbones_check, backbones_new
from flmm_core.cli.plugins import plugin_group

command = plugin_group("backbone", "--options KEY=VALUE", lambda: plugins.load_backbones())
command.add_command(backbones_check.command)
command.add_command(backbones_new.command)
