"""What a strategy says of a market now: `mdms_pipeline.signal` and `mdms signal`.

By a running `mdms live` that watches it, from its RAM. Without one it stands on the stored candles, and on those that closed since, for
which the exchange is asked (one request).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from mdms_pipeline.backtest.find import recipe_of
from mdms_pipeline.collect.client import connect
from mdms_pipeline.live.ask import asked_signal
from mdms_pipeline.live.desk import Answer, Desk
from mdms_pipeline.live.gap import Gap, pages
from mdms_pipeline.live_watch import strategy_watches
from mdms_pipeline.market import Candles, Instant, check_symbol, timeframe
from mdms_pipeline.settings import Settings
from mdms_pipeline.store import Warehouse

T = TypeVar("T")

_desks: dict[tuple[Path, int], Desk] = {}  # by warehouse and memory: what was asked for stays in RAM
_guard = threading.Lock()


def signal(symbol: str, strategy: str, settings: Settings | None = None, ask: bool = True) -> Answer:
    """What `strategy` says of `symbol` at its last closed bar and at the one that forms; by which way, and how long it took.

    Without `ask` of the stored candles alone: nobody is asked, a running `mdms live` neither; `behind` says how many slots have closed
    since. Raises ParamError for a strategy that is not known, ValueError for a symbol that is none or of which nothing is stored,
    ExchangeError where the exchange fails.
    """
    settings = Settings.load() if settings is None else settings
    watches = strategy_watches(recipe_of(settings, strategy).usual)
    check_symbol(symbol)
    if ask and (found := asked_signal(settings.home, watches, symbol)) is not None:
        return found
    return _desk(settings).ask(watches, symbol, _asking(settings) if ask else None)


def _desk(settings: Settings) -> Desk:
    with _guard:
        key = settings.warehouse, settings.memory_mb
        if key not in _desks:
            warehouse = Warehouse(settings.warehouse, settings.exchange_url, settings.memory_mb, no_trade=settings.no_trade)
            _desks[key] = Desk(warehouse, settings.clock)
        return _desks[key]


def _asking(settings: Settings) -> Callable[[str, str, Instant], Candles]:
    """Asks the exchange for the candles of one market from a bar on, the forming one included."""

    def more(symbol: str, frame: str, last: Instant) -> Candles:
        async def asked() -> Candles:
            async with connect(settings.exchange_url, settings.clock) as exchange:
                found = [
                    await exchange.candles(symbol, frame, to, count)
                    for to, count in pages(Gap(symbol, timeframe(frame), last), settings.clock())
                ]
            return Candles.joined(found)

        return _run(asked())

    return more


def _run(work: Coroutine[object, object, T]) -> T:
    """The result of `work`, also inside of a notebook, whose loop runs already."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
