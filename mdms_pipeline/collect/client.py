"""Requests with pace and retries over one httpx client."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from mdms_pipeline.collect import wire
from mdms_pipeline.collect.budget import Budget, MemoryBudget, SharedBudget, shared_file
from mdms_pipeline.collect.pace import CONNECT, Block, Ledger, Pace
from mdms_pipeline.market import KST, Candles, Instant
from mdms_pipeline.settings import SANDBOX

T = TypeVar("T")

TRIES = 6  # per request, for what is transient
FIRST_BACKOFF, LONGEST_BACKOFF = 0.25, 8.0  # seconds before the second try, and at most; doubled each time, and drawn at random below
TIMEOUT = httpx.Timeout(10.0, connect=5.0)
KEPT_OPEN = httpx.Limits(keepalive_expiry=60.0)  # s; a new connection makes a request some way late
WAITABLE_BLOCK = 30.0  # seconds; a 418 that lasts longer ends the collection instead of holding it
NOTABLE = 1.0  # seconds; a wait as long as this is told, shorter ones are only summed
LONGEST_SAID = 200  # characters of a 418's body that are kept
QUIET = 10.0  # seconds in which the same reason is told once

log = logging.getLogger(__name__)


@dataclass
class Exchange:
    """Upbit as we use it. Transport, clocks, sleep and budget are passed in, so a test needs no patching.

    Not shared between event loops.
    """

    http: httpx.AsyncClient
    clock: Callable[[], float] = time.time  # s UTC: which candles are closed
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    timer: Callable[[], float] = time.monotonic  # s: how long ago, where the budget is nobody else's
    budget: Budget | None = None  # None: one of this client alone
    notice: Callable[[str], None] | None = None  # is told of every wait that a user would wonder about, as this module's log is
    requests: int = 0
    waited: float = 0.0  # seconds spent waiting for the pace
    _rows: dict[str, asyncio.Lock] = field(default_factory=dict)
    _told: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._budget = self.budget or MemoryBudget(self.timer)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.http.aclose()

    async def markets(self) -> list[wire.Listing]:
        """All KRW markets."""
        return await self._fetch(wire.markets_request(), wire.parse_markets)

    async def turnovers(self) -> dict[str, float]:
        """KRW market -> KRW traded over 24 h."""
        return await self._fetch(wire.tickers_request(), wire.parse_turnovers)

    async def last_trades(self) -> dict[str, float]:
        """KRW market -> instant of its last trade (s UTC)."""
        return await self._fetch(wire.tickers_request(), wire.parse_last_trades)

    async def today(self) -> list[wire.Today]:
        """Every KRW market's UTC day so far."""
        return await self._fetch(wire.tickers_request(), wire.parse_today)

    async def candles(self, symbol: str, timeframe: str, to: Instant, count: int) -> Candles:
        """The newest `count` (at most 200) candles that opened before `to`, oldest first."""
        return await self._fetch(wire.candles_request(symbol, timeframe, to, count), lambda body: wire.parse_candles(body, symbol))

    async def _fetch(self, request: wire.Request, parse: Callable[[Any], T]) -> T:
        """One parsed answer; what is transient is tried again after a pause that doubles. Raises `wire.ExchangeError`."""
        for attempt in range(1, TRIES + 1):
            sent_at = await self._turn(request.group)
            try:
                return parse(wire.check(await self._answer(request, sent_at)))
            except wire.TooMany:
                if attempt == TRIES:
                    raise
            except wire.Transient as error:
                if attempt == TRIES:
                    raise
                await self._back_off(error, attempt)
            except wire.Blocked as error:
                block, seconds = await self._blocked(error)
                if attempt == TRIES or seconds > WAITABLE_BLOCK:
                    raise self._shut_out(block, seconds) from error
        raise AssertionError("unreachable: the last try returns or raises")

    async def _answer(self, request: wire.Request, sent_at: float) -> httpx.Response:
        """What the exchange answers; the budget hears of it."""
        self.requests += 1
        try:
            response = await self.http.get(request.path, params=dict(request.params))
        except httpx.RequestError as error:
            raise wire.Unreachable(f"{self.http.base_url} cannot be reached: {type(error).__name__} {error}".rstrip()) from error
        if response.status_code == 429:
            rate = await self._budget.change(lambda ledger, now: _refused(ledger, request.group, sent_at, now))
            self._tell(f"429, too many {request.group} requests", f"waiting for the exchange's next second, then {rate:.1f} requests/s")
        elif response.status_code != 418:
            said = wire.remaining(response.headers)
            left = None if said is None else said[1]
            await self._budget.change(lambda ledger, now: (ledger.answered(request.group, sent_at, left, now), None))
        return response

    async def _turn(self, group: str) -> float:
        """Stand in the group's row; at its head, wait for the budget as it is by then. The instant at which the request leaves.

        A budget whose clock stands still (a test's) is waited for once.
        """
        async with self._rows.setdefault(group, asyncio.Lock()):
            before = -math.inf
            while (turn := await self._budget.change(lambda ledger, now: ledger.take(group, now))).wait:
                if turn.at <= before:
                    await self._budget.change(lambda ledger, now: (ledger.departed(group, now), None))
                    break
                before = turn.at
                if turn.block is not None:
                    self._tell_of_block(turn.block, turn.wait)
                await self._wait(turn.wait)
            return turn.at

    async def _wait(self, seconds: float) -> None:
        self.waited += seconds
        await self.sleep(seconds)

    def _tell_of_block(self, block: Block, seconds: float) -> None:
        """A short block is waited for; a long one is not: raises wire.Blocked."""
        if seconds > WAITABLE_BLOCK:
            raise self._shut_out(block, seconds)
        self._tell(f"blocked (418) until {_moment(self.clock() + seconds)}", f"waiting {math.ceil(seconds)} s")

    async def _blocked(self, error: wire.Blocked) -> tuple[Block, float]:
        """Shut out all that share this budget; the seconds that it still lasts."""
        seconds = None if error.seconds == wire.BLOCK_SECONDS else error.seconds

        def note(ledger: Ledger, now: float) -> tuple[Ledger, tuple[Block, float]]:
            after = ledger.shut_out(now, seconds, str(error)[:LONGEST_SAID])
            assert after.block is not None
            return after, (after.block, after.block.until - now)

        return await self._budget.change(note)

    def _shut_out(self, block: Block, seconds: float) -> wire.Blocked:
        until = _moment(self.clock() + seconds)
        return wire.Blocked(f"{self.http.base_url} has blocked this address until {until}, nothing is asked before: {block.said}", seconds)

    async def _back_off(self, error: wire.Transient, attempt: int) -> None:
        seconds = random.uniform(0.5, 1.0) * min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** (attempt - 1))
        if seconds >= NOTABLE:
            self._tell(str(error), f"try {attempt + 1} of {TRIES} in {seconds:.0f} s")
        await self._wait(seconds)

    def _tell(self, why: str, what: str) -> None:
        """Tell of a wait, unless the same was told a moment ago: a dozen requests are under way at once."""
        now = time.monotonic()
        if now - self._told.get(why, -math.inf) >= QUIET:
            self._told[why] = now
            log.warning("%s: %s", why, what)
            if self.notice is not None:
                self.notice(f"{why}: {what}")


