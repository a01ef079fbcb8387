"""Write docs/configuration.md and deploy/blockgate.toml from the programs' settings; with --check, fail when they differ."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from gateway.config import CredentialEntry, Settings, TokenEntry
from nbd_client.config import NodeSettings

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/configuration.md"
DEFAULTS = ROOT / "deploy/blockgate.toml"
LINE_LENGTH = 118

# What the default is where it depends on the machine, and an example where there is none.
DEPENDS = {"data_dir": "`/var/lib/blockgate` for root, else below `$XDG_DATA_HOME` or `~/.local/share`"}
EXAMPLES = {
    "data_dir": '"/var/lib/blockgate"',
    "database_url": '"postgresql+psycopg://blockgate@database/blockgate?passfile=/etc/blockgate/passfile"',
    "auth_files": '["/etc/blockgate/auth.json"]',
    "oci_roots": '["/srv/images"]',
    "insecure_registries": '["registry.internal:5000"]',
    "allow_addresses": '["10.0.0.0/8", "tokens.internal:443"]',
    "mirrors": '{ "docker.io" = ["mirror.internal"] }',
    "cors_origins": '["https://viewer.internal"]',
    "credentials": '{ ci = { hosts = ["registry.internal"], username = "reader", password = "..." } }',
    "tokens": '[{ sha256 = "64 hexadecimal digits", role = "node" }]',
}
FLAGS = {
    "host": "--host",
    "port": "--port",
    "workers": "--workers",
    "data_dir": "--data-dir",
    "oci_roots": "--oci-root",
}

HEAD = """# Configuration

<!-- Made by scripts/configuration_docs.py from gateway/config.py and nbd_client/config.py: change those, then run it. -->

A flag wins over an environment variable, that over the file, that over the default. Unknown names in a file are refused.

The gateway's file is `/etc/blockgate/config.toml` if it exists, or what `--config` or `BLOCKGATE_CONFIG` names;
[deploy/blockgate.toml](../deploy/blockgate.toml) has every setting with its default. The node's is
`/etc/blockgate/nbd.toml`, or what `BLOCKGATE_NBD_CONFIG` names.

Sizes are bytes, or a number with a unit: `256MiB`, `10GiB`. In an environment variable, lists and tables are JSON:
`BLOCKGATE_OCI_ROOTS='["/srv/images"]'`; entries of tables can be set singly:
`BLOCKGATE_CREDENTIALS__CI__PASSWORD=...`. Durations are in seconds.
`blockgate doctor --config FILE` checks a configuration.

Besides these, client commands of both programs read `BLOCKGATE_URL` (the gateway; default `http://127.0.0.1:8080`) and
`BLOCKGATE_TOKEN` (the bearer token, which is never an argument: arguments are seen by every user of a machine).
"""

CREDENTIALS = """
### Entries of `credentials`

A registration names one (`"credentials": "ci"`); it is sent to its `hosts` alone. Without a name, the host is looked up in
`auth_files`, which is where `docker login` and `podman login` write.

"""

TOKENS = """
### Entries of `tokens`

Of a token only its sha256 is kept: `token=$(openssl rand -hex 32); printf %s "$token" | sha256sum`.
To rotate one, add the new one, change its users, take the old one away. Roles: `admin` may do everything, `node` may read
devices and their bytes, `metrics`
may read `/metrics`. `/livez` and `/readyz` need none.

"""

NODE = """
## Node (`blockgate-nbd`)

The agent's folder (its socket, log and records) is known before any setting is read: it is `--run-dir` of every command, or
`BLOCKGATE_NBD_RUN_DIR`; `/run/blockgate-nbd` by default.

"""

TOML_HEAD = """# Every setting of the gateway with its default. What is commented out has none, and shows an example.
# Made by scripts/configuration_docs.py; docs/configuration.md explains roles, credentials and environment variables.
"""


def size(value: int) -> str:
    """Bytes with the largest unit that leaves a whole number."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if value and value % (1 << shift) == 0:
            return f"{value >> shift}{unit}"
    return str(value)


def default_of(field: FieldInfo) -> Any:
    """A field's default; ``PydanticUndefined`` for one that has to be given."""
    if field.default is PydanticUndefined and field.default_factory is not None:
        return field.default_factory()  # type: ignore[call-arg]
    return field.default


