import os
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).with_name("conftest.py")


SKIPS = {
    "in_the_test": "import pytest\ndef test_it(): pytest.skip('no tool')\n",
    "by_a_mark": "import pytest\n@pytest.mark.skip(reason='no tool')\ndef test_it(): pass\n",
    "in_a_fixture": (
        "import pytest\n@pytest.fixture\ndef tool(): pytest.skip('no tool')\ndef test_it(tool): pass\n"
    ),
    "of_a_module": "import pytest\npytest.skip('no tool', allow_module_level=True)\ndef test_it(): pass\n",
}
EXPECTED_FAILURE = "import pytest\n@pytest.mark.xfail\ndef test_it(): assert False\n"


def run_pytest(folder: Path, tests: dict[str, str], *, ci: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST.read_text())
    for name, test in tests.items():
        (folder / f"test_{name}.py").write_text(test)
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-rs",
            "--continue-on-collection-errors",
            "--rootdir",
            folder,
            folder,
        ],
        cwd=folder,
        env=os.environ | {"CI": ci, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_every_kind_of_skip_fails_on_ci_with_its_reason(tmp_path: Path) -> None:
    run = run_pytest(tmp_path, SKIPS, ci="true")
    assert run.returncode == 1
    assert run.stdout.count("CI runs every test, but this one would not run: ") >= len(SKIPS)
    assert "no tool" in run.stdout
    assert "skipped" not in run.stdout


def test_elsewhere_a_skip_stays_a_skip(tmp_path: Path) -> None:
    run = run_pytest(tmp_path, SKIPS, ci="")
    assert run.returncode == 0
    assert f"{len(SKIPS)} skipped" in run.stdout


def test_an_expected_failure_stays_one_on_ci(tmp_path: Path) -> None:
    run = run_pytest(tmp_path, {"xfail": EXPECTED_FAILURE}, ci="true")
    assert run.returncode == 0
    assert "1 xfailed" in run.stdout
