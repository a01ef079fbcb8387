"""Before the first start: passwords into volumes that only their readers mount. What is there already stays.

Runs as root with CAP_CHOWN alone, and without a network.
"""

import os
import secrets
from pathlib import Path

GATEWAY_UID, DATABASE_UID, REGISTRY_UID, GRAFANA_UID = 10001, 999, 10002, 472


def write(path: Path, text: str, owner: int) -> None:
    """A file that its owner alone may read, whole or not at all."""
    aside = path.with_suffix(".new")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "w") as file:
        file.write(text)
    os.chown(aside, owner, owner)
    aside.rename(path)


def main() -> None:
    """Make what is missing below /prepared."""
    root = Path("/prepared")
    # The gateway's file comes last: with it, the database's is there too.
    passfile = root / "gateway/passfile"
    if not passfile.exists():
        password = secrets.token_urlsafe(24)
        write(root / "database/password", password, DATABASE_UID)
        # libpq's password file: host:port:database:user:password, and nobody else may read it.
        write(passfile, f"database:5432:blockgate:blockgate:{password}\n", GATEWAY_UID)
    if not (root / "grafana/password").exists():
        write(root / "grafana/password", secrets.token_urlsafe(24), GRAFANA_UID)
    os.chown(root / "registry", REGISTRY_UID, REGISTRY_UID)


if __name__ == "__main__":
    main()