def _refused(ledger: Ledger, group: str, sent_at: float, now: float) -> tuple[Ledger, float]:
    after = ledger.refused(group, sent_at, now)
    return after, after.pace(group, now).rate(now)


def _moment(at: float) -> str:
    """`2026-11-22 23:31:05 UTC = 2026-11-23 08:31:05 KST`, the second that has `at` behind it."""
    second = math.ceil(at)
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%d %H:%M:%S} UTC = {datetime.fromtimestamp(second, KST):%Y-%m-%d %H:%M:%S} KST"


def connect(url: str, clock: Callable[[], float] = time.time, budget_dir: Path | None = None) -> Exchange:
    """The exchange at `url`, `sandbox` being the embedded one; with one budget for all processes of this machine, kept in `budget_dir`."""
    if url == SANDBOX:
        return _embedded(clock)
    http = httpx.AsyncClient(base_url=url, timeout=TIMEOUT, limits=KEPT_OPEN, headers={"Accept": "application/json"})
    return Exchange(http, clock, budget=SharedBudget(shared_file(url, budget_dir)))


def _embedded(clock: Callable[[], float]) -> Exchange:
    """A sandbox of our own."""
    from mdms_pipeline.sandbox import Sandbox, create_app

    transport = httpx.ASGITransport(app=create_app(Sandbox(clock=clock)))
    return Exchange(httpx.AsyncClient(transport=transport, base_url="http://sandbox", timeout=TIMEOUT), clock, budget=unlimited())


def unlimited() -> MemoryBudget:
    """For an exchange that limits nothing: it begins where the header would lead it."""
    return MemoryBudget(ledger=Ledger({group: Pace(allowed=math.inf) for group in ("market", "ticker", "candles", CONNECT)}))