def toml(value: Any) -> str | None:
    """A default as TOML writes it; None where there is none to write."""
    if value is None or value is PydanticUndefined:
        return None
    if isinstance(value, ByteSize):
        return f'"{size(value)}"'
    if isinstance(value, Path):
        return json.dumps(str(value))
    if isinstance(value, tuple | list):
        return "[" + ", ".join(filter(None, map(toml, value))) + "]"
    if isinstance(value, dict):
        return "{}"
    return json.dumps(value)


def cell(name: str, field: FieldInfo) -> str:
    """A default as the page's table shows it."""
    if name in DEPENDS:
        return DEPENDS[name]
    written = toml(default_of(field))
    if written is None:
        return "has to be given" if field.is_required() else "none"
    return f"`{written}`"


def limits(field: FieldInfo) -> str:
    """The bounds of a number, or the words to choose from."""
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(get_args(field.annotation))
    found = {}
    for bound in field.metadata:
        for name in ("ge", "gt", "le", "lt"):
            if (value := getattr(bound, name, None)) is not None:
                found[name] = size(value) if field.annotation is ByteSize else f"{value:g}"
    low = f"from {found['ge']}" if "ge" in found else f"above {found['gt']}" if "gt" in found else ""
    high = f"to {found['le']}" if "le" in found else ""
    return " ".join(filter(None, (low, high)))


def table(model: type[BaseModel], prefix: str, flags: dict[str, str]) -> str:
    """All settings of a program as a table."""
    lines = ["| file | environment | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        meaning = (field.description or "").rstrip(".")
        if bounds := limits(field):
            meaning += f" ({bounds})"
        if name in flags:
            meaning += f"; flag `{flags[name]}`"
        lines.append(f"| `{name}` | `{prefix}{name.upper()}` | {cell(name, field)} | {meaning} |")
    return "\n".join(lines) + "\n"


def entries(model: type[BaseModel], meanings: dict[str, str]) -> str:
    """The fields of a nested table. ``meanings`` names each of them."""
    if set(meanings) != set(model.model_fields):
        raise SystemExit(
            f"{model.__name__} has other fields than are explained here: {set(model.model_fields)}"
        )
    lines = ["| name | default | meaning |", "|---|---|---|"]
    lines += [
        f"| `{name}` | {cell(name, model.model_fields[name])} | {text} |" for name, text in meanings.items()
    ]
    return "\n".join(lines) + "\n"


def page() -> str:
    """docs/configuration.md."""
    credential = {
        "hosts": "Registries (`host[:port]`) that these may be sent to",
        "username": "With `password`",
        "password": "With `username`",
        "identity_token": "Instead of a password: what `docker login` to some registries leaves",
    }
    token = {"sha256": "64 hexadecimal digits", "role": "`admin`, `node` or `metrics`"}
    return "".join(
        [
            HEAD,
            "\n## Gateway (`blockgate serve`)\n\n",
            table(Settings, "BLOCKGATE_", FLAGS),
            CREDENTIALS,
            entries(CredentialEntry, credential),
            TOKENS,
            entries(TokenEntry, token),
            NODE,
            table(NodeSettings, "BLOCKGATE_NBD_", {}),
        ]
    )


def defaults() -> str:
    """deploy/blockgate.toml."""
    lines = [TOML_HEAD]
    for name, field in Settings.model_fields.items():
        bounds = limits(field)
        comment = f"{(field.description or '').rstrip('.')}{f' ({bounds})' if bounds else ''}."
        written = None if name in DEPENDS else toml(default_of(field))
        if written in (None, "[]", "{}"):
            lines.append(f"# {comment}\n# {name} = {EXAMPLES[name]}\n")
        else:
            lines.append(f"# {comment}\n{name} = {written}\n")
    return "\n".join(lines)


def main() -> int:
    """Exit status 1 when --check finds a difference."""
    stale = [path for path, text in ((PAGE, page()), (DEFAULTS, defaults())) if not _is(path, text)]
    if "--check" in sys.argv:
        for path in stale:
            print(
                f"{path.relative_to(ROOT)} is not what the code says; run: python scripts/configuration_docs.py",
                file=sys.stderr,
            )
        return 1 if stale else 0
    PAGE.write_text(page())
    DEFAULTS.write_text(defaults())
    return 0


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main())
