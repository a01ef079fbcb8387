"""Generated pages and the checked-in configuration against the programs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.config import Settings, load
from gateway.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy/blockgate.toml"
DIGEST = "0" * 64


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch):
    for name in [name for name in os.environ if name.startswith("BLOCKGATE_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("script", ["configuration_docs.py", "metrics_docs.py"])
def test_generated_pages_are_what_the_code_says(script):
    done = subprocess.run(
        [sys.executable, f"scripts/{script}", "--check"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_checked_in_configuration_is_the_programs_default(tmp_path):
    empty = tmp_path / "empty.toml"
    empty.touch()
    assert load(FILE) == load(empty)


def test_every_setting_is_in_the_checked_in_configuration():
    named = re.findall(r"^(?:# )?([a-z_]+) = ", FILE.read_text(), flags=re.MULTILINE)
    assert named == list(Settings.model_fields)


def test_every_example_that_is_commented_out_can_be_used(tmp_path):
    text = re.sub(r"^# ([a-z_]+ = )", r"\1", FILE.read_text(), flags=re.MULTILINE)
    file = tmp_path / "config.toml"
    file.write_text(text.replace("64 hexadecimal digits", DIGEST))
    settings = load(file)
    assert settings.credentials["ci"].hosts == ("registry.internal",)
    assert settings.tokens[0].role == "node"
    assert settings.mirrors == {"docker.io": ("mirror.internal",)}


def test_lists_and_entries_of_tables_can_be_given_as_the_page_says(monkeypatch, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('[credentials.ci]\nhosts = ["registry.internal"]\nusername = "reader"\n')
    monkeypatch.setenv("BLOCKGATE_OCI_ROOTS", '["/srv/images"]')
    monkeypatch.setenv("BLOCKGATE_CREDENTIALS__CI__PASSWORD", "from the environment")
    monkeypatch.setenv("BLOCKGATE_MEMORY_CACHE", "10GiB")
    settings = load(file)
    assert settings.oci_roots == (Path("/srv/images"),)
    assert settings.credentials["ci"].username == "reader"
    assert settings.credentials["ci"].password.get_secret_value() == "from the environment"
    assert settings.memory_cache == 10 << 30


def test_compositions_configuration_is_valid():
    settings = load(ROOT / "deploy/compose/gateway.toml")
    assert settings.insecure_registries == ("registry:5000",)
    # The password stands in libpq's file, not here.
    assert settings.database_url.get_secret_value().partition("@")[0] == "postgresql+psycopg://blockgate"


def test_a_name_that_is_no_setting_is_refused_by_name(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text("spansize = 1\n")
    with pytest.raises(ConfigurationError, match="spansize"):
        load(file)
