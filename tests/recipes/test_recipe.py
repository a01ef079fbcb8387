"""The recipe: it survives the catalog, forward and backward, and names what it makes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import NewerFormat
from gateway.recipes.recipe import LayerRecipe, MetadataRecipe, Recipe, proven_tag, unproven_tag
from gateway.recipes.segments import Piece, bare, concatenate

BLOB, ZINFO = f"sha256:{'b' * 64}", f"sha256:{'c' * 64}"
LAYER = LayerRecipe("application/x", BLOB, 40, None, "gzip", "gzip-65536-v2", 65536, 100)
METADATA = MetadataRecipe(f"sha256:{'d' * 64}", 512, "identity-65536-v2", 65536, generated=True)


def recipe(*, cut="gzip-65536-v2", metadata=None, zinfo=None):
    piece = Piece("gzip", 100, BLOB, cut)
    front = [] if metadata is None else [Piece("metadata", metadata.size, metadata.digest, metadata.cut)]
    segments = concatenate([*front, piece]) if front else bare(piece)
    return Recipe("r/x:1", f"sha256:{'e' * 64}", "linux/amd64", (LAYER,), metadata, tuple(segments), zinfo)


RECIPES = [recipe(), recipe(metadata=METADATA), recipe(zinfo=ZINFO)]


@pytest.mark.parametrize("made", RECIPES)
def test_a_recipe_survives_its_json(made):
    assert Recipe.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_keys_of_a_later_version_are_left_out():
    made = recipe(metadata=METADATA)
    data = json.loads(json.dumps(made.to_json()))
    data["more"] = 1
    for part in (data["metadata"], *data["layers"], *data["segments"]):
        part["more"] = {"x": []}
    assert Recipe.from_json(data) == made


BROKEN = [
    {"format": 2},
    {"format": "2"},
    {"format": None},
    {"layers": None},
    {"layers": [None]},
    {"layers": [{}]},
    {"metadata": []},
    {"metadata": {}},
    {"segments": 3},
    {"segments": ["x"]},
]


@pytest.mark.parametrize("change", BROKEN, ids=str)
def test_what_cannot_be_understood_is_of_a_newer_version(change):
    data = json.loads(json.dumps(recipe(metadata=METADATA).to_json()))
    with pytest.raises(NewerFormat, match="run the version that wrote it"):
        Recipe.from_json({**data, **change})


@pytest.mark.parametrize("data", [[], "text", 7])
def test_what_is_no_object_is_of_a_newer_version(data):
    with pytest.raises(NewerFormat):
        Recipe.from_json(data)


def test_the_entity_tag_depends_on_content_and_not_on_the_cut():
    assert recipe().etag == recipe(cut="zinfo-x-v2").etag == recipe(zinfo=ZINFO).etag
    assert recipe().etag != recipe(metadata=METADATA).etag


def test_the_keys_are_those_of_metadata_and_layers_once_each():
    made = recipe(metadata=METADATA)
    twice = Recipe(made.reference, made.manifest, made.platform, (LAYER, LAYER), METADATA, made.segments)
    assert twice.keys == (METADATA.key, LAYER.key)
    assert recipe().keys == (LAYER.key,)


@given(
    st.text("0123456789abcdef", min_size=40, max_size=40),
    st.text("0123456789abcdef", min_size=64, max_size=64),
)
def test_an_unproven_tag_names_its_table_and_leads_to_the_proven_one(tag, zinfo):
    etag = f'"{tag}"'
    unproven = unproven_tag(etag, f"sha256:{zinfo}")
    assert unproven == f'"{tag}-unproven-{zinfo[:12]}"'
    assert proven_tag(unproven) == proven_tag(etag) == proven_tag(tag) == etag
