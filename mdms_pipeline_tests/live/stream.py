"""A stream of the sandbox's candles at any speed, with all that can go wrong; and the process that listens, begun again and again.

Used by the test of parity, and at the full size by scripts/live_parity.py.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mdms_pipeline.collect import wire
from mdms_pipeline.collect.fill import fill
from mdms_pipeline.collect.socket import Heard, Joined, Lost, Wanted
from mdms_pipeline.collect.universe import update_universe
from mdms_pipeline.live.deliver import Delivery
from mdms_pipeline.live.journal import Journal
from mdms_pipeline.live.load import expected
from mdms_pipeline.live.parity import Difference, differences
from mdms_pipeline.live.run import Event, Health, Live, told_since
from mdms_pipeline.live.watch import Watch, grouped
from mdms_pipeline.market import PRICES_AND_AMOUNTS, Instant, timeframe
from mdms_pipeline.sandbox import Sandbox
from mdms_pipeline.settings import Settings
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.universe import universe
from mdms_pipeline_tests.support import ask, virtually


@dataclass
class Steady:
    """A clock that the stream alone sets, the same in every thread: what a listener waits for takes no time of the market's."""

    now: float

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Trouble:
    """How often what happens, as a chance for each step (or each message)."""

    repeated: float = 0.1  # a message comes twice
    shuffled: float = 0.2  # a step's messages come in any order
    late: float = 0.05  # a message comes a step later
    cut: float = 0.02  # the stream is lost, for up to `away` steps
    away: int = 20
    corrected: float = 0.0  # the exchange tells a candle otherwise that has closed up to three bars ago
    step: tuple[int, int] = (300, 1_500)  # s between two steps


@dataclass
class Stream:
    """What the exchange tells of some candles as its clock goes from step to step."""

    sandbox: Sandbox
    clock: Steady
    wanted: Wanted
    until: Instant
    random: random.Random
    idle: Callable[[], bool]  # the listener has done with all that it was told
    trouble: Trouble = field(default_factory=Trouble)
    look: Callable[[], None] = lambda: None  # after each step
    stored_to: Instant = 0  # candles that opened before are stored as they were
    sent: int = 0

    async def events(self) -> AsyncIterator[Event]:
        """Until the clock has come to `until`. The listener has all the time that it needs between two steps."""
        held: list[Heard] = []
        seen: dict[tuple[str, str], tuple[Instant, float]] = {}
        away = 0
        joined = self._symbols()
        yield Joined(self.clock())
        await self._heard()
        while self.clock() < self.until:
            lost_at = self.clock()
            self.clock.now += self.random.randint(*self.trouble.step)
            if away:
                away -= 1
                if not away:
                    joined = self._symbols()
                    yield Joined(self.clock())
            elif self.random.random() < self.trouble.cut:
                away, held = self.random.randint(1, self.trouble.away), []
                yield Lost(lost_at, "cut")
            else:
                if others := self._symbols() - joined:  # over a connection of their own
                    yield Joined(self.clock(), tuple(sorted(others)))
                joined = self._symbols()
                messages = [*self._told(seen), *self._corrected()]
                late = [each for each in messages if self.random.random() < self.trouble.late]
                now = [*held, *(each for each in messages if each not in late)]
                held = late
                now += [each for each in now if self.random.random() < self.trouble.repeated]
                if self.random.random() < self.trouble.shuffled:
                    self.random.shuffle(now)
                self.sent += len(now)
                for each in now:
                    yield replace(each, received_at=self.clock())
            await self._heard()
            self.look()
        for each in held:
            yield each
        if away:
            yield Joined(self.clock())
        await self._heard()

    def _symbols(self) -> set[str]:
        return {symbol for of_one in self.wanted.of.values() for symbol in of_one}

    def _corrected(self) -> list[Heard]:
        """Now and then a candle of the last ones, with another close; the stream tells of it once."""
        if self.random.random() >= self.trouble.corrected:
            return []
        name = self.random.choice(list(self.wanted.of))
        symbol, frame = self.random.choice(self.wanted.of[name]), timeframe(name)
        at = frame.after(frame.floor(int(self.clock())), -self.random.randint(1, 3))
        candles, last_ms = self.sandbox.bars(symbol, frame, at + 1, 1)
        if candles.opened_at.tolist() != [at] or at < self.stored_to:
            return []
        self.sandbox.correct(symbol, frame, at, close=float(candles.low[0]), volume=1.1 * float(candles.volume[0]))
        candles, _ = self.sandbox.bars(symbol, frame, at + 1, 1)
        numbers = (float(getattr(candles, column)[0]) for column in PRICES_AND_AMOUNTS)
        return [Heard(symbol, name, at, *numbers, int(last_ms[0]) / 1000 + 1, self.clock())]

    async def _heard(self) -> None:
        """Wait until the listener has emptied its queue and has looked at the clock."""
        await asyncio.sleep(1.0)  # of no time, in a VirtualLoop
        while not self.idle():
            await asyncio.sleep(0.01)

    def _told(self, seen: dict[tuple[str, str], tuple[Instant, float]]) -> list[Heard]:
        """The candles that have changed since the last step: those that form, and those that have closed meanwhile."""
        found = []
        for name, symbols in self.wanted.of.items():
            end = timeframe(name).after(timeframe(name).floor(int(self.clock())))
            listed = {market.code for market in self.sandbox.markets()}
            for symbol in (symbol for symbol in symbols if symbol in listed):
                candles, last_ms = self.sandbox.bars(symbol, timeframe(name), end, 2)
                for i, opened_at in enumerate(candles.opened_at.tolist()):
                    told = (opened_at, float(candles.volume[i]))
                    if told > seen.get((name, symbol), (0, 0.0)):
                        seen[name, symbol] = told
                        numbers = (float(getattr(candles, column)[i]) for column in PRICES_AND_AMOUNTS)
                        found.append(Heard(symbol, name, opened_at, *numbers, int(last_ms[i]) / 1000, self.clock()))
        return found


