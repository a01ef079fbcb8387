"""Log records: one JSON object a line, long strings cut, no variables of frames."""

from __future__ import annotations

import json
import logging

import pytest
import structlog

from gateway import logs


@pytest.fixture(autouse=True)
def _restore():
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    before = structlog.get_config()
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()
    structlog.configure(**before)


PASSWORD = "hunter2"


def fail_with(password):
    local = {"password": password}
    raise RuntimeError(f"a defect with {len(local)} variable")


def test_a_record_is_one_json_object_on_one_line(capsys):
    logs.configure("json", "info")
    structlog.get_logger("x").info("something\nwith lines", device="a\nb", code="c")
    logging.getLogger("other").warning("from the %s library", "standard")
    first, second = capsys.readouterr().err.splitlines()
    assert json.loads(first)["device"] == "a\nb"
    assert json.loads(first)["level"] == "info"
    assert json.loads(second)["event"] == "from the standard library"


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_shows_no_variables(capsys, form):
    logs.configure(form, "info")
    try:
        fail_with(PASSWORD)
    except RuntimeError:
        structlog.get_logger("x").exception("request failed")
    written = capsys.readouterr().err
    assert "a defect with 1 variable" in written
    assert "fail_with" in written
    assert PASSWORD not in written


def test_long_strings_are_cut(capsys):
    logs.configure("json", "info")
    structlog.get_logger("x").info("long", text="a" * 100_000)
    assert len(json.loads(capsys.readouterr().err)["text"]) == 2001


@pytest.mark.parametrize(("level", "written"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_the_level_is_the_least_severe_that_is_written(capsys, level, written):
    logs.configure("json", level)
    log = structlog.get_logger("y")
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)("something")
    assert len(capsys.readouterr().err.splitlines()) == written


def test_without_a_terminal_auto_means_json(capsys):
    logs.configure("auto", "info")
    structlog.get_logger("z").info("something")
    assert json.loads(capsys.readouterr().err)["event"] == "something"
