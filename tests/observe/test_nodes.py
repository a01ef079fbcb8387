"""Reports of nodes."""

import time

import pytest

from gateway.errors import Overloaded, StorageError
from gateway.observe import nodes as module
from gateway.observe.nodes import FORGET_SECONDS, NodeDevice, NodeReport, Nodes


@pytest.fixture
def nodes(tmp_path):
    return Nodes(tmp_path / "nodes")


def test_the_latest_report_of_each_node_is_kept(nodes):
    nodes.report("b", NodeReport(version="1"))
    nodes.report("a", NodeReport(devices=[NodeDevice(name="python", node_device="/dev/nbd0")]))
    nodes.report("b", NodeReport(version="2"))
    assert [(node.name, node.report.version) for node in nodes.all()] == [("a", ""), ("b", "2")]
    assert nodes.all()[0].report.devices[0].node_device == "/dev/nbd0"


def test_a_silent_node_is_forgotten(nodes, monkeypatch):
    nodes.report("a", NodeReport())
    later = time.time() + FORGET_SECONDS + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert nodes.all() == []
    assert nodes.all() == []


def test_invented_nodes_do_not_fill_the_disk(nodes, monkeypatch):
    monkeypatch.setattr(module, "_MAX_NODES", 2)
    nodes.report("a", NodeReport())
    nodes.report("b", NodeReport())
    nodes.report("a", NodeReport())
    with pytest.raises(Overloaded):
        nodes.report("c", NodeReport())


def test_a_folder_that_is_gone_is_a_storage_error(nodes, tmp_path):
    (tmp_path / "nodes").rmdir()
    with pytest.raises(StorageError, match="node 'a'"):
        nodes.report("a", NodeReport())
