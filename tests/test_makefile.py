import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_help_tells_every_target() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    told = subprocess.run(["make", "-s", "-C", ROOT], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^make ([a-z]+) ", told, flags=re.MULTILINE)) == targets - {"help"}


def test_every_script_that_make_runs_is_there_and_executable() -> None:
    scripts = re.findall(r"@(scripts/\S+)", (ROOT / "Makefile").read_text())
    assert scripts
    assert [script for script in scripts if not (ROOT / script).stat().st_mode & 0o111] == []
