import tarfile

import pytest

from tests.support.debianroot import debian_root_tar


@pytest.mark.real
def test_the_root_is_a_whole_debian_and_made_once() -> None:
    tar = debian_root_tar()
    made = tar.stat()
    with tarfile.open(tar) as archive:
        names = {entry.name.removeprefix("./") for entry in archive}
    assert {"etc/debian_version", "usr/bin/dpkg", "var/lib/dpkg/status"} <= names
    assert debian_root_tar().stat().st_mtime_ns == made.st_mtime_ns
