import gzip
import json
import subprocess
from pathlib import Path

import pytest

from tests.support.gzips import member
from tests.support.ocilayout import LAYER_GZIP, OciLayout, digest_of, gzip_layer, tar_layer
from tests.support.processes import require_program

TAR = bytes(10240)


def skopeo(*arguments: str | Path) -> bytes:
    argv = [require_program("skopeo"), *arguments]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True).stdout


def test_an_image_is_reached_from_its_tag_down_to_its_layers(tmp_path: Path) -> None:
    layout = OciLayout(tmp_path)
    layout.add_image([tar_layer(TAR), gzip_layer(member(TAR), TAR)], tag="v1")
    [entry] = json.loads((tmp_path / "index.json").read_bytes())["manifests"]
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": "v1"}
    manifest = json.loads(layout.blob_path(entry["digest"]).read_bytes())
    config = json.loads(layout.blob_path(manifest["config"]["digest"]).read_bytes())
    assert config["rootfs"]["diff_ids"] == [digest_of(TAR)] * 2
    plain, zipped = (layout.blob_path(layer["digest"]).read_bytes() for layer in manifest["layers"])
    assert plain == gzip.decompress(zipped) == TAR


def test_a_tag_moves_to_what_it_was_given_to_last(tmp_path: Path) -> None:
    layout = OciLayout(tmp_path)
    layout.add_image([], tag="latest")
    later = layout.add_image([tar_layer(TAR)], tag="latest")
    [entry] = json.loads((tmp_path / "index.json").read_bytes())["manifests"]
    assert entry["digest"] == later["digest"]


def test_a_layer_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "layer.tar").write_bytes(TAR)
    (tmp_path / "layer.tar.gz").write_bytes(member(TAR))
    layer = gzip_layer(tmp_path / "layer.tar.gz", tmp_path / "layer.tar")
    assert layer == gzip_layer(tmp_path / "layer.tar.gz", TAR)
    layout = OciLayout(tmp_path / "layout")
    descriptor = layout.add_blob(layer.blob, layer.media_type)
    assert descriptor == {"mediaType": LAYER_GZIP, "digest": digest_of(member(TAR)), "size": len(member(TAR))}
    assert layout.blob_path(descriptor["digest"]).read_bytes() == member(TAR)


@pytest.mark.real
def test_skopeo_reads_the_layout_and_chooses_the_platform(tmp_path: Path) -> None:
    layout = OciLayout(tmp_path / "layout")
    images = [
        layout.add_image([gzip_layer(member(TAR), TAR)], platform="linux/amd64"),
        layout.add_image([tar_layer(TAR)], platform="linux/arm64/v8"),
    ]
    layout.add_index(images, tag="many")
    for architecture, image in zip(("amd64", "arm64"), images, strict=True):
        target = tmp_path / architecture
        platform = ["--override-os=linux", f"--override-arch={architecture}"]
        skopeo("--insecure-policy", *platform, "copy", f"oci:{layout.folder}:many", f"dir:{target}")
        assert digest_of(target / "manifest.json") == image["digest"]
