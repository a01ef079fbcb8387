"""The node client's configuration.

Flags win over environment variables (``BLOCKGATE_NBD_…``), those over the TOML file, that over the defaults.
Unknown keys are refused. The result is frozen and handed down as plain values.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ByteSize, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from blockgate.environment import gateway_token
from blockgate.retry import RetryPolicy
from nbd_client.environment import PREFIX, config_file
from nbd_client.errors import InvalidOption
from nbd_client.report import NODE_NAME, REPORT_SECONDS
from nbd_client.source.http import HttpLimits
from nbd_client.source.readahead import ReadaheadPolicy
from nbd_client.source.stack import SourceOptions

_MIB = 1 << 20

_Seconds = Annotated[float, Field(gt=0, le=3600)]


class NodeSettings(BaseSettings):
    """Every setting, with its default and meaning."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    connections: int = Field(64, ge=1, le=1024, description="HTTP connections at a time, per device")
    cache: ByteSize = Field(ByteSize(64 * _MIB), description="Memory for what was read, per device in use")
    readahead: ByteSize = Field(ByteSize(8 * _MIB), description="Largest readahead of one stream; 0: none")
    connect_timeout_seconds: _Seconds = Field(10.0, description="For connecting")
    attempt_timeout_seconds: _Seconds = Field(
        27.0, description="For one HTTP request; longer than the gateway's own 25 s, shorter than the next"
    )
    read_timeout_seconds: _Seconds = Field(
        60.0, description="For one read with all its retries; shorter than the kernel's 90 s"
    )

    metrics: str | None = Field(
        None, description="Where to show Prometheus metrics: a port on loopback, or HOST:PORT"
    )
    report_seconds: float = Field(
        REPORT_SECONDS,
        ge=0,
        le=600,
        description="How often gateways are told what is attached here; 0: never",
    )
    node_name: Annotated[str, Field(pattern=NODE_NAME)] | None = Field(
        None, description="This node's name in its reports; default is the host's name"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, environment, file; nothing else."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, config_file())

    def source_options(self) -> SourceOptions:
        """How sources read, with the token that the environment holds."""
        window = int(self.readahead)
        return SourceOptions(
            http=HttpLimits(
                connections=self.connections,
                connect_timeout_seconds=self.connect_timeout_seconds,
                attempt_timeout_seconds=self.attempt_timeout_seconds,
            ),
            retry=RetryPolicy(total_seconds=self.read_timeout_seconds),
            # Two streams at full length; never more than half of the cache, or it would push itself out.
            readahead=ReadaheadPolicy(window_bytes=window, total_bytes=min(2 * window, int(self.cache) // 2)),
            cache_bytes=int(self.cache),
            token=gateway_token(),
        )


def load(**flags: Any) -> NodeSettings:
    """The settings, ``flags`` that are not None winning. Raises ``InvalidOption`` naming the setting."""
    try:
        return NodeSettings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "settings"
        raise InvalidOption(f"{name}: {first['msg']} (a flag, BLOCKGATE_NBD_…, or the file)") from None
    except ValueError as error:  # the file is no TOML
        raise InvalidOption(f"the configuration file cannot be understood: {error}") from error
