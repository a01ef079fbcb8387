"""What the node client writes."""

import json
import logging
import sys

import pytest

from nbd_client import logs


@pytest.fixture(autouse=True)
def _root_logger():
    """The root logger is put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level


def test_a_line_on_a_pipe_is_one_json_object(capsys):
    logs.configure()
    logging.getLogger("nbd_client.agent").warning("%s is\nslow %s", "it", "x" * 5000)
    written = capsys.readouterr().err
    line = json.loads(written)
    assert line["level"] == "warning"
    assert line["event"].startswith("it is\nslow xxx")
    assert len(line["event"]) == 2000
    assert line["timestamp"].endswith("Z")
    assert written.count("\n") == 1


def test_a_defect_has_its_traceback_in_the_same_line(capsys):
    logs.configure()
    try:
        raise ValueError("what it was")
    except ValueError:
        logging.getLogger("nbd_client").exception("a defect")
    line = json.loads(capsys.readouterr().err)
    assert "ValueError: what it was" in line["exception"]


def test_a_terminal_gets_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    logs.configure()
    logging.getLogger("nbd_client").info("attached")
    logging.getLogger("nbd_client").debug("not this")
    assert capsys.readouterr().err.endswith("INFO attached\n")
