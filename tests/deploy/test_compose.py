"""docker-compose.yml and the Dockerfile: what can be told without an engine. scripts/compose-trial.sh starts them."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from gateway.config import Settings
from tests.support.processes import require_program

ROOT = Path(__file__).parents[2]
COMPOSITION = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSITION["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_more_rights_and_resources_than_it_needs(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert "privileged" not in service


def test_only_the_preparation_is_root_and_it_has_no_network():
    # The gateway's account is that of its image.
    accounts = {name: service.get("user") for name, service in SERVICES.items()}
    assert {name for name, user in accounts.items() if user and user.startswith("0:")} == {"prepare"}
    assert [name for name, user in accounts.items() if user is None] == ["gateway"]
    assert "USER 10001:10001" in DOCKERFILE.rpartition("FROM")[2]
    assert SERVICES["prepare"]["network_mode"] == "none"


def test_ports_are_published_on_loopback_only():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_service_tells_its_health():
    assert [
        name
        for name, service in SERVICES.items()
        if name not in ("prepare", "gateway") and "test" not in service.get("healthcheck", {})
    ] == []
    assert "HEALTHCHECK" in DOCKERFILE.rpartition("FROM")[2]


def test_no_password_stands_in_an_environment():
    for service in SERVICES.values():
        for variable in service.get("environment", {}):
            if "PASSWORD" in variable or "SECRET" in variable:
                assert variable.endswith("_FILE"), variable


def test_every_file_and_folder_that_is_mounted_is_in_the_repository():
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    sources = {mount.partition(":")[0] for mount in mounts}
    named = {source for source in sources if not source.startswith("./")}
    assert named == set(COMPOSITION["volumes"])
    missing = [source for source in sources - named if not (ROOT / source).exists()]
    assert missing == []
    assert all(mount.endswith(":ro") for mount in mounts if mount.startswith("./"))


@pytest.mark.real
def test_prometheus_accepts_its_configuration_and_finds_the_rules(tmp_path):
    text = (ROOT / "deploy/compose/prometheus.yml").read_text()
    config = tmp_path / "prometheus.yml"
    config.write_text(text.replace("/etc/prometheus/rules/", f"{ROOT}/deploy/prometheus/"))
    done = subprocess.run(
        [require_program("promtool", package="prometheus"), "check", "config", config],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"SUCCESS: [1-9]\d* rules found", done.stdout)


def test_grafana_finds_what_is_provisioned():
    provisioning = ROOT / "deploy/compose/grafana"
    (provider,) = yaml.safe_load((provisioning / "dashboards/blockgate.yml").read_text())["providers"]
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    mounts = dict(mount.split(":")[:2] for mount in SERVICES["grafana"]["volumes"])
    assert mounts["./deploy/grafana"] == provider["options"]["path"]
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (ROOT / "deploy/grafana" / home.relative_to(provider["options"]["path"])).exists()
    host, port = source["url"].removeprefix("http://").split(":")
    assert SERVICES[host]["ports"][0].endswith(f":{port}")


def test_the_database_is_on_a_network_of_its_own():
    assert COMPOSITION["networks"]["database"]["internal"] is True
    assert SERVICES["database"]["networks"] == ["database"]
    assert [name for name, service in SERVICES.items() if "database" in service.get("networks", [])] == [
        "gateway",
        "database",
    ]


def test_images_that_others_make_have_a_version():
    foreign = [service["image"] for service in SERVICES.values() if "build" not in service]
    assert len(foreign) == 4
    assert all(re.search(r":v?\d+(\.\d+)*", image) for image in foreign)


def test_the_override_builds_or_leaves_out_each_of_them():
    override = yaml.safe_load((ROOT / "deploy/compose/debian.yml").read_text())["services"]
    targets = set(
        re.findall(r" AS (\S+)$", (ROOT / "deploy/compose/debian/Dockerfile").read_text(), re.MULTILINE)
    )
    for name, service in SERVICES.items():
        if "build" not in service:
            replaced = override[name]
            assert replaced.get("profiles") or replaced["build"]["target"] in targets


def test_the_dockerfile_copies_nothing_that_is_kept_from_it():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, flags=re.MULTILINE):
        copied.update(line.split()[:-1])
    assert copied <= kept
    assert all((ROOT / path).exists() for path in kept)


def test_time_to_stop_is_longer_than_draining_takes():
    from gateway.api import server

    longest = Settings().drain_seconds + server._GRACE_SECONDS
    assert int(SERVICES["gateway"]["stop_grace_period"].removesuffix("s")) > longest
    unit = (ROOT / "deploy/systemd/blockgate.service").read_text()
    assert int(re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[1]) > longest