@dataclass
class Simulation:
    """A warehouse and a live process beside it, on a sandbox whose clock the simulation drives."""

    settings: Settings
    watches: Sequence[Watch]
    clock: Steady
    seed: int = 1
    trouble: Trouble = field(default_factory=Trouble)
    look: Callable[[], None] = lambda: None
    lives: list[Health] = field(default_factory=list)
    live: Live | None = None  # the last one
    messages: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.sandbox = Sandbox(clock=self.clock)
        self.warehouse = Warehouse(self.settings.warehouse, "sandbox", 600, no_trade=self.settings.no_trade)
        self.began: Instant | None = None

    @property
    def folder(self) -> Path:
        return self.settings.home / "signals"

    def collect(self) -> None:
        """What the collecting part does beside."""

        async def main(_: Callable[[], float]) -> None:
            async with ask(self.sandbox) as exchange:
                await update_universe(exchange, self.warehouse, self.settings)
                with self.warehouse.read() as connection:
                    symbols = universe(connection)
                partitions = [(symbol, name) for name in self.settings.timeframes for symbol in symbols]
                await fill(exchange, self.warehouse, partitions, self.settings.history)

        virtually(main)

    def listen(self, until: Instant) -> None:
        """A live process, from here to there; then it is gone."""

        async def main(time: Callable[[], float]) -> None:
            with self.warehouse.read() as connection:
                symbols = universe(connection)
            async with ask(self.sandbox) as exchange:
                errors = (wire.ExchangeError,)
                delivery = Delivery(Journal(self.folder))
                live = Live(self.watches, self.warehouse, symbols, exchange, self.clock, delivery, errors, (wire.NotFound,), timer=time)
                self.live = live
                stream = Stream(self.sandbox, self.clock, live.wanted, until, self.random, lambda: live.idle, self.trouble, self.look)
                await live.run(stream.events())
                self.lives.append(live.health)
                self.messages += stream.sent

        if self.began is None:
            self.began = int(self.clock())
        virtually(main)

    def compared(self) -> tuple[int, list[Difference]]:
        """How many signals the stored candles give since the first process began, and what differs from those told."""
        assert self.began is not None
        wanted = []
        with self.warehouse.read() as connection:
            symbols = universe(connection)
            for name, mine in grouped(self.watches).items():
                frame = timeframe(name)
                first = frame.after(frame.newest_closed(self.began, 2))
                last = frame.newest_closed(int(self.clock()), 2)
                told = expected(connection, mine, symbols, first)
                wanted += [signal for signal in told if signal.opened_at <= last]
        return len(wanted), differences(wanted, told_since(Journal(self.folder), 0))
