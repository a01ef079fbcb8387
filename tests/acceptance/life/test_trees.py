"""Trees of old tars: nothing is lost silently."""

import io
import tarfile

from tests.support.erofsreader import read_tree
from tests.support.faultregistry import FaultRegistry
from tests.support.gateway import Gateway
from tests.support.life import put_image


def v7_directory(name: str, size: int) -> bytes:
    """A directory as before POSIX: type NUL, a name that ends in a slash, and a size that counts for nothing."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o755
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT)[:512])
    header[156:157] = b"\0"
    header[257:512] = bytes(255)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def test_a_directory_of_an_old_tar_that_has_a_size_swallows_no_member(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("old/kept", "last"):
            info = tarfile.TarInfo(name)
            info.size = 5
            tar.addfile(info, io.BytesIO(b"kept\n"))
    image = put_image(registry, "team/old", [v7_directory("old/", 1024) + out.getvalue()])
    device = gateway.register("old", image.spec())
    assert device["state"] == "ready", device
    data = gateway.http.get("/v1/devices/old/data").content
    tree = {path.decode().strip("/"): node for path, node in read_tree(lambda o, n: data[o : o + n]).items()}
    assert {"old", "old/kept", "last"} <= tree.keys()
    assert tree["old/kept"].content() == b"kept\n"
