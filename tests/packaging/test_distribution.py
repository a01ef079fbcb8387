"""What is published: a wheel and an sdist of the same content, and a node client without a web framework."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements/test.lock"
# What only the gateway needs.
GATEWAY_ONLY = {"fastapi", "starlette", "uvicorn", "sqlalchemy", "alembic", "psycopg", "aiohttp", "isal"}
UNREACHABLE = ("NewConnectionError", "NameResolutionError", "Temporary failure", "Network is unreachable")

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]


def run(*argv: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(argument) for argument in argv],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    if done.returncode and any(reason in done.stderr for reason in UNREACHABLE):
        pytest.skip("pip reaches no package index from here")
    assert done.returncode == 0, f"{argv}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def pip(python: Path, *arguments: str | Path) -> str:
    return run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "--disable-pip-version-check",
        "--no-input",
        *arguments,
    )


def environment(folder: Path) -> Path:
    """A fresh virtual environment; returns its interpreter. Filled from outside, so it needs no pip of its own."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    return folder / "bin/python"


class Distributions(NamedTuple):
    wheel: Path
    sdist: Path


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Distributions:
    folder = tmp_path_factory.mktemp("dist")
    python = environment(folder / "builder")
    pip(python, "install", "--quiet", "hatchling>=1.25,<2")
    # Hatchling builds the wheel from the tree and the sdist beside it.
    run(python, "-m", "hatchling", "build", "--directory", folder / "dist", cwd=ROOT)
    (wheel,) = (folder / "dist").glob("*.whl")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    return Distributions(wheel, sdist)


def files_below(*folders: str) -> set[str]:
    """All files below folders of the repository."""
    return {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_has_both_packages_with_all_their_files_and_nothing_else(distributions):
    with zipfile.ZipFile(distributions.wheel) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == files_below("blockgate", "gateway", "nbd_client")


def test_what_is_no_code_is_packaged_too(distributions):
    with zipfile.ZipFile(distributions.wheel) as wheel:
        names = set(wheel.namelist())
    assert "gateway/catalog/migrations/script.py.mako" in names
    assert any(name.startswith("gateway/catalog/migrations/versions/0") for name in names)
    assert any(name.startswith("gateway/api/dashboard/static/") and name.endswith(".html") for name in names)
    assert {"blockgate/py.typed", "gateway/py.typed", "nbd_client/py.typed"} <= names


def test_the_sdist_holds_what_the_wheel_is_built_from(distributions):
    with tarfile.open(distributions.sdist) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert files_below("blockgate", "gateway", "nbd_client") <= names
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"} <= names
    assert "docs/getting-started.md" in names
    assert [name for name in names if name.startswith((".git/", ".venv/", "dist/"))] == []


def test_a_node_runs_without_web_framework_and_database(distributions, tmp_path):
    python = environment(tmp_path / "node")
    pip(python, "install", "--quiet", "--constraint", LOCK, f"{distributions.wheel}[node]")
    installed = {package["name"].lower() for package in json.loads(pip(python, "list", "--format=json"))}
    assert "blockgate" in installed
    assert installed & GATEWAY_ONLY == set()
    assert "attach" in run(python.parent / "blockgate-nbd", "--help", cwd=tmp_path)
    for helper in ("mount.blockgate", "umount.blockgate"):
        assert f"usage: {helper}" in run(python.parent / helper, "--help", cwd=tmp_path)
    # Everything of the client can be imported with what is there.
    modules = sorted(
        name.removesuffix(".py").replace("/", ".")
        for name in files_below("nbd_client")
        if name.endswith(".py") and not name.endswith("__init__.py")
    )
    program = (
        f"import importlib\nfor name in {modules!r}: importlib.import_module(name)\nprint(len({modules!r}))"
    )
    assert run(python, "-c", program, cwd=tmp_path).strip() == str(len(modules))
