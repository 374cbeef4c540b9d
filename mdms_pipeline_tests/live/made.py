"""Signals made up, for tests of where they go."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from mdms_pipeline.live.signal import Signal
from mdms_pipeline.market import Instant
from mdms_pipeline.store.signals import Watched
from mdms_pipeline_tests.support import HOUR, NOW

AT = NOW // HOUR * HOUR
WATCHED = Watched("w1", "strategy", "breakout", "entry", "f1", "1h", ("KRW-BTC", "KRW-ETH"), AT)
PATIENCE = 30.0  # s until a test that waits in vain fails


def bar(i: int) -> Instant:
    return AT + i * HOUR


def signal(i: int = 0, symbol: str = "KRW-BTC", **changes: object) -> Signal:
    """The signal of the i-th bar."""
    made = Signal(
        "strategy", "breakout", "entry", symbol, "1h", bar(i), i % 2 == 0, i % 2 == 1, {"close": 0.1 + 0.2, "sma(20)[1]": None}, False,
        NOW + 0.123456, NOW + 0.25,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


class Heard:
    """A callable that remembers what it was told, raises where it is asked to, and can be waited for."""

    def __init__(self, fails: Callable[[Signal, int], bool] = lambda signal, times: False) -> None:
        self.signals: list[Signal] = []  # taken
        self.tried: list[Signal] = []
        self._fails = fails
        self._changed = threading.Condition()

    def __call__(self, signal: Signal) -> None:
        with self._changed:
            self.tried.append(signal)
            self._changed.notify_all()
            if self._fails(signal, self.tried.count(signal)):
                raise RuntimeError("not this one")
            self.signals.append(signal)
            self._changed.notify_all()

    def wait(self, count: int, tried: bool = False) -> list[Signal]:
        """What it was told, once it is so many."""
        told = self.tried if tried else self.signals
        with self._changed:
            assert self._changed.wait_for(lambda: len(told) >= count, PATIENCE), f"told {len(told)} of {count}"
            return list(told)
