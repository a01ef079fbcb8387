"""A real registry with a real Debian root as a layer: registered over HTTP, read over HTTP, byte for byte."""

import base64
import itertools
import json
import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest

import blockgate
from blockgate.calls import DeviceUnusable, GatewayRefused
from nbd_client.options import parse_options
from nbd_client.registration import register_image
from tests.acceptance.conftest import Figure, padded, random_ranges, span_edges
from tests.support.debianroot import debian_root_tar, debian_root_tar_gz
from tests.support.dockerregistry import DockerRegistry, docker_registry
from tests.support.gateway import Gateway, around
from tests.support.gzips import member
from tests.support.ocilayout import OciLayout, gzip_layer
from tests.support.processes import require_program

pytestmark = pytest.mark.real

_PASSWORD = "correct-horse-battery"
_WRONG = "wrong-horse-battery"


@pytest.fixture(scope="module")
def root_tar() -> Iterator[mmap.mmap]:
    with (
        debian_root_tar().open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped,
    ):
        yield mapped


@pytest.fixture(scope="module")
def debian_layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout = OciLayout(tmp_path_factory.mktemp("debian"))
    layout.add_image([gzip_layer(debian_root_tar_gz(), debian_root_tar())], tag="bookworm")
    return layout.folder


@pytest.fixture(scope="module")
def small_layout(tmp_path_factory: pytest.TempPathFactory, small_tar: bytes) -> Path:
    layout = OciLayout(tmp_path_factory.mktemp("small"))
    layout.add_image([gzip_layer(member(small_tar), small_tar)], tag="one")
    return layout.folder


@pytest.fixture(scope="module")
def registry(
    tmp_path_factory: pytest.TempPathFactory, debian_layout: Path, small_layout: Path
) -> Iterator[DockerRegistry]:
    require_program("skopeo")
    with docker_registry(tmp_path_factory.mktemp("registry")) as registry:
        registry.push(debian_layout, "bookworm", "library/debian")
        registry.push(small_layout, "one", "team/small")
        yield registry


@pytest.fixture(scope="module")
def closed_registry(tmp_path_factory: pytest.TempPathFactory, small_layout: Path) -> Iterator[DockerRegistry]:
    require_program("skopeo")
    with docker_registry(tmp_path_factory.mktemp("closed"), ("reader", _PASSWORD)) as registry:
        registry.push(small_layout, "one", "team/small")
        yield registry


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


def test_a_debian_root_reads_as_its_tar_at_a_thousand_places_and_at_every_edge(
    gateway: Gateway, registry: DockerRegistry, root_tar: mmap.mmap, figure: Figure
) -> None:
    source = {"image": f"{registry.host}/library/debian:bookworm", "insecure": True}
    device = gateway.register("debian", {"source": source, "layout": "tar", "layer": {"index": 0}})
    assert device["state"] == "ready", device["error"]
    assert device["size"] == len(root_tar)
    layer = device["segments"][0]
    edges = [*span_edges(gateway, layer["digest"]), *(segment["offset"] for segment in device["segments"])]
    wanted = list(
        itertools.chain(random_ranges(1, 1000, len(root_tar), 2 << 20), around(edges, len(root_tar)))
    )
    with gateway.reader("debian") as reader, memoryview(root_tar) as expected:
        assert reader.differences(expected, wanted) == []
    figure("Debian root: ranges compared", len(wanted))
    figure("Debian root: ranges different", 0)


def test_metadata_in_front_of_a_debian_root_moves_every_byte_by_its_length(
    gateway: Gateway, registry: DockerRegistry, root_tar: mmap.mmap, figure: Figure
) -> None:
    """The second registration of the layer needs no second pass; only edges are new here."""
    source = {"image": f"{registry.host}/library/debian:bookworm", "insecure": True}
    device = gateway.register("debian-root", {"source": source})
    assert device["state"] == "ready", device["error"]
    front, layer = device["segments"][:2]
    metadata = gateway.http.get(f"/v1/artifacts/{front['digest']}").content
    assert (front["kind"], front["length"], layer["offset"]) == ("metadata", len(metadata), len(metadata))
    expected = metadata + padded(root_tar[:])
    assert device["size"] == len(expected)
    edges = [0, layer["offset"], *(layer["offset"] + at for at in span_edges(gateway, layer["digest"]))]
    wanted = list(itertools.chain(random_ranges(2, 250, len(expected)), around(edges[::10], len(expected))))
    wanted += [(layer["offset"] - 4096, layer["offset"] + 4096), (0, 8192)]
    with gateway.reader("debian-root") as reader:
        assert reader.differences(memoryview(expected), wanted) == []
    figure("Debian root with metadata: ranges compared", len(wanted))


