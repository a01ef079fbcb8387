import gzip
import tarfile

import pytest

from tests.support.debianroot import debian_root_tar, debian_root_tar_gz

pytestmark = pytest.mark.real


def test_the_root_is_a_whole_debian_and_made_once() -> None:
    tar = debian_root_tar()
    made = tar.stat()
    with tarfile.open(tar) as archive:
        names = {entry.name.removeprefix("./") for entry in archive}
    assert {"etc/debian_version", "usr/bin/dpkg", "var/lib/dpkg/status"} <= names
    assert debian_root_tar().stat().st_mtime_ns == made.st_mtime_ns


def test_the_compressed_root_is_that_tar() -> None:
    with gzip.open(debian_root_tar_gz()) as unzipped, debian_root_tar().open("rb") as tar:
        while piece := tar.read(1 << 20):
            assert unzipped.read(1 << 20) == piece
        assert unzipped.read() == b""
