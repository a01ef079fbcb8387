"""docs/errors.md against the error trees and the table of statuses."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockgate import calls
from gateway import errors
from gateway.api.problems import status_of
from nbd_client import errors as node_errors

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/errors.md").read_text()


def rows(heading: str) -> dict[str, list[str]]:
    """The rows of the tables below headings that begin so, by code; the code's cell is left out."""
    found = {}
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        if section.startswith(heading):
            for line in section.splitlines():
                if line.startswith("| `"):
                    code, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
                    assert code not in found, code
                    found[code.strip("` ")] = [cell.strip(" |") for cell in cells]
    return found


def tree(root: type) -> Iterator[type]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


def raised(package: str, kind: type) -> bool:
    """Whether the code raises the class itself, besides its leaves."""
    pattern = re.compile(rf"(?<![\w.]){kind.__name__}\(")
    folders = (ROOT / "blockgate", ROOT / package)
    sources = [path for each in folders for path in each.rglob("*.py") if path.name != "errors.py"]
    return any(pattern.search(path.read_text()) for path in sources)


def reachable(package: str, module, root: type) -> dict[str, type]:
    """What a caller can meet, by code: leaves, and branches that are raised as they are."""
    kinds = [kind for kind in tree(root) if kind.__module__ in (module.__name__, "blockgate.errors")]
    return {kind.code: kind for kind in kinds if not kind.__subclasses__() or raised(package, kind)}


GATEWAY = reachable("gateway", errors, errors.BlockgateError)
NODE = reachable("nbd_client", node_errors, node_errors.BlockgateError)


def test_every_code_of_the_gateway_is_explained_and_no_other():
    assert set(rows("Gateway")) == set(GATEWAY)


@pytest.mark.parametrize("code", GATEWAY)
def test_status_and_retryable_are_those_of_the_code(code):
    status, retryable, meaning, advice = rows("Gateway")[code]
    assert int(status) == status_of(GATEWAY[code])
    assert retryable == ("yes" if GATEWAY[code].retryable else "no")
    assert meaning
    assert advice


def test_codes_of_client_commands_are_explained():
    own = {kind.code for kind in tree(calls.GatewayClientError) if not kind.__subclasses__()}
    assert set(rows("Client commands")) == own


def test_every_code_of_the_node_is_explained_and_no_other():
    expected = set(NODE) - {node_errors.BlockgateError.code}
    assert set(rows("Node")) == expected


@pytest.mark.parametrize("code", sorted(set(NODE) - {node_errors.BlockgateError.code}))
def test_retryable_is_that_of_the_nodes_code(code):
    assert rows("Node")[code][0] == ("yes" if NODE[code].retryable else "no")