def test_credentials_come_from_docker_s_configuration(
    tmp_path: Path, closed_registry: DockerRegistry, small_tar: bytes
) -> None:
    docker = tmp_path / "docker"
    docker.mkdir()
    (docker / "config.json").write_bytes(closed_registry.auth_file.read_bytes())
    body = {"source": {"image": f"{closed_registry.host}/team/small:one", "insecure": True}}
    with Gateway(tmp_path / "gateway", env={"DOCKER_CONFIG": str(docker)}) as gateway:
        device = gateway.register("small", body)
        assert device["state"] == "ready", device["error"]
        layer = device["segments"][1]
        stop = layer["offset"] + 100_000
        assert gateway.get("small", stop - 5000, stop).content == small_tar[95_000:100_000]
        assert _PASSWORD not in gateway.log


def test_credentials_come_from_a_named_entry_of_the_configuration(
    tmp_path: Path, closed_registry: DockerRegistry, small_tar: bytes
) -> None:
    configuration = tmp_path / "gateway.toml"
    configuration.write_text(
        f'[credentials.team]\nhosts = ["{closed_registry.host}"]\nusername = "reader"\npassword = "{_PASSWORD}"\n'
        f'[credentials.stale]\nhosts = ["{closed_registry.host}"]\nusername = "reader"\npassword = "{_WRONG}"\n'
    )
    source = {"image": f"{closed_registry.host}/team/small:one", "insecure": True}
    with Gateway(tmp_path / "gateway", arguments=["--config", configuration]) as gateway:
        good = {"source": source | {"credentials": "team"}, "layout": "tar", "layer": {"index": 0}}
        assert gateway.register("good", good)["state"] == "ready"
        assert gateway.get("good", 0, 70_000).content == small_tar[:70_000]

        for name, credentials in (("wrong", "stale"), ("none", None), ("unknown", "nobody")):
            device = gateway.register(name, {"source": source | {"credentials": credentials}})
            assert device["state"] == "failed", device
            answer = gateway.get(name, 0, 512)
            assert answer.status_code == 409
            assert answer.json()["code"] == "device_failed"
            if credentials == "nobody":
                assert device["error"]["code"] == "configuration"
                assert "nobody" in device["error"]["detail"]
            else:
                assert device["error"]["code"] == "registry_unauthorized"
                assert closed_registry.host in device["error"]["detail"]
        told = gateway.http.get("/v1/devices").text + gateway.log + str(gateway.http.get("/v1/cache").text)
        kept = b"".join(path.read_bytes() for path in gateway.data_dir.rglob("*") if path.is_file())
    for secret in (_PASSWORD, _WRONG):
        for form in (secret, base64.b64encode(f"reader:{secret}".encode()).decode()):
            assert form not in told
            assert form.encode() not in kept
    assert json.dumps("stale").strip('"').encode() in kept  # the name is what the record holds


def test_mount_s_user_and_password_open_a_registry_in_every_worker(
    tmp_path: Path, closed_registry: DockerRegistry, small_tar: bytes
) -> None:
    image = f"{closed_registry.host}/team/small:one"

    def options(password: str) -> str:
        return f"oci.insecure,oci.layer=0,oci.username=reader,oci.password={password}"

    with Gateway(tmp_path / "gateway", settings={"workers": 2, "log_level": "debug"}) as gateway:
        with blockgate.connect(gateway.url) as client:

            def register(password: str) -> str:
                return register_image(image, parse_options(options(password)), client, patience_seconds=60)

            with pytest.raises((DeviceUnusable, GatewayRefused), match="user name or password") as refused:
                register(_WRONG)
            url = register(_PASSWORD)
            assert register(_PASSWORD) == url
        name = url.split("/")[-2]
        layer = gateway.show(name)["segments"][1]
        for _ in range(8):  # a connection each, so that both workers are met
            gateway.drop_caches()
            with gateway.reader(name) as reader:
                assert reader.read(layer["offset"], layer["offset"] + 70_000) == small_tar[:70_000]
        listed = gateway.http.get("/v1/credentials").json()["credentials"]
        assert [one["hosts"] for one in listed] == [[closed_registry.host]]
        told = gateway.http.get("/v1/devices").text + json.dumps(listed) + str(refused.value)
        told += gateway.http.get(f"/v1/devices/{name}").text
        assert gateway.http.delete(f"/v1/credentials/{listed[0]['name']}").status_code == 204
        kept = b"".join(path.read_bytes() for path in gateway.data_dir.rglob("*") if path.is_file())
    told += gateway.log
    for secret in (_PASSWORD, _WRONG):
        for form in (secret, base64.b64encode(f"reader:{secret}".encode()).decode()):
            assert form not in told
            assert form.encode() not in kept
