"""Nothing blocks the event loop: no call to the file system, no callback that runs or waits for long.

The gateway runs in this process, its load in another one. An audit hook sees calls that may block (PEP 578); each
callback of the loop is timed by its thread's own CPU time, so a busy machine is no failure. Waiting is told from being
preempted by the kind of context switch: a thread that is preempted switches involuntarily.
"""

import asyncio
import contextlib
import gc
import json
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import pytest

from tests.support.inprocess import make_layout, served
from tests.support.life import SETTINGS, Image, small_image
from tests.support.threadedregistry import ThreadedRegistry

_REPOSITORY = Path(__file__).parents[2]
_LONGEST_SECONDS = 0.020
#: A wait that is long once may be the interpreter's lock; one that is long again and again is the callback's own.
_WAITS = 3
_BLOCKING = frozenset(
    {
        "open",
        "os.listdir",
        "os.link",
        "os.mkdir",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.scandir",
        "os.truncate",
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "time.sleep",
    }
)
_BLOCKING_GROUPS = ("shutil.", "sqlite3.", "subprocess.")
#: Beginnings and endings of paths that may be opened on the loop, and why.
_ALLOWED_BEGINNINGS = {
    "/proc/": "made by the kernel from memory",
    "/sys/": "made by the kernel from memory",
}
_ALLOWED_ENDINGS = {
    (".py", ".pyc", ".so"): "an import at its first use, or the source lines of a traceback",
}


class Watch:
    """What the threads of event loops do while ``on`` is set; the registry's loop is not watched."""

    def __init__(self) -> None:
        self.on = False
        self.calls: Counter[str] = Counter()
        self.slow: list[tuple[float, float, str]] = []
        self.waits: Counter[str] = Counter()
        self.callbacks = 0
        self._loops: set[int] = set()

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        """The hook; it stays for the life of the process and does nothing while ``on`` is not set."""
        if not self.on or threading.get_ident() not in self._loops:
            return
        if event not in _BLOCKING and not event.startswith(_BLOCKING_GROUPS):
            return
        what = args[0] if args else ""
        if isinstance(what, bytes):
            what = what.decode(errors="replace")
        if isinstance(what, str) and (
            what.startswith(tuple(_ALLOWED_BEGINNINGS))
            or what.endswith(tuple(e for t in _ALLOWED_ENDINGS for e in t))
        ):
            return
        self.calls[f"{event} from {_callers(sys._getframe(1))}"] += 1

    def timed(self, handle: asyncio.Handle, run: Any) -> None:
        """Run a callback of a loop."""
        ident = threading.get_ident()
        if not self.on or threading.current_thread().name == "registry":
            run(handle)
            return
        self._loops.add(ident)
        before, cpu, wall = resource.getrusage(resource.RUSAGE_THREAD), time.thread_time(), time.monotonic()
        run(handle)
        wall, cpu = time.monotonic() - wall, time.thread_time() - cpu
        self.callbacks += 1
        if wall <= _LONGEST_SECONDS:
            return
        after = resource.getrusage(resource.RUSAGE_THREAD)
        text = repr(handle)
        if cpu > _LONGEST_SECONDS:
            self.slow.append((cpu, wall, text))
        elif after.ru_nvcsw > before.ru_nvcsw and after.ru_nivcsw == before.ru_nivcsw:
            self.waits[_stable(text)] += 1


