"""What of this machine is fit for which way of reading, what is left over from earlier, and what to do about it.

Nothing is changed by looking: no agent is started, no module loaded, no record removed.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from blockgate import connect
from blockgate.calls import Answer, GatewayUnreachable
from blockgate.retry import parse_http_date
from nbd_client.control import ask, running
from nbd_client.errors import BlockgateError, KernelUnsupported, RecordInvalid
from nbd_client.kernel.netlink import NbdNetlink
from nbd_client.kernel.sysfs import Sysfs, device_path
from nbd_client.mount import missing_for_fuse, recorded
from nbd_client.recovery import BACKEND_PREFIX, Records

_CLOCK_SECONDS = 5.0  # a Date has whole seconds, and the answer takes a while


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact. ``advice`` is empty when all is well."""

    subject: str
    good: bool
    text: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the kernel tells what it is and has; other folders in tests."""

    filesystems: Path = Path("/proc/filesystems")
    modules: Path = field(default_factory=lambda: Path("/lib/modules") / os.uname().release)
    sysfs: Sysfs = field(default_factory=Sysfs)


def examine(
    run_dir: Path, gateway: str, *, token: str | None = None, machine: Machine | None = None
) -> Iterator[Finding]:
    """Look at everything that attach and mount need, then at what is stale."""
    machine = machine or Machine()
    root = os.geteuid() == 0
    yield Finding(
        "privilege",
        root,
        "root" if root else "not root",
        "" if root else "attach and mount need root; serve does not",
    )
    yield _driver(machine)
    yield _erofs(machine)
    missing = missing_for_fuse()
    yield Finding(
        "FUSE",
        not missing,
        "usable" if not missing else "; ".join(missing),
        "" if not missing else "install it for mounting without the kernel's NBD driver",
    )
    uvloop = importlib.util.find_spec("uvloop") is not None
    yield Finding(
        "uvloop",
        uvloop,
        "installed" if uvloop else "missing: twice the CPU time per read",
        "" if uvloop else "pip install 'blockgate[node]'",
    )
    yield from ask_gateway(gateway, token)
    alive = running(run_dir)
    yield Finding("agent", True, f"{'runs' if alive else 'does not run (started when needed)'} in {run_dir}")
    held: list[dict[str, Any]] = []
    try:
        held = ask(run_dir, "list") if alive else []
    except BlockgateError as error:
        yield Finding("agent", False, error.detail, f"look at {run_dir / 'agent.log'}")
        return  # what is stale depends on what it holds
    try:
        yield from _devices(run_dir, machine.sysfs, alive)
        yield from _waiting(held, run_dir)
        yield from _mounts(run_dir, {one["device"] for one in held})
    except PermissionError as error:
        yield Finding("records", False, f"cannot read {error.filename}", "run it as root")


def can_mount(findings: list[Finding]) -> bool:
    """Whether one of the two ways of mounting works here."""
    good = {finding.subject for finding in findings if finding.good}
    return {"privilege", "EROFS"} <= good and bool({"kernel NBD", "FUSE"} & good)


def ask_gateway(url: str, token: str | None) -> Iterator[Finding]:
    """Whether it answers and takes our token, and whether its clock is ours: certificates and tokens depend on it."""
    try:
        with connect(url, token=token) as client:
            answer = client.look("/v1/devices?limit=1")
    except GatewayUnreachable as error:
        yield Finding("gateway", False, error.detail, "start it: blockgate serve")
        yield Finding("clock", True, "not compared: that needs a gateway")
        return
    now = datetime.now(UTC)
    yield _judged(client.url, answer, token)
    theirs = parse_http_date(answer.fields.get("date"))
    if theirs is None:
        yield Finding("clock", True, "not compared: the gateway does not say what time it is")
        return
    ahead = (now - theirs).total_seconds()
    good = abs(ahead) <= _CLOCK_SECONDS
    direction = "ahead of" if ahead > 0 else "behind"
    yield Finding(
        "clock",
        good,
        "agrees with the gateway's" if good else f"{abs(ahead):.0f} s {direction} the gateway's",
        "" if good else "set the one that is wrong, and keep it by NTP (chrony, systemd-timesyncd)",
    )


def _judged(where: str, answer: Answer, token: str | None) -> Finding:
    if answer.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        text = "refuses the token" if token else "wants a token"
        return Finding("gateway", False, f"{where} {text}", "put the right one into BLOCKGATE_TOKEN")
    try:
        json.loads(answer.body)["devices"]
    except (ValueError, LookupError, TypeError):
        return Finding(
            "gateway",
            False,
            f"what answers at {where} is no gateway (status {answer.status})",
            "say where it is: --gateway or BLOCKGATE_URL",
        )
    return Finding("gateway", True, f"{where} answers and lists its devices")


def _driver(machine: Machine) -> Finding:
    states = machine.sysfs.devices()
    free = f"{sum(not state.in_use for state in states)} of {len(states)} devices free"
    try:
        NbdNetlink.open().close()
    except KernelUnsupported as error:
        if states:
            return Finding(
                "kernel NBD", True, f"driver without netlink ({free}): devices end with the agent; {error}"
            )
        return Finding("kernel NBD", False, "no driver", _module_advice(machine, "nbd"))
    return Finding("kernel NBD", True, f"driver with netlink, {free}")


def _erofs(machine: Machine) -> Finding:
    known = machine.filesystems.read_text().split() if machine.filesystems.exists() else []
    if "erofs" in known:
        return Finding("EROFS", True, "known to the kernel")
    return Finding("EROFS", False, "not known to the kernel", _module_advice(machine, "erofs"))


def _module_advice(machine: Machine, name: str) -> str:
    """Whether the module is on disk decides between loading and installing."""
    if next(machine.modules.rglob(f"{name}.ko*"), None) is not None:
        return f"modprobe {name}"
    other = "; mount --via fuse works without it" if name == "nbd" else ""
    return (
        f"this kernel ({machine.modules.name}) comes without the module {name}: install the distribution's full kernel "
        f"or its extra modules, then modprobe {name}{other}"
    )


def _devices(run_dir: Path, sysfs: Sysfs, alive: bool) -> Iterator[Finding]:
    """Records without a device, devices without a record, and devices that nobody serves just now."""
    records, errors = Records(run_dir).load()
    for error in errors:
        yield Finding(
            "record", False, error.detail, "detach its device, if there is one, and remove the file"
        )
    present = {state.backend: state for state in sysfs.devices() if state.in_use and state.backend}
    for record in records:
        state = present.pop(record.backend, None)
        if state is None and not alive and record.index is not None:
            yield Finding(
                "record",
                False,
                f"{record.url} was {device_path(record.index)}, which is gone",
                "blockgate-nbd reattach --all removes the record",
            )
        elif state is not None and not alive:
            path = device_path(state.index)
            yield Finding(
                "device", False, f"{path} is parked: its reads wait", "blockgate-nbd reattach --all"
            )
    for backend, state in present.items():
        if backend is not None and backend.startswith(BACKEND_PREFIX):
            path = device_path(state.index)
            yield Finding(
                "device", False, f"{path} is of an agent whose record is lost", f"nbd-client -d {path}"
            )


def _waiting(held: list[dict[str, Any]], run_dir: Path) -> Iterator[Finding]:
    """Devices that the agent holds without their gateway."""
    for one in held:
        if one["state"] not in {"attached", "exported"}:
            yield Finding(
                "device",
                False,
                f"{one['device']} is {one['state']}: its reads wait for {one['url']}",
                f"is that gateway up? {run_dir / 'agent.log'} says more; blockgate-nbd reattach {one['device']}",
            )


def _mounts(run_dir: Path, served: set[str]) -> Iterator[Finding]:
    """Mounts that are gone, and those through FUSE whose server is: a killed agent leaves its sockets behind."""
    try:
        for _, mounted in recorded(run_dir):
            where = mounted.mountpoint
            if not os.path.ismount(where):
                yield Finding(
                    "mount",
                    False,
                    f"{where} is recorded and not mounted",
                    f"blockgate-nbd umount {where} takes away what is left of it",
                )
            elif mounted.socket is not None and mounted.socket not in served:
                yield Finding(
                    "mount",
                    False,
                    f"{where} lost its server when the agent ended: reads fail",
                    f"blockgate-nbd umount {where}, and mount it again",
                )
    except RecordInvalid as error:
        yield Finding("mount", False, error.detail, "remove the file if its mount is gone")
