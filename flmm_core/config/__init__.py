"""The settings of a run. YAML stops here."""

from flmm_core.config.settings import (
    HeadConfig,
    Protocol,
    RunConfig,
    SamConfig,
    Section,
    Setting,
    Workers,
    load_config,
    option_name,
    settings,
)

__all__ = [
    "HeadConfig",
    "Protocol",
    "RunConfig",
    "SamConfig",
    "Section",
    "Setting",
    "Workers",
    "load_config",
    "option_name",
    "settings",
]
