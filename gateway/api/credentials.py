"""Credentials of registries, for registrations that name them. They go in; names and hosts alone come out."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Annotated, Self

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, model_validator

from blockgate.names import DEVICE_NAME
from gateway import errors
from gateway.api.problems import responses
from gateway.api.schemas import CredentialList, CredentialView
from gateway.api.worker import worker_of
from gateway.errors import CredentialsNotFound, InvalidReference, InvalidRequest
from gateway.recipes.spec import check_name
from gateway.registry.credentials import Credentials
from gateway.registry.reference import parse_reference

router = APIRouter(prefix="/v1/credentials", tags=["credentials"])

Name = Annotated[str, Path(description=f"`{DEVICE_NAME[1:-1]}`", max_length=200)]
_Host = Annotated[str, StringConstraints(min_length=1, max_length=255)]


class CredentialBody(BaseModel):
    """A user name with its password, or an identity token (an OAuth2 refresh token)."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    hosts: list[_Host] = Field(
        min_length=1, max_length=100, description="The registries (`host[:port]`) that these may be sent to"
    )
    username: Annotated[str, StringConstraints(max_length=1024, pattern=r"^[^:\x00-\x1f\x7f]*$")] = ""
    password: Annotated[SecretStr, Field(max_length=8192)] | None = None
    identity_token: Annotated[SecretStr, Field(max_length=65536)] | None = None

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        if (self.password is None) == (self.identity_token is None):
            raise ValueError("give a password or an identity_token")
        if self.password is not None and not self.username:
            raise ValueError("a password belongs to a username")
        return self


@router.put(
    "/{name}",
    status_code=201,
    responses={
        200: {"model": CredentialView, "description": "They replace those that had this name"},
        **responses(errors.InvalidRequest, errors.PayloadTooLarge, errors.StorageError),
    },
)
async def store(name: Name, body: CredentialBody, request: Request, response: Response) -> CredentialView:
    """Keep credentials under a name, in a file of the data folder. No call ever shows them.

    An entry of the configuration wins over them, so its name is refused here.
    """
    check_name(name)
    services = worker_of(request).services
    if name in services.settings.credentials:
        raise InvalidRequest(f"the configuration has credentials {name!r}, which win; choose another name")
    hosts = tuple(dict.fromkeys(_host(text) for text in body.hosts))
    entry = Credentials(body.username, body.password, body.identity_token, hosts=hosts)
    created = await asyncio.to_thread(services.credentials.put, name, entry)
    response.status_code = HTTPStatus.CREATED if created else HTTPStatus.OK
    return CredentialView(name=name, hosts=list(hosts))


@router.get("", responses=responses(errors.StorageError))
async def listing(request: Request) -> CredentialList:
    """Names and hosts of what was stored here, by name; entries of the configuration are not shown."""
    entries = await asyncio.to_thread(worker_of(request).services.credentials.entries)
    return CredentialList(
        credentials=[
            CredentialView(name=name, hosts=list(entry.hosts)) for name, entry in sorted(entries.items())
        ]
    )


@router.delete(
    "/{name}", status_code=204, responses=responses(errors.CredentialsNotFound, errors.StorageError)
)
async def remove(name: Name, request: Request) -> Response:
    """Forget credentials. Devices that name them are refused by their registry from the next request on."""
    if not await asyncio.to_thread(worker_of(request).services.credentials.remove, name):
        raise CredentialsNotFound(f"no credentials are stored under the name {name[:140]!r}")
    return Response(status_code=HTTPStatus.NO_CONTENT)


def _host(text: str) -> str:
    """A registry's name as references have it. Raises ``InvalidRequest``."""
    try:
        reference = parse_reference(f"{text}/name")
    except InvalidReference as error:
        raise InvalidRequest(f"{text!r} is no registry; write host or host:port") from error
    if reference.registry is None or reference.repository not in {"name", "library/name"}:
        raise InvalidRequest(f"{text!r} is no registry; write host or host:port")
    return reference.registry