def _callers(frame: FrameType | None) -> str:
    """The program's own frames, the innermost first."""
    names: list[str] = []
    while frame is not None and len(names) < 4:
        path = Path(frame.f_code.co_filename)
        if {"gateway", "blockgate"} & set(path.parts) and "site-packages" not in path.parts:
            names.append(f"{path.parent.name}/{path.name}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(names) or "outside of the program"


def _stable(text: str) -> str:
    """A callback's representation without addresses and task numbers."""
    return " ".join(w for w in text.split() if "0x" not in w and "Task-" not in w)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    watch = Watch()
    run = asyncio.Handle._run
    monkeypatch.setattr(asyncio.Handle, "_run", lambda handle: watch.timed(handle, run))
    sys.addaudithook(watch.audit)
    interval = sys.getswitchinterval()
    # Threads that decode take turns with the loop more often; objects of the tests are no work for the collector.
    sys.setswitchinterval(0.0005)
    gc.collect()
    gc.freeze()
    try:
        yield watch
    finally:
        watch.on = False
        gc.unfreeze()
        sys.setswitchinterval(interval)


def test_the_watch_tells_what_blocks_and_nothing_else(watch: Watch, tmp_path: Path) -> None:
    """That of which the other test trusts that it would be seen."""

    def computes() -> None:
        end = time.thread_time() + 2 * _LONGEST_SECONDS
        while time.thread_time() < end:
            pass

    def waits() -> None:
        threading.Event().wait(1.5 * _LONGEST_SECONDS)

    def opens() -> None:
        (tmp_path / "file").write_bytes(b"")
        Path("/proc/self/status").read_bytes()

    async def work() -> None:
        # A wait that is preempted too does not count: there are more of them than are needed.
        for callback in [computes, opens, *[waits] * 10 * _WAITS]:
            asyncio.get_running_loop().call_soon(callback)
            await asyncio.sleep(0)
        await asyncio.to_thread((tmp_path / "file").read_bytes)

    watch.on = True
    asyncio.run(work())
    watch.on = False
    assert [text for _, _, text in watch.slow if "computes" in text]
    assert all("computes" in text for _, _, text in watch.slow)
    assert [count for text, count in watch.waits.items() if "waits" in text and count >= _WAITS]
    assert sum(watch.calls.values()) == 1, watch.calls


@pytest.mark.timeout(240)
def test_a_mix_of_all_that_a_gateway_does_never_blocks_its_event_loop(tmp_path: Path, watch: Watch) -> None:
    images = tmp_path / "images"
    images.mkdir()
    make_layout(images / "layout")
    settings = {name: value for name, value in SETTINGS.items() if name != "allow_addresses"}
    with ThreadedRegistry() as registry, served(tmp_path, images / "layout", **settings) as (url, _):
        made: list[Image] = [small_image(registry, f"team/app{n}", n, size=600_000) for n in range(4)]
        specs = [image.spec() for image in made]
        specs += [image.layer_spec() for image in made]
        watch.on = True
        argv = [
            sys.executable,
            "-m",
            "tests.acceptance.test_event_loop",
            url,
            str(tmp_path / "data"),
            json.dumps(specs),
        ]
        load = subprocess.run(argv, cwd=_REPOSITORY, capture_output=True, text=True, timeout=200, check=False)
        watch.on = False
    assert load.returncode == 0, load.stderr[-3000:]
    assert watch.callbacks > 500
    calls = [f"{count} x {call}" for call, count in watch.calls.most_common()]
    slow = [
        f"{cpu * 1e3:.0f} ms of CPU, {wall * 1e3:.0f} ms: {text}"
        for cpu, wall, text in sorted(watch.slow, reverse=True)
    ]
    waits = [f"{count} x {text}" for text, count in watch.waits.most_common() if count >= _WAITS]
    # All of it at once: whoever mends one kind wants to see the others.
    found = {
        "blocking calls on the event loop": calls,
        "callbacks that ran for long": slow[:10],
        "callbacks that waited for long": waits,
    }
    report = "".join(f"\n{what}:\n  " + "\n  ".join(lines) for what, lines in found.items() if lines)
    assert not report, report


def _settled(http: httpx.Client, name: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        device = http.get(f"/v1/devices/{name}").raise_for_status().json()
        if device["state"] != "indexing":
            return dict(device)
        assert time.monotonic() < deadline, device
        time.sleep(0.02)


def load(url: str, data: Path, specs: list[dict[str, Any]]) -> None:
    """The load: three rounds of registering, reading cold and hot, losing a layer's index, observing and removing."""
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        for turn in range(3):
            for number, spec in enumerate(specs):
                assert http.put(f"/v1/devices/d{number}", json=spec).status_code == 202
            for number in range(len(specs)):
                device = _settled(http, f"d{number}")
                assert device["state"] == "ready", device
                for _ in range(2):
                    assert http.get(f"/v1/devices/d{number}/data").status_code == 200
            http.delete("/v1/cache")
            for path in ("/v1/devices", "/metrics", "/v1/stats", "/readyz?verbose=1", "/v1/cache"):
                for _ in range(5):
                    assert http.get(path).status_code == 200, path
            _lose_an_index(data, turn)
            for number in range(len(specs)):
                # Until the index is made again a read may fail; that it comes to an end is another file's matter.
                with contextlib.suppress(httpx.RemoteProtocolError):
                    http.get(f"/v1/devices/d{number}/data")
            for number in range(len(specs)):
                assert http.delete(f"/v1/devices/d{number}").status_code == 204


def _lose_an_index(data: Path, turn: int) -> None:
    found = sorted(data.glob("layers/**/spans.bin"))
    found[turn % len(found)].unlink()


if __name__ == "__main__":
    load(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
