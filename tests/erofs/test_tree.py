"""Entries into a tree: where names lead, what replaces what, and what is refused."""

from __future__ import annotations

import stat

import pytest

from gateway.erofs.entry import HARD_LINK, Entry
from gateway.erofs.reader import Image
from gateway.erofs.tree import MAX_LINKS, Directory, Tree
from gateway.errors import InvalidLayer
from tests.support.erofsimage import device_of
from tests.support.tarblocks import header, padded


def file(path: bytes, offset: int = 0) -> Entry:
    return Entry(path, stat.S_IFREG, 0o644, offset=offset, size=1)


def directory(path: bytes, permissions: int = 0o700) -> Entry:
    return Entry(path, stat.S_IFDIR, permissions)


def symlink(path: bytes, target: bytes) -> Entry:
    return Entry(path, stat.S_IFLNK, 0o777, target=target)


def hard(path: bytes, target: bytes) -> Entry:
    return Entry(path, HARD_LINK, 0o644, target=target)


def tree(*layers: list[Entry]) -> Tree:
    found = Tree()
    for index, entries in enumerate(layers):
        found.apply(index, entries)
    return found


def paths(found: Tree) -> list[bytes]:
    result = []
    pending = [(b"", found.root)]
    while pending:
        prefix, node = pending.pop()
        for name, child in node.children.items():
            path = prefix + b"/" + name
            result.append(path)
            if isinstance(child, Directory):
                assert child.parent is node
                pending.append((path, child))
    return sorted(result)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (b"/etc/x", [b"/etc", b"/etc/x"]),
        (b"//x", [b"/x"]),
        (b"./x", [b"/x"]),
        (b"../../x", [b"/x"]),
        (b"a/../x", [b"/x"]),
        (b"a/../../../x", [b"/x"]),
        (b"a/./b//x", [b"/a", b"/a/b", b"/a/b/x"]),
        (b"a/..b/x", [b"/a", b"/a/..b", b"/a/..b/x"]),
        (b"x/.", [b"/x"]),
        (b"x/", [b"/x"]),
    ],
)
def test_names_stay_inside_of_the_root(path, wanted):
    assert paths(tree([file(path)])) == wanted


@pytest.mark.parametrize("path", [b".", b"./", b"/", b"..", b"a/.."])
def test_the_root_takes_attributes_and_cannot_be_anything_else(path):
    assert tree([directory(path, 0o711)]).root.mode == stat.S_IFDIR | 0o711
    with pytest.raises(InvalidLayer, match="the image's root can only be a directory"):
        tree([file(path)])


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        (b"real", b"/real/x"),
        (b"/real", b"/real/x"),
        (b"../../../real", b"/real/x"),
        (b"real/deep/..", b"/real/x"),
        (b"missing", b"/missing/x"),
        (b"missing/../real", b"/real/x"),
        (b"second", b"/real/x"),
        (b".", b"/x"),
    ],
)
def test_a_symbolic_link_as_parent_is_followed_inside_of_the_root(target, wanted):
    base = [directory(b"real/deep"), symlink(b"second", b"real"), symlink(b"link", target)]
    assert wanted in paths(tree(base, [file(b"link/x")]))
    assert wanted in paths(tree([*base, file(b"link/x")]))


def test_missing_parents_are_made_as_roots_directories():
    found = tree([file(b"a/b/x")]).root.children[b"a"]
    assert (found.mode, found.uid, found.gid, found.mtime) == (stat.S_IFDIR | 0o755, 0, 0, 0)


def test_a_directory_over_a_directory_keeps_children_and_takes_attributes():
    found = tree([directory(b"d", 0o700), file(b"d/x")], [directory(b"d/", 0o751)])
    assert paths(found) == [b"/d", b"/d/x"]
    assert found.root.children[b"d"].mode == stat.S_IFDIR | 0o751


def test_anything_else_replaces():
    assert paths(tree([file(b"d/x")], [file(b"d")])) == [b"/d"]
    assert paths(tree([file(b"d")], [directory(b"d"), file(b"d/x")])) == [b"/d", b"/d/x"]
    assert paths(tree([symlink(b"l", b"d"), directory(b"d")], [directory(b"l"), file(b"l/x")])) == [
        b"/d",
        b"/l",
        b"/l/x",
    ]
    found = tree([file(b"x", 512), file(b"x", 1024)])
    assert found.root.children[b"x"].offset == 1024


def test_members_after_a_replaced_parent_go_to_the_new_one():
    found = tree([directory(b"a"), file(b"a/x"), symlink(b"a", b"b"), file(b"a/y")])
    assert paths(found) == [b"/a", b"/b", b"/b/y"]


def test_hard_links_share_an_inode_across_layers():
    found = tree([file(b"x", 512)], [hard(b"d/y", b"./x"), file(b"x", 1024)], [hard(b"z", b"/d/y")])
    assert found.root.children[b"z"] is found.root.children[b"d"].children[b"y"]
    assert found.root.children[b"z"].layer == 0
    assert found.root.children[b"x"].layer == 1


def test_a_hard_link_may_be_told_twice():
    found = tree([file(b"x"), hard(b"y", b"x"), hard(b"y", b"x")])
    assert found.root.children[b"x"] is found.root.children[b"y"]


def test_a_hard_link_to_a_symbolic_link_is_one():
    found = tree([symlink(b"s", b"nowhere"), hard(b"h", b"s")])
    assert found.root.children[b"h"] is found.root.children[b"s"]


