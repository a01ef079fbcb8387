"""Check that each distribution here stands in requirements/test.lock with its version.

A dependency that is added without `make lock` installs in whatever version is the newest that day.
"""

import importlib.metadata
import re
import sys
from pathlib import Path

LOCK = Path(__file__).parent.parent / "requirements/test.lock"
# The project itself, and what makes and fills the environment.
NOT_LOCKED = {"blockgate", "pip", "setuptools", "wheel", "uv"}


def normalised(name: str) -> str:
    """A distribution's name as the lock spells it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    """Name what is not locked; the exit status tells whether there was any."""
    locked = set(re.findall(r"^([\w.-]+==[^\s;]+)", LOCK.read_text(), flags=re.MULTILINE))
    installed = {
        f"{normalised(found.name)}=={found.version}"
        for found in importlib.metadata.distributions()
        if normalised(found.name) not in NOT_LOCKED
    }
    for stranger in sorted(installed - locked):
        print(f"{stranger} is installed but not in {LOCK.name}: run make lock", file=sys.stderr)
    return 1 if installed - locked else 0


if __name__ == "__main__":
    sys.exit(main())
