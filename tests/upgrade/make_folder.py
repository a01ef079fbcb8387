"""Write ``folder-<format>.tar.gz``: the data folder of this version, and the images that its devices are made of.

Run it (``python -m tests.upgrade.make_folder``) when a format changed and before a release; keep what earlier releases wrote.
"""

import asyncio
import io
import tarfile
import tempfile
from pathlib import Path

from gateway import datafolder
from tests.support.inprocess import make_layout, running

HERE = Path(__file__).parent
IMAGE = {"source": {"image": "oci:images:image"}}
DEVICES = {
    "whole": IMAGE,
    "tar": {**IMAGE, "layout": "tar", "layer": {"index": 0}},
    "raw": {**IMAGE, "layout": "raw", "layer": {"index": 0}},
}
"""By name, with their specifications. The folder of images is named relatively: it lies elsewhere in each test."""


async def make(target: Path) -> None:
    """One device of each layout."""
    with tempfile.TemporaryDirectory() as folder:
        images = make_layout(Path(folder) / "images").folder
        async with running(Path(folder), images) as gateway:
            for name, body in DEVICES.items():
                answer = await gateway.client.put(f"/v1/devices/{name}", json=body)
                assert answer.status_code == 202, answer.text
            await gateway.settle()
        pack(Path(folder), target)


def pack(folder: Path, target: Path) -> None:
    """What is worth keeping of a data folder, and the images beside it."""
    passing = {("data", name) for name in ("cache", "locks", "run", "tmp")}
    with tarfile.open(target, "w:gz", compresslevel=9) as archive:
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder)
            if path.is_file() and inside.parts[:2] not in passing:
                content = path.read_bytes()
                member = tarfile.TarInfo(str(inside))
                member.size, member.mode = len(content), 0o644
                archive.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    asyncio.run(make(HERE / f"folder-{datafolder.FORMAT}.tar.gz"))
