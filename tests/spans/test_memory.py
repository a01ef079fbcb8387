"""The memory tier against a model: budget, watermarks, least recently used first."""

from __future__ import annotations

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.layers.key import LayerKey, SpanKey
from gateway.spans.memory import MemoryTier

HIGH, LOW = 100, 60
KEYS = st.builds(SpanKey, st.sampled_from("ab"), st.sampled_from("xy"), st.integers(0, 5))


class MemoryMachine(RuleBasedStateMachine):
    """The model is a list of (key, data), least recently used first."""

    def __init__(self):
        super().__init__()
        self.tier = MemoryTier(HIGH, LOW)
        self.model: list[tuple[SpanKey, bytes]] = []
        self.evicted = 0
        self.gone: list[SpanKey] = []
        self.heard: list[SpanKey] = []
        self.tier.on_evict = self.heard.append

    def without(self, key):
        return [entry for entry in self.model if entry[0] != key]

    @rule(key=KEYS, length=st.integers(0, HIGH + 5))
    def put(self, key, length):
        data = bytes(length)
        self.tier.keep(key, data)
        if length > HIGH:
            return
        self.model = [*self.without(key), (key, data)]
        if sum(len(d) for _, d in self.model) > HIGH:
            while sum(len(d) for _, d in self.model) > LOW:
                self.gone.append(self.model.pop(0)[0])
                self.evicted += 1

    @rule(key=KEYS)
    def get(self, key):
        held = dict(self.model).get(key)
        assert self.tier.peek(key) == held
        assert (key in self.tier) == (held is not None)
        if held is not None:
            self.model = [*self.without(key), (key, held)]

    @rule()
    def drop(self):
        assert asyncio.run(self.tier.drop()) == sum(len(d) for _, d in self.model)
        self.gone += [key for key, _ in self.model]
        self.model = []

    @invariant()
    def holds_what_the_model_holds(self):
        assert len(self.tier) == len(self.model)
        assert self.tier.used_bytes == sum(len(d) for _, d in self.model) <= HIGH
        assert self.tier.evicted == self.evicted
        assert self.heard == self.gone
        for blob in "ab":
            for index in "xy":
                held = {k.span for k, _ in self.model if (k.blob, k.cut) == (blob, index)}
                assert self.tier.held(LayerKey(blob, index)) == held


MemoryMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMemoryTier = MemoryMachine.TestCase


def test_the_low_watermark_is_nine_tenths_of_the_budget():
    assert MemoryTier(1000).low_bytes == 900


def test_a_span_larger_than_the_budget_is_not_held_and_displaces_nothing():
    tier = MemoryTier(10)
    tier.keep(SpanKey("a", "x", 0), b"12345")
    tier.keep(SpanKey("a", "x", 1), bytes(11))
    assert len(tier) == 1
    assert tier.peek(SpanKey("a", "x", 0)) == b"12345"


def test_a_tier_without_room_holds_nothing():
    tier = MemoryTier(0)
    tier.keep(SpanKey("a", "x", 0), b"1")
    assert (len(tier), tier.used_bytes) == (0, 0)