def test_whiteouts_remove_only_what_lower_layers_put():
    base = [file(b"a"), file(b"d/x"), file(b"d/sub/y"), file(b"keep")]
    assert paths(tree(base, [file(b".wh.a"), file(b".wh.d")])) == [b"/keep"]
    assert paths(tree(base, [file(b"a", 512), file(b".wh.a")])) == [b"/a", *paths(tree(base[1:]))]
    assert paths(tree(base, [file(b"d/new"), file(b"d/.wh..wh..opq")])) == [b"/a", b"/d", b"/d/new", b"/keep"]
    assert paths(tree(base, [file(b"d/sub/new"), file(b".wh..wh..opq")])) == [b"/d", b"/d/sub", b"/d/sub/new"]
    assert paths(tree(base, [file(b"d/sub/new"), file(b".wh.d")])) == [
        b"/a",
        b"/d",
        b"/d/sub",
        b"/d/sub/new",
        b"/keep",
    ]


def test_a_directory_remade_under_a_whiteout_forgets_the_hidden_ones_attributes():
    found = tree([directory(b"d", 0o711)], [file(b"d/new"), file(b".wh.d")])
    assert found.root.children[b"d"].mode == stat.S_IFDIR | 0o755


def test_whiteouts_of_what_is_not_there_leave_no_trace():
    assert paths(tree([file(b"a/.wh.b"), file(b".wh.c"), file(b"x/.wh..wh..opq")])) == []


def test_bookkeeping_of_aufs_is_left_out():
    assert paths(
        tree([directory(b".wh..wh.plnk"), file(b".wh..wh.plnk/1.2"), file(b".wh..wh.aufs"), file(b"a")])
    ) == [b"/a"]


def test_repeated_opaque_whiteouts_cost_one_pass(monkeypatch):
    calls = []
    keep = Directory.keep_fresh
    monkeypatch.setattr(Directory, "keep_fresh", lambda *arguments: (calls.append(1), keep(*arguments))[1])
    files = [file(b"a/b/%d" % n) for n in range(200)]
    opaques = [file(path) for path in (b"a/b/.wh..wh..opq", b"a/.wh..wh..opq", b".wh..wh..opq")] * 50
    assert len(paths(tree([file(b"a/b/old")], [*files, *opaques]))) == 202
    assert len(calls) < 210


def test_what_the_tree_may_hold_is_bounded():
    found = Tree(memory_limit_bytes=100_000)
    with pytest.raises(InvalidLayer, match="'a/b/999x': the image's files take more than 0 MiB"):
        found.apply(0, [file(b"a/b/%dx" % n) for n in (*range(100), *[999] * 200)])
    deep = Tree(memory_limit_bytes=100_000)
    with pytest.raises(InvalidLayer, match="of memory"):
        deep.apply(0, [file(b"d/" * 1000 + b"x")])
    attributes = Tree(memory_limit_bytes=100_000)
    with pytest.raises(InvalidLayer, match="of memory"):
        attributes.apply(0, [file(b"x")._replace(xattrs=((b"user.x", b"v" * 60_000),))] * 2)


LOOP = [symlink(b"l", b"m"), symlink(b"m", b"l")]
REFUSED = {
    "loop of links": ([*LOOP, file(b"l/x")], f"more than {MAX_LINKS} symbolic links"),
    "long links": (
        [*(symlink(b"l%d" % n, b"./" * 1000 + b"l%d" % (n + 1)) for n in range(6)), file(b"l0/x")],
        "symbolic links, or long ones",
    ),
    "link to itself": ([symlink(b"l", b"l/l/l"), file(b"l/x")], "symbolic links"),
    "file as parent": ([file(b"f"), file(b"f/x")], "its parent 'f' is not a directory"),
    "hard link to nothing": ([hard(b"h", b"x")], "a hard link to 'x', which does not exist"),
    "hard link ahead": ([hard(b"h", b"x"), file(b"x")], "does not exist"),
    "hard links to each other": ([hard(b"a", b"b"), hard(b"b", b"a")], "does not exist"),
    "hard link to itself": ([file(b"x"), hard(b"x", b"x")], "a hard link to itself"),
    "hard link to a directory": ([directory(b"d"), hard(b"h", b"d")], "to a directory"),
    "hard link to the root": ([hard(b"h", b"..")], "to a directory"),
    "hard link through a file": ([file(b"f"), hard(b"h", b"f/x")], "does not exist"),
    "whiteout of nothing": ([file(b".wh.")], "names nothing"),
    "whiteout of the directory": ([file(b"d/.wh..")], "names nothing"),
    "whiteout of the parent": ([file(b"d/.wh...")], "names nothing"),
    "whiteout as parent": ([file(b".wh.d/x")], "whiteout as parent"),
    "long name": ([file(b"n" * 256)], "a name of 256 bytes"),
    "long directory": ([file(b"n" * 256 + b"/x")], "directory name of 256 bytes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_unpacked_is_refused_by_name(case):
    entries, reason = REFUSED[case]
    with pytest.raises(InvalidLayer, match=reason) as caught:
        tree([], entries)
    assert "layer 1, entry " in str(caught.value)


def test_depth_costs_no_stack():
    step = b"/".join([b"d"] * 1000)
    layers = [symlink(b"top", b"d")]
    path = step
    for _ in range(3):
        layers.append(symlink(b"jump", path[:4000]))
        layers.append(directory(b"jump/" + step))
    found = tree(layers, [file(b".wh..wh..opq")])
    assert paths(found) == []


def test_a_regular_file_named_with_a_slash_at_its_end_is_a_file():
    tar = header(b"d/", size=3) + padded(b"abc") + bytes(1024)
    image = Image(device_of([tar]))
    inode = image.lookup(b"d")
    assert inode is not None
    assert image.content(inode) == b"abc"
