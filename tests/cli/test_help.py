"""The help of both programs, of every command there is."""

from collections.abc import Iterator

import pytest
import typer.main
from typer.testing import CliRunner

import gateway.cli.main
import nbd_client.cli

PROGRAMS = {"blockgate": gateway.cli.main.app, "blockgate-nbd": nbd_client.cli.app}


def commands(command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


ALL = [(name, path) for name, app in PROGRAMS.items() for path in commands(typer.main.get_command(app))]


@pytest.mark.parametrize(("program", "path"), ALL, ids=[" ".join((name, *path)) for name, path in ALL])
def test_each_command_explains_itself(program, path):
    answer = CliRunner().invoke(PROGRAMS[program], [*path, "--help"])
    assert answer.exception is None
    assert answer.exit_code == 0
    assert "Usage:" in answer.output
    assert "Traceback" not in answer.output
