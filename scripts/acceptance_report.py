"""Run the acceptance tests and print the figures that they measured. Arguments are pytest's."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Exit status of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "tests/acceptance", f"--junitxml={report}"]
        done = subprocess.run([*command, "-o", "junit_family=xunit1", *sys.argv[1:]], cwd=ROOT, check=False)
        if report.exists():
            show(report)
    return done.returncode


def show(report: Path) -> None:
    """Print name and value of every figure, in the order of the tests."""
    suite = ET.parse(report).getroot()
    figures = [(entry.attrib["name"], entry.attrib["value"]) for entry in suite.iter("property")]
    width = max((len(name) for name, _ in figures), default=0)
    print()
    for name, value in figures:
        print(f"{name:<{width}}  {value}")
    totals = next(iter(suite.iter("testsuite"))).attrib
    kinds = ("tests", "failures", "errors", "skipped")
    print("\n" + ", ".join(f"{totals[kind]} {kind}" for kind in kinds) + f", {float(totals['time']):.0f} s")


if __name__ == "__main__":
    sys.exit(main())
