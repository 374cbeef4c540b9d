"""A life of live signals on made-up answers, killed again and again; what must be there afterwards.

The signals of a bar are a function of the bar alone, as real ones are of the candles. A life goes on after the bar that an earlier one has
reached, as `mdms live` does.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mdms_pipeline.live import deliver
from mdms_pipeline.live.deliver import Delivery, Receiver, Table
from mdms_pipeline.live.journal import Journal
from mdms_pipeline.live.signal import Signal
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.signals import signals_after, watches
from mdms_pipeline_tests.live.made import AT, WATCHED, bar, signal
from mdms_pipeline_tests.support import HOUR, NOW, PROCESSES

SYMBOLS = tuple(f"KRW-C{i}" for i in range(8))
WATCH = replace(WATCHED, symbols=SYMBOLS)
SMALL = {"segment": 20_000, "bound": 10**8}  # bytes: the journal is cut many times, and forgets nothing that a receiver has not


def of_bar(i: int) -> list[Signal]:
    """Which answers change at the i-th bar."""
    dice = random.Random(i)
    return [signal(i, symbol, values={"close": dice.random()}) for symbol in SYMBOLS if dice.random() < 0.4]


def live(home: Path, bars: int, dice: random.Random | None = None) -> None:
    """Judge what was not judged yet, and deliver; with dice, restlessly: each transaction as soon as anything came."""
    deliver.GATHER = dice.uniform(0, 0.02) if dice else 0.0
    journal = Journal(home / "signals", **SMALL)
    heard = os.open(home / "heard", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    receiver = Receiver("file", lambda signal: os.write(heard, f"{signal.id}\n".encode()))
    table = Table(journal, Warehouse(home / "mdms.duckdb", "sandbox", memory_mb=200), lambda: NOW)
    delivery = Delivery(journal, [receiver], table)
    reached = delivery.reached(WATCH.watch)
    first = 0 if reached is None else (reached - AT) // HOUR + 1
    delivery.watch([replace(WATCH, since=bar(first))])
    for i in range(first, bars):
        found = of_bar(i)
        if found and dice and dice.random() < 0.5:  # not all closes come at the same moment
            cut = dice.randrange(len(found))
            delivery.emit(found[:cut])
        delivery.emit(found, reached={WATCH.watch: bar(i)})
    delivery.close(60)


def one_life(home: Path, bars: int, seed: int) -> None:
    live(home, bars, random.Random(seed))


def strike(home: Path, bars: int, seconds: float, seed: int) -> bool:
    """A life that is killed after so many seconds; whether it still lived then."""
    process = PROCESSES.Process(target=one_life, args=(home, bars, seed))
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode is not None
    return process.exitcode != 0


def wrong(home: Path, bars: int) -> Iterator[str]:
    """What is lost, doubled or made up, after a life that came to its end."""
    expected = [one for i in range(bars) for one in of_bar(i)]
    with Warehouse(home / "mdms.duckdb", "sandbox", memory_mb=200).read() as connection:
        kept, stretches = signals_after(connection, limit=10**9), watches(connection)
        told: Any = connection.execute("SELECT sum(count) FROM events WHERE type = 'signals_emitted'").fetchone()
    yield from _differ("table", [one.id for one in kept], [one.id for one in expected])
    if {one.id: one.values for one in kept} != {one.id: one.values for one in expected}:
        yield "table: values differ"
    if told != (len(expected),):
        yield f"events tell of {told} signals, not of {len(expected)}"
    if [(one.since, one.until) for one in stretches] != [(bar(0), bar(bars - 1))]:
        yield f"watched {stretches}"
    lost = {one.id for one in expected} - set((home / "heard").read_text().split())
    if lost:
        yield f"receiver: {len(lost)} lost"
    if (broken := Journal(home / "signals", **SMALL).broken) != 0:
        yield f"journal: {broken} lines broken"


def _differ(what: str, found: Sequence[str], expected: Sequence[str]) -> Iterator[str]:
    ours, theirs = Counter(found), Counter(expected)
    for said, count in (("missing", theirs - ours), ("too many", ours - theirs)):
        if count:
            yield f"{what}: {count.total()} {said}"
