"""What is read from the environment without the configuration's machinery, which takes a while to import.

An agent that takes devices over should not spend that while when nothing is configured.
"""

from __future__ import annotations

import os
from pathlib import Path

PREFIX = "BLOCKGATE_NBD_"
_CONFIG_FILE = Path("/etc/blockgate/nbd.toml")
# Known before any setting is: the first is a flag of every command, the second where the settings are.
_NOT_SETTINGS = frozenset({f"{PREFIX}RUN_DIR", f"{PREFIX}CONFIG"})


def config_file() -> Path:
    """The TOML file, whether it exists or not."""
    return Path(os.environ.get(f"{PREFIX}CONFIG", _CONFIG_FILE))


def configured() -> bool:
    """Whether any setting can differ from its default."""
    names = (name.upper() for name in os.environ)
    return config_file().exists() or any(
        name.startswith(PREFIX) and name not in _NOT_SETTINGS for name in names
    )
