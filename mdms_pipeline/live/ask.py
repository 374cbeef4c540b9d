"""Ask a running `mdms live` of this home for what it has in RAM. Where none runs, or none can say, another way is taken."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdms_pipeline.live.desk import Answer, Said
from mdms_pipeline.live.lane import Bar
from mdms_pipeline.live.serve import folder_of, reachable
from mdms_pipeline.live.watch import Watch
from mdms_pipeline.market import Instant

BY_LIVE = "memory in RAM of mdms live"  # a way, besides those of load.py and desk.py
DEADLINE = 1.0  # s for the answer, of however many processes
LONGEST = 16 * 2**20  # bytes of an answer


@dataclass(frozen=True)
class Market:
    """What the process holds of one market in one timeframe."""

    forming: Bar | None
    last: Bar | None  # the last closed bar, where it was closed by the process; else the warehouse has it
    last_opened: Instant
    before_last: Instant

    def closed_since(self, covered_to: Instant) -> tuple[Bar, ...] | None:
        """The closed bars that opened at `covered_to` or later; None where those are more than is held."""
        if self.last_opened < covered_to:
            return ()
        return (self.last,) if self.last is not None and self.before_last < covered_to else None


@dataclass(frozen=True)
class Bars:
    """The bars of all asked markets at one moment."""

    timeframe: str
    at: float  # s UTC
    settled: Instant  # the newest slot that is over for all
    markets: Mapping[str, Market]


def asked_signal(home: Path, watches: Sequence[Watch], symbol: str) -> Answer | None:
    """What these watches of one strategy say of `symbol` by a process that watches them."""
    began = time.perf_counter()
    wanted = [(watch.key, None if watch.symbols is None else sorted(watch.symbols)) for watch in watches]
    said = ask(home, {"ask": "signal", "symbol": symbol, "timeframe": watches[0].timeframe, "watches": wanted})
    if said is None:
        return None
    closed, forming = (tuple(Said(**each) for each in said[name]) for name in ("said", "forming"))
    return Answer(
        symbol, watches[0].name, watches[0].timeframe, said["opened_at"], closed, forming, 0, BY_LIVE, time.perf_counter() - began
    )


def asked_bars(home: Path, timeframes: Sequence[str], symbols: Sequence[str]) -> Bars | None:
    """The bars of these markets in the first of the timeframes in which a process hears them all."""
    said = ask(home, {"ask": "bars", "timeframes": list(timeframes), "symbols": list(symbols)})
    if said is None:
        return None
    markets = {
        symbol: Market(_bar(one["forming"]), _bar(one["last"]), one["last_opened"], one["before_last"])
        for symbol, one in said["markets"].items()
    }
    return Bars(said["timeframe"], said["at"], said["settled"], markets)


def ask(home: Path, question: Mapping[str, Any], seconds: float = DEADLINE) -> Mapping[str, Any] | None:
    """The first answer of a process of this home; None where there is none in time."""
    sockets, until = sorted(folder_of(home).glob("*.sock")), time.monotonic() + seconds
    for i, path in enumerate(sockets):
        share = (until - time.monotonic()) / (len(sockets) - i)  # one that hangs leaves the others their time
        try:
            said = json.loads(_asked(path, json.dumps(question).encode() + b"\n", share))
        except (OSError, ValueError):  # nobody is there any more, or it takes too long
            continue
        if isinstance(said, dict) and "no" not in said:
            return said
    return None


def _asked(path: Path, question: bytes, seconds: float) -> bytes:
    """One line for one line. Raises OSError where it does not come in time."""
    until, found = time.monotonic() + seconds, bytearray()
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(max(0.001, seconds))
        with reachable(path) as address:
            line.connect(address)
        line.sendall(question)
        while not found.endswith(b"\n") and len(found) < LONGEST:
            line.settimeout(max(0.001, until - time.monotonic()))
            part = line.recv(2**16)
            if not part:
                break
            found += part
    return bytes(found)


def _bar(said: Sequence[Any] | None) -> Bar | None:
    return None if said is None else Bar(said[0], tuple(said[2:]), traded=said[1])
