"""``blockgate`` with or without its recording, for comparison only: ``python -m benchmarks.recording on|off serve ...``.

No setting turns metrics off, so *off* takes the program as it is and edits the functions that a hot read passes: each
addition to a counter, a histogram or a span's reads is taken out of their source, clocks give 0, and the tasks that
measure the loop's lag and keep the timeline are never started. Nothing else differs. Additions that are no longer found
are an error: a comparison with a program that records all the same would say that recording costs nothing.

*On* edits nothing; it is there so that both start in the same way and import in the same order, for processes that do
not were seen to differ by as much as recording costs.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from gateway.api.edge import Edge
from gateway.cli.main import main
from gateway.devices.device import Device
from gateway.observe.observation import Observation
from gateway.spans.store import SpanStore

# Function, and how many additions it makes.
_RECORDING: tuple[tuple[type, str, int], ...] = (
    (Edge, "__call__", 2),
    (Device, "_peek_one", 2),
    (SpanStore, "peek", 1),
)


class _Unrecorded(ast.NodeTransformer):
    """Takes out every ``x += y``; reads no clock."""

    def __init__(self) -> None:
        self.removed = 0

    def visit_AugAssign(self, _node: ast.AugAssign) -> ast.AST:
        self.removed += 1
        return ast.Pass()

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if ast.unparse(node.func) == "time.perf_counter":
            return ast.Constant(0.0)
        return self.generic_visit(node)


def _without_recording(function: Callable[..., Any], additions: int) -> Callable[..., Any]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    edit = _Unrecorded()
    tree = ast.fix_missing_locations(edit.visit(tree))
    if edit.removed != additions:
        raise RuntimeError(
            f"{function.__qualname__} makes {edit.removed} additions, not {additions}: look again"
        )
    namespace: dict[str, Any] = {}
    exec(compile(tree, inspect.getsourcefile(function) or "", "exec"), function.__globals__, namespace)
    return namespace[function.__name__]


async def _nothing(_self: Observation) -> None:
    return None


def _stop_recording() -> None:
    for owner, name, additions in _RECORDING:
        setattr(owner, name, _without_recording(getattr(owner, name), additions))
    Observation.start = _nothing  # type: ignore[method-assign]


if __name__ == "__main__":
    if sys.argv.pop(1) == "off":
        _stop_recording()
    sys.exit(main())
