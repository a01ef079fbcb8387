"""The units as systemd itself reads them."""

import configparser
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.support.processes import require_program

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))

# Of 10, the less the better.
MOST_EXPOSED = {"blockgate.service": 2.5, "blockgate-nbd-agent.service": 4.5}


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = require_program("systemd-analyze", package="systemd")
    return subprocess.run(
        [program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def systemd_version() -> int:
    return int(analyze("--version").stdout.split()[1])


@pytest.fixture(params=UNITS, ids=lambda path: path.name)
def unit(request, tmp_path) -> Path:
    """A unit beside a folder with its programs, for systemd looks whether they are there."""
    text = request.param.read_text()
    programs = {"python", *tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]}
    started = re.findall(r"^ExecStart=/opt/blockgate/bin/(\S+)", text, flags=re.MULTILINE)
    assert len(started) == 1
    assert set(started) <= programs
    (tmp_path / started[0]).touch(0o755)
    path = tmp_path / request.param.name
    path.write_text(text.replace("/opt/blockgate/bin/", f"{tmp_path}/"))
    return path


@pytest.mark.real
def test_systemd_understands_every_line(unit):
    if systemd_version() < 255:
        unit.write_text(unit.read_text().replace("SurviveFinalKillSignal=yes\n", ""))
    done = analyze("verify", "--man=no", "--recursive-errors=no", unit)
    assert [line for line in done.stderr.splitlines() if unit.name in line] == []
    assert done.returncode == 0


@pytest.mark.real
def test_a_unit_exposes_no_more_than_it_must(unit):
    threshold = round(MOST_EXPOSED[unit.name] * 10)
    done = analyze("security", "--offline=true", f"--threshold={threshold}", "--no-pager", unit)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.real
def test_a_line_that_systemd_does_not_know_is_found(tmp_path):
    path = tmp_path / "wrong.service"
    path.write_text("[Service]\nExecStart=/bin/true\nProtectSistem=strict\n")
    assert "Unknown key 'ProtectSistem'" in analyze("verify", "--man=no", path).stderr


def test_the_agent_outlives_the_file_systems_that_hang_on_it():
    text = (ROOT / "deploy/systemd/blockgate-nbd-agent.service").read_text()
    unit = configparser.ConfigParser(strict=False)
    unit.optionxform = str
    unit.read_string(text)
    assert unit["Unit"]["DefaultDependencies"] == "no"
    assert unit["Unit"]["SurviveFinalKillSignal"] == "yes"
    assert unit["Service"]["RuntimeDirectoryPreserve"] == "yes"
    assert int(unit["Service"]["OOMScoreAdjust"]) < 0
    # These make a mount namespace, which pins mounts until the agent ends.
    namespaced = {"PrivateTmp", "PrivateDevices", "ProtectSystem", "ProtectHome", "ProtectKernelTunables"}
    assert namespaced & set(unit["Service"]) == set()
