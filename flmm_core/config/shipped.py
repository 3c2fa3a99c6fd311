"""The configurations that come with flmm: `--config paper`."""

from __future__ import annotations

import logging
from pathlib import Path

from flmm_core.errors import ConfigError, did_you_mean

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parents[1] / "configs"


def shipped() -> dict[str, Path]:
    """The files by name, in order."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def find_config(given: Path) -> Path:
    """A file of the user, else a configuration that comes with flmm, by its name.

    Raises:
        ConfigError: There is neither.
    """
    known = shipped()
    own = known.get(str(given))
    if given.is_file():
        if own is not None:
            logger.warning(
                "--config %s: the file of this name here is used, not the configuration that comes"
                " with flmm.",
                given,
            )
        return given
    if own is not None:
        return own
    if given.exists() or given.suffix or given != Path(given.name):
        return given  # meant as a path: the reader says what is wrong with it
    raise ConfigError(
        f"There is no configuration '{given}'. {did_you_mean(str(given), known)}".rstrip(),
        found=f"No such file here; these come with flmm: {', '.join(known)}.",
        repair="Give one of these names, or a YAML file.",
    )
