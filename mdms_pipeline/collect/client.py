"""Requests with pace and retries over one httpx client."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from mdms_pipeline.collect import wire
from mdms_pipeline.collect.pace import Pace
from mdms_pipeline.market import Candles, Instant
from mdms_pipeline.settings import SANDBOX

T = TypeVar("T")

TRIES = 6  # per request, for what is transient
FIRST_BACKOFF, LONGEST_BACKOFF = 0.25, 8.0  # seconds before the second try, and at most; doubled each time, and drawn at random below
TIMEOUT = httpx.Timeout(10.0, connect=5.0)
WAITABLE_BLOCK = 30.0  # a 418 that lasts longer than this ends the collection instead of holding it


@dataclass
class Exchange:
    """Upbit as we use it. Transport, clock and sleep are passed in, so a test needs no patching.

    Not shared between event loops.
    """

    http: httpx.AsyncClient
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    requests: int = 0
    waited: float = 0.0  # seconds spent waiting for the pace
    _paces: dict[str, Pace] = field(default_factory=dict)

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

    async def candles(self, symbol: str, timeframe: str, to: Instant, count: int) -> Candles:
        """The newest `count` (at most 200) candles that opened before `to`, oldest first."""
        return await self._fetch(wire.candles_request(symbol, timeframe, to, count), lambda body: wire.parse_candles(body, symbol))

    async def _fetch(self, request: wire.Request, parse: Callable[[Any], T]) -> T:
        """One parsed answer; what is transient is tried again after a pause that doubles. Raises `wire.ExchangeError`."""
        for attempt in range(1, TRIES + 1):
            try:
                return parse(wire.check(await self._answer(request)))
            except wire.Transient as error:
                if attempt == TRIES:
                    raise
                await self._pause(request.group, error, attempt)
            except wire.Blocked as error:
                self._paces = {group: pace.blocked(self.clock(), error.seconds) for group, pace in self._paces.items()}
                if error.seconds > WAITABLE_BLOCK or attempt == TRIES:
                    raise
        raise AssertionError("unreachable: the last try returns or raises")

    async def _answer(self, request: wire.Request) -> httpx.Response:
        await self._turn(request.group)
        self.requests += 1
        try:
            response = await self.http.get(request.path, params=dict(request.params))
        except httpx.RequestError as error:
            raise wire.Unreachable(f"{self.http.base_url} cannot be reached: {type(error).__name__} {error}".rstrip()) from error
        if response.status_code not in (418, 429):
            said = wire.remaining(response.headers)
            self._change(request.group, lambda pace: pace.answered(self.clock(), None if said is None else said[1]))
        return response

    async def _turn(self, group: str) -> None:
        """Take the next place in the group's row, and wait for it."""
        while True:
            now, pace = self.clock(), self._paces.get(group, Pace())
            wait = pace.wait(now)
            if pace.blocked_until <= now:
                self._paces[group] = pace.sent(now + wait)
                await self._wait(wait)
                return
            await self._wait(wait)

    async def _wait(self, seconds: float) -> None:
        if seconds > 0:
            self.waited += seconds
            await self.sleep(seconds)

    async def _pause(self, group: str, error: wire.Transient, attempt: int) -> None:
        if isinstance(error, wire.TooMany):
            self._change(group, lambda pace: pace.refused(self.clock()))
        else:
            await self._wait(random.uniform(0.5, 1.0) * min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** (attempt - 1)))

    def _change(self, group: str, change: Callable[[Pace], Pace]) -> None:
        self._paces[group] = change(self._paces.get(group, Pace()))


def connect(url: str, clock: Callable[[], float] = time.time) -> Exchange:
    """The exchange at `url`; `sandbox` is the embedded one, in this process."""
    if url == SANDBOX:
        from mdms_pipeline.sandbox import Sandbox, create_app

        transport = httpx.ASGITransport(app=create_app(Sandbox(clock=clock)))
        return Exchange(httpx.AsyncClient(transport=transport, base_url="http://sandbox", timeout=TIMEOUT), clock)
    headers = {"Accept": "application/json"}
    return Exchange(httpx.AsyncClient(base_url=url, timeout=TIMEOUT, headers=headers), clock)
