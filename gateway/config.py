"""The gateway's configuration: the only reader of the environment.

Flags win over environment variables (``BLOCKGATE_…``), those over the TOML file, that over the defaults. Unknown keys are
refused. The result is frozen and handed down; nothing else looks anything up.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from gateway.errors import ConfigurationError

DEFAULT_CONFIG_FILE = Path("/etc/blockgate/config.toml")
MIB = 1 << 20

_PREFIX = "BLOCKGATE_"
_NODE_PREFIX = "BLOCKGATE_NBD_"
# Of client commands, and of this module.
_OTHERS = {"BLOCKGATE_URL", "BLOCKGATE_TOKEN", "BLOCKGATE_CONFIG"}


def _default_data_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/blockgate")
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "blockgate"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CredentialEntry(_Section):
    """Credentials that registrations name; a password or an identity token."""

    hosts: Annotated[tuple[str, ...], Field(min_length=1)]
    """The registries (``host[:port]``) that these may be sent to: whoever registers a device chooses the registry."""
    username: str = ""
    password: SecretStr | None = None
    identity_token: SecretStr | None = None


class TokenEntry(_Section):
    """A bearer token, kept as its sha256. Several may have the same role: that is how they are rotated."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    role: Literal["admin", "node", "metrics"]


class Settings(BaseSettings):
    """Every setting, with its default and meaning."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        nested_model_default_partial_update=True,
    )

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one")
    workers: int = Field(1, ge=1, le=64, description="Processes that serve")
    data_dir: Path = Field(
        default_factory=_default_data_dir, description="Catalog, indexes, artifacts, cache"
    )
    database_url: SecretStr | None = Field(
        None,
        description="SQLAlchemy URL of the catalog (a secret: it may hold a password); default is SQLite in the data folder",
    )
    oci_roots: tuple[Path, ...] = Field((), description="Folders below which OCI layouts may be registered")

    memory_cache: ByteSize = Field(
        ByteSize(256 * MIB), description="Memory for decoded spans, all workers together"
    )
    disk_cache: ByteSize = Field(ByteSize(10 * 1024 * MIB), description="Disk for decoded spans")
    span_size: ByteSize = Field(
        ByteSize(MIB),
        ge=65536,
        le=64 * MIB,
        description="Decoded bytes between checkpoints of layers that are indexed here",
    )
    max_artifact: ByteSize = Field(ByteSize(4096 * MIB), description="Largest upload")
    max_fetching: ByteSize = Field(
        ByteSize(512 * MIB), description="Decoded bytes being fetched before requests are shed"
    )
    concurrent_fetches: int = Field(
        32, ge=1, le=1024, description="Ranges asked of registries at the same time"
    )

    credentials: dict[str, CredentialEntry] = Field(
        default_factory=dict, description="Credentials by name, for registrations that name them"
    )
    auth_files: tuple[Path, ...] | None = Field(
        None,
        description="docker config.json and podman auth.json files; default is where those programs look",
    )
    insecure_registries: tuple[str, ...] = Field(
        (),
        description="Registries (`host[:port]`) that are spoken to over plain HTTP whatever a registration says",
    )
    allow_addresses: tuple[str, ...] = Field(
        (),
        description="Hosts, host:port or networks that realms and redirects may lead to though they are not public",
    )
    mirrors: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="Mirrors by registry, tried in order before the registry itself"
    )
    registry_attempt_seconds: float = Field(10.0, gt=0, description="Deadline of one request to a registry")
    registry_min_bytes_per_second: float = Field(
        16384.0, gt=0, description="A registry that sends slower than this is given up and asked again"
    )
    registry_deadline_seconds: float = Field(
        25.0, gt=0, description="Deadline of a range with all its retries"
    )

    tokens: tuple[TokenEntry, ...] = Field(
        (), description="Bearer tokens; none means that everybody may do everything"
    )
    allow_anonymous: bool = Field(
        default=False, description="Listen on an address that is not loopback though there are no tokens"
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="Origins whose pages may read devices in a browser (`https://host`)"
    )
    drain_seconds: float = Field(
        2.0, ge=0, description="How long to go on accepting after SIGTERM, not ready"
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto: console on a terminal, else json"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe record written"
    )

    @property
    def catalog_url(self) -> str:
        """The catalog's SQLAlchemy URL."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.data_dir / 'catalog.sqlite'}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, environment, file. No dotenv file, no secrets folder."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, _FILE.get("path"))


# pydantic-settings takes sources per class, not per call: this is how the file's path reaches the one above.
_FILE: dict[str, Path] = {}


def load(file: Path | None = None, **flags: Any) -> Settings:
    """Read the configuration. ``flags`` are those that were given; ``None`` means not given.

    Raises ``ConfigurationError`` naming each wrong key.
    """
    named = file or (Path(os.environ["BLOCKGATE_CONFIG"]) if os.environ.get("BLOCKGATE_CONFIG") else None)
    if named is not None and not named.is_file():
        raise ConfigurationError(f"the configuration file {named} does not exist")
    _refuse_unknown_variables()
    _FILE.clear()
    if named or DEFAULT_CONFIG_FILE.is_file():
        _FILE["path"] = named or DEFAULT_CONFIG_FILE
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'configuration'}: {e['msg']}" for e in error.errors()
        )
        raise ConfigurationError(f"wrong configuration: {wrong}") from None
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"the configuration cannot be read: {error}") from None
    finally:
        # Settings that are made without a file later must not meet this one.
        _FILE.clear()


def _refuse_unknown_variables() -> None:
    """A misspelt variable would otherwise change nothing, and nobody would know."""
    known = {f"{_PREFIX}{name.upper()}" for name in Settings.model_fields}
    for variable in os.environ:
        setting = variable.partition("__")[0]
        if (
            variable.startswith(_PREFIX)
            and not variable.startswith(_NODE_PREFIX)
            and setting not in known | _OTHERS
        ):
            close = difflib.get_close_matches(variable, known, 1)
            hint = f"; is {close[0]} meant?" if close else ""
            raise ConfigurationError(f"the environment variable {variable} is no setting{hint}")


def environment() -> dict[str, str]:
    """A copy of the environment, for those few places that need other programs' variables."""
    return dict(os.environ)
