"""The manifests against the schemas of Kubernetes' objects, and against what the program has."""

import re
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from gateway.api.app import create_app
from gateway.config import Settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
OBJECTS = [
    document
    for name in KUSTOMIZATION["resources"]
    for document in yaml.safe_load_all((FOLDER / name).read_text())
]
PODS = {
    document["metadata"]["name"]: document["spec"]["template"]["spec"]
    for document in OBJECTS
    if document["kind"] in ("Deployment", "DaemonSet")
}


def one(kind: str, name: str) -> dict:
    return next(d for d in OBJECTS if d["kind"] == kind and d["metadata"]["name"] == name)


def label(document: dict) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


@pytest.mark.parametrize("version", ["1.29", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("document", OBJECTS, ids=label)
def test_an_object_is_what_kubernetes_expects(document, version):
    kubernetes_validate.validate(document, version, strict=True)


def test_a_field_that_kubernetes_does_not_know_is_found():
    document = one("Service", "gateway") | {"spek": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, "1.29", strict=True)


def test_every_file_is_a_resource():
    files = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == set(KUSTOMIZATION["resources"])


def test_images_are_built_by_the_dockerfile_and_carry_the_version_of_the_package():
    targets = set(re.findall(r"^FROM .* AS (\S+)$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE))
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    used = {container["image"] for pod in PODS.values() for container in pod["containers"]}
    assert used == {image["name"] for image in KUSTOMIZATION["images"]}
    assert {image.removeprefix("blockgate-") for image in used} <= targets
    assert {image["newTag"] for image in KUSTOMIZATION["images"]} == {version}


def test_probes_ask_for_paths_that_the_gateway_has():
    container = PODS["gateway"]["containers"][0]
    paths = {
        container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert paths <= set(create_app(Settings()).openapi()["paths"])
    # A registry or database that is down must not have the gateway restarted.
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"


def test_ports_agree():
    container = PODS["gateway"]["containers"][0]
    assert container["ports"] == [{"name": "http", "containerPort": Settings().port}]
    assert one("Service", "gateway")["spec"]["ports"] == [
        {"name": "http", "port": 8080, "targetPort": "http"}
    ]
    assert one("NetworkPolicy", "gateway")["spec"]["ingress"][0]["ports"] == [
        {"protocol": "TCP", "port": 8080}
    ]
    url = next(e["value"] for e in PODS["node"]["containers"][0]["env"] if e["name"] == "BLOCKGATE_URL")
    assert url == "http://gateway.blockgate.svc:8080"


def test_selectors_find_their_pods():
    labels = one("Deployment", "gateway")["spec"]["template"]["metadata"]["labels"]
    assert one("Service", "gateway")["spec"]["selector"] == labels
    assert one("NetworkPolicy", "gateway")["spec"]["podSelector"]["matchLabels"] == labels
    assert one("Deployment", "gateway")["spec"]["selector"]["matchLabels"] == labels


def test_the_gateways_pod_meets_the_restricted_standard():
    pod = PODS["gateway"]
    assert one("Namespace", "blockgate")["metadata"]["labels"] == {
        "pod-security.kubernetes.io/enforce": "restricted"
    }
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not pod.get("hostNetwork")
    assert {next(iter(set(volume) - {"name"})) for volume in pod["volumes"]} <= {
        "configMap",
        "emptyDir",
        "persistentVolumeClaim",
        "secret",
    }


def test_no_service_link_becomes_a_setting():
    # A service named blockgate would set BLOCKGATE_PORT=tcp://… in every pod of its namespace.
    assert all(pod["enableServiceLinks"] is False for pod in PODS.values())


def test_its_configuration_is_valid(tmp_path, monkeypatch):
    from gateway.config import load

    file = tmp_path / "config.toml"
    file.write_text(one("ConfigMap", "gateway-config")["data"]["config.toml"])
    monkeypatch.setenv("BLOCKGATE_TOKENS", '[{"sha256": "%s", "role": "node"}]' % ("0" * 64))
    settings = load(file)
    assert settings.workers == 2
    assert settings.tokens[0].role == "node"


def test_the_nodes_mounts_reach_the_host():
    pod = PODS["node"]
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}
    assert mounts["mounts"]["mountPropagation"] == "Bidirectional"
    # A path means the same inside and outside: the records hold paths.
    assert all(mounts[name]["mountPath"] == path for name, path in paths.items())
    assert "/dev" in paths.values()
