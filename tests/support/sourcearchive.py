"""A real source archive from the package index, as it was published: a tar.gz that is a layer as it is."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.debianroot import made_once

_PROJECT = "docutils==0.21.2"


def source_archive() -> Path:
    """The tar.gz (2 MB, 700 entries), fetched once by pip from wherever pip fetches here."""

    def fetch(archive: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--disable-pip-version-check"]
            fetched = subprocess.run(
                [sys.executable, "-m", "pip", "download", *options, "--dest", folder, _PROJECT],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=100,
            )
            found = list(Path(folder).glob("*.tar.gz"))
            if fetched.returncode != 0 or len(found) != 1:
                pytest.skip(f"pip could not fetch the sources of {_PROJECT}: {fetched.stdout[-500:].strip()}")
            shutil.copyfile(found[0], archive)

    return made_once(f"{_PROJECT.replace('==', '-')}.tar.gz", fetch)
