"""Each file of a data folder is damaged in each way, while the gateway runs and while it is stopped."""

import contextlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.campaigns.campaign import Table, main
from tests.support.faultregistry import FaultRegistry
from tests.support.gateway import Gateway
from tests.support.gzips import member
from tests.support.life import (
    SETTINGS,
    Seen,
    artifact,
    attempt,
    content,
    cut_short,
    flip,
    heals,
    metadata_digest,
    put_image,
    registered,
    stays_ready,
)
from tests.support.processes import wait_until


def replaced_by_a_folder(path: Path) -> None:
    """A file that cannot be read even by root."""
    path.unlink()
    path.mkdir()


WAYS: dict[str, Callable[[Path], None]] = {
    "flipped bit": flip,
    "cut short": cut_short,
    "removed": Path.unlink,
    "unreadable": replaced_by_a_folder,
}


def supplied_device(gateway: Gateway, registry: FaultRegistry) -> tuple[Seen, bytes]:
    """A device whose metadata was uploaded, and that metadata: no other device has it."""
    image = put_image(registry, "team/supplied", [{"one": content(50_000, 91)}, {"two": content(50_000, 92)}])
    made = registered(gateway, "made", image)
    metadata = artifact(gateway, metadata_digest(made.device)).read_bytes()
    assert gateway.http.delete("/v1/devices/made").status_code == 204
    return registered(gateway, "supplied", image, metadata=gateway.upload(metadata)), metadata


def size_of(path: Path) -> int:
    """Length of a file; 0 for what is none, or is gone by now."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size if path.is_file() else 0
    return 0


def give_again(gateway: Gateway, kept: Seen, metadata: bytes) -> None:
    """What was supplied cannot be made again: it is uploaded when it is found to be lost."""
    if not attempt(gateway, kept.name, kept.content, kept.etag, span=(0, 4096)):
        stays_ready(gateway, kept)
        gateway.upload(metadata)


_SPARED = ("catalog.sqlite", "VERSION", "credentials.json")
_FOLDERS = ("layers", "artifacts", "cache")


def campaign(folder: Path, registry: FaultRegistry, chance: random.Random, table: Table, size: int) -> None:
    """At most ``size`` cases of file, way and moment; then everything but the catalog is taken away."""
    image = put_image(registry, "team/app", [{f"f{n}": content(200_000, n)} for n in range(3)])
    # Without a memory every read has to do with the files.
    with Gateway(folder / "gateway", settings=SETTINGS | {"memory_cache": 0}) as gateway:
        devices = [registered(gateway, name, image) for name in ("one", "two")]
        raw = gateway.register("raw", image.spec(layout="raw", layer={"index": 2}))
        answer = gateway.http.get("/v1/devices/raw/data")
        assert answer.content.startswith(member(image.tars[2])), raw
        devices.append(Seen("raw", answer.headers["etag"], answer.content, raw))
        device, supplied = supplied_device(gateway, registry)
        devices.append(device)

        def files() -> list[Path]:
            there = [
                path
                for name in _FOLDERS
                for path in sorted((gateway.data_dir / name).rglob("*"))
                if not any(part.endswith(".tmp") for part in path.parts)
            ]
            return [path for path in there if size_of(path)]

        cases = [(n, way, live) for n in range(len(files())) for way in WAYS for live in (True, False)]
        for number, way, live in chance.sample(cases, min(size, len(cases))):
            found = files()
            path = found[number % len(found)]
            case = f"{way}, {'running' if live else 'stopped'}: {path.parent.parts[-1][:12]}/{path.name[:20]}"
            with table.step(f"{way}, {'running' if live else 'stopped'}"):
                if not live:
                    gateway.stop()
                WAYS[way](path)
                if not live:
                    gateway.start()
                if "cache" not in path.parts:
                    gateway.drop_caches()
                try:
                    for layer, blob in enumerate(image.blobs):
                        if blob.removeprefix("sha256:") not in path.parts:
                            one = devices[0]
                            span = one.layer(image, layer)
                            assert attempt(gateway, one.name, one.content, one.etag, span=span), (
                                f"layer {layer}, which is whole, is not served"
                            )
                    give_again(gateway, devices[-1], supplied)
                    for kept in devices:
                        heals(gateway, kept)
                        # Nothing is being made any more: the next case finds all files at rest.
                        wait_until(
                            lambda kept=kept: stays_ready(gateway, kept).get("health", "ok") == "ok",
                            what="health",
                        )
                except AssertionError as error:
                    raise AssertionError(f"{case}: {error}") from error
            if gateway.running.returncode is not None:
                gateway.start()
        gateway.stop()
        for path in gateway.data_dir.iterdir():
            if not path.name.startswith(_SPARED):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        gateway.start()
        with table.step("what was supplied is supplied again"):
            give_again(gateway, devices[-1], supplied)
        for kept in devices:
            with table.step("everything but the catalog taken away"):
                heals(gateway, kept)
                stays_ready(gateway, kept)


if __name__ == "__main__":
    main(campaign, 1000)
