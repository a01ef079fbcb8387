"""What /sys/block/nbdX tells, and what is set there. ``root`` is another folder in tests."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nbd_client.errors import InvalidOption

SECTOR_BYTES = 512
_NAME = re.compile(r"nbd([0-9]{1,4})")


@dataclass(frozen=True, slots=True)
class DeviceState:
    """``size`` in bytes. ``pid`` goes stale after a reattach; ``backend`` is who owns the device, or None."""

    index: int
    size: int
    pid: int | None
    backend: str | None

    @property
    def in_use(self) -> bool:
        """Whether a client is attached: netlink's own "connected" means little."""
        return self.size != 0 and (self.pid is not None or self.backend is not None)


def index_of(device: str) -> int:
    """3 for ``/dev/nbd3``. Raises ``InvalidOption``."""
    matched = _NAME.fullmatch(device.removeprefix("/dev/"))
    if matched is None:
        raise InvalidOption(f"{device} is not an NBD device; they are called /dev/nbd0, /dev/nbd1, ...")
    return int(matched[1])


def device_path(index: int) -> str:
    """``/dev/nbd3`` for 3."""
    return f"/dev/nbd{index}"


class Sysfs:
    """Reads and sets attributes of NBD devices."""

    def __init__(self, root: Path = Path("/sys/block")) -> None:
        self._root = root

    def state(self, index: int) -> DeviceState | None:
        """What is known of a device; None when there is no such device."""
        folder = self._root / f"nbd{index}"
        sectors = _read(folder / "size")
        if sectors is None:
            return None
        pid = _read(folder / "pid")
        return DeviceState(
            index,
            int(sectors) * SECTOR_BYTES,
            int(pid) if pid else None,
            _read(folder / "backend") or None,
        )

    def devices(self) -> list[DeviceState]:
        """Every NBD device of the kernel, by index."""
        names = (_NAME.fullmatch(entry.name) for entry in self._root.glob("nbd*"))
        indexes = sorted(int(name[1]) for name in names if name)
        return [state for state in map(self.state, indexes) if state is not None]

    def tune(self, index: int, *, request_kib: int, readahead_kib: int) -> None:
        """Let the kernel ask for more at once than its 128 KiB. As far as it allows it: only speed is at stake.

        Blocks until the device's server answered every read that is under way (the kernel freezes the queue), so it must not
        be called from the server's own thread: udev reads a device as soon as it has a size.
        """
        queue = self._root / f"nbd{index}" / "queue"
        hardware = _read(queue / "max_hw_sectors_kb")
        if hardware:
            request_kib = min(request_kib, int(hardware))
        for name, value in (("max_sectors_kb", request_kib), ("read_ahead_kb", readahead_kib)):
            with suppress(OSError):
                (queue / name).write_text(str(value))


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
