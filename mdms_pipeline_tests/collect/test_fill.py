"""Collecting from an exchange that misbehaves: what is stored is the exchange's truth, and what could not be had says why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import httpx
import numpy as np
import pytest

from mdms_pipeline.collect import wire
from mdms_pipeline.collect.fill import Filled, fill, is_due, newest_end
from mdms_pipeline.market import PRICES_AND_AMOUNTS, SETTLE, TIMEFRAMES, Candles, instant
from mdms_pipeline.sandbox import Fault, Sandbox
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import DELISTED, FAILED, FRESH, QUARANTINED, Standing, standings
from mdms_pipeline.store.frames import instants
from mdms_pipeline_tests.support import HOUR, NOW, Clock, ask, broken, collect, rows, virtually

BTC, ETH, XRP = [(symbol, "1h") for symbol in ("KRW-BTC", "KRW-ETH", "KRW-XRP")]


def held(warehouse: Warehouse, symbol: str, frame: str) -> Candles:
    """What is stored of one partition."""
    columns = ", ".join(PRICES_AND_AMOUNTS)
    query = f"SELECT {instants('opened_at')}, {columns} FROM candles WHERE symbol = ? AND timeframe = ? ORDER BY opened_at"
    with warehouse.read() as connection:
        found = connection.execute(query, [symbol, frame]).fetchnumpy()
    return Candles(*(np.ascontiguousarray(found[name]) for name in ("opened_at", *PRICES_AND_AMOUNTS)))


def same(found: Candles, truth: Candles) -> bool:
    """Equal bit for bit."""
    return all(getattr(found, name).tobytes() == getattr(truth, name).tobytes() for name in ("opened_at", *PRICES_AND_AMOUNTS))


def standing(warehouse: Warehouse, symbol: str, frame: str = "1h") -> Standing:
    with warehouse.read() as connection:
        return standings(connection)[symbol, frame]


def is_true(warehouse: Warehouse, exchange: Sandbox, symbol: str, frame: str) -> bool:
    """Whether what is stored is all that the exchange has in the covered span, and nothing else."""
    covered = standing(warehouse, symbol, frame).covered
    assert covered is not None
    truth = exchange.candles(symbol, TIMEFRAMES[frame], covered[1], 20_000)
    return same(held(warehouse, symbol, frame), truth[truth.opened_at >= covered[0]]) and not broken(warehouse)


# ---- closed candles only


@pytest.mark.parametrize("after", [-1.0, -0.001, 0.0, 0.5, 1.999, 2.0, 3.0, 1830.0])
@pytest.mark.parametrize("frame", ["1m", "1h", "1d"])
def test_only_closed_candles_are_stored(warehouse: Warehouse, exchange: Sandbox, now: Clock, after: float, frame: str) -> None:
    """Around a close: the candle that forms never, the one just closed once it has settled; that is waited for."""
    close = NOW // 86_400 * 86_400
    now.now = close + after
    collect(warehouse, exchange, [("KRW-BTC", frame)], history=5)
    newest = held(warehouse, "KRW-BTC", frame).opened_at[-1]
    assert TIMEFRAMES[frame].after(newest) <= now.now + (SETTLE + 0.01 if 0 <= after < SETTLE else 0)
    assert TIMEFRAMES[frame].after(newest) == TIMEFRAMES[frame].floor(close + (-1 if after < 0 else int(max(after, SETTLE)) - SETTLE))
    now.now = close + 10 * 86_400
    assert is_true(warehouse, exchange, "KRW-BTC", frame)  # later the exchange still says the same


# ---- history


@pytest.mark.parametrize("frame", TIMEFRAMES)
def test_history_reaches_as_far_back_as_asked_for(warehouse: Warehouse, exchange: Sandbox, frame: str) -> None:
    collect(warehouse, exchange, [("KRW-BTC", frame)], history=50)
    assert standing(warehouse, "KRW-BTC", frame).candles == 50
    assert is_true(warehouse, exchange, "KRW-BTC", frame)
    collect(warehouse, exchange, [("KRW-BTC", frame)], history=90)
    assert (standing(warehouse, "KRW-BTC", frame).candles, standing(warehouse, "KRW-BTC", frame).revision) == (90, 1)
    assert is_true(warehouse, exchange, "KRW-BTC", frame)


def test_history_ends_at_the_listing(warehouse: Warehouse, exchange: Sandbox) -> None:
    collect(warehouse, exchange, [("KRW-KAS", "4h")], history=1_000)  # listed 2026-11-17T05:00Z
    found = standing(warehouse, "KRW-KAS", "4h")
    assert (found.begins, found.state, found.covered) == (True, FRESH, (instant("2026-11-17T04:00"), instant("2026-11-20T08:00")))
    assert is_true(warehouse, exchange, "KRW-KAS", "4h")
    assert not is_due(found, NOW, 1_000)


def test_a_market_listed_this_hour_is_empty_not_unknown(warehouse: Warehouse, exchange: Sandbox, now: Clock) -> None:
    exchange.listing("KRW-NEW", price=1_000.0)
    now.now += 60
    collect(warehouse, exchange, [("KRW-NEW", "1h")])
    assert (standing(warehouse, "KRW-NEW").state, standing(warehouse, "KRW-NEW").candles) == (FRESH, 0)
    now.now += 2 * HOUR
    collect(warehouse, exchange, [("KRW-NEW", "1h")])
    assert standing(warehouse, "KRW-NEW").candles > 0
    assert is_true(warehouse, exchange, "KRW-NEW", "1h")


@pytest.mark.parametrize(("symbol", "frame"), [("KRW-FCT2", "1m"), ("KRW-TOKAMAK", "3m"), ("KRW-BTC", "1m"), ("KRW-BTC", "1h")])
def test_slots_without_trades_and_maintenance_leave_no_doubt(
    warehouse: Warehouse, exchange: Sandbox, now: Clock, symbol: str, frame: str
) -> None:
    now.now = instant("2026-11-11T18:30:30")  # in the middle of the maintenance, 16:00 to 20:00
    collect(warehouse, exchange, [(symbol, frame)], history=250)
    now.now += 3 * HOUR
    collect(warehouse, exchange, [(symbol, frame)], history=450)
    assert is_true(warehouse, exchange, symbol, frame)
    found = standing(warehouse, symbol, frame)
    slots = TIMEFRAMES[frame].slots(*found.covered)
    assert 450 <= found.candles < slots
    assert found.covered[1] == newest_end(now.now, frame)
    assert not is_due(found, now.now, 450)


def test_a_long_absence_is_caught_up_across_an_interruption(warehouse: Warehouse, exchange: Sandbox, now: Clock) -> None:
    collect(warehouse, exchange, [BTC], history=60)
    now.now += 900 * HOUR  # five pages
    before = len(exchange.log)
    exchange.faults = lambda path, query: Fault.page() if len(exchange.log) > before + 2 else None
    done = collect(warehouse, exchange, [BTC])
    assert (done.states[BTC], done.candles[BTC] > 0) == (FAILED, True)
    middle = standing(warehouse, *BTC)
    assert middle.at(int(now.now)) == FAILED
    assert is_true(warehouse, exchange, *BTC)  # what is there has no gap
    exchange.faults = None
    before = len(exchange.log)
    collect(warehouse, exchange, [BTC])
    assert standing(warehouse, *BTC).covered == (middle.covered[0], newest_end(now.now, "1h"))
    assert is_true(warehouse, exchange, *BTC)
    assert {instant(request.query["to"]) > middle.covered[1] for request in exchange.log[before:]} == {True}  # nothing twice


def test_nothing_is_asked_for_twice(warehouse: Warehouse, exchange: Sandbox) -> None:
    collect(warehouse, exchange, [BTC, ETH], history=500)
    asked = Counter((request.query["market"], request.query["to"]) for request in exchange.log)
    assert set(asked.values()) == {1}
    again = collect(warehouse, exchange, [BTC, ETH], history=500)
    assert (again.requests, again.candles) == (0, {BTC: 0, ETH: 0})


# ---- errors that pass, and errors that do not

PASSING = {
    "500": Fault.page(500),
    "503": Fault(503, '{"error":"maintenance"}'),
    "timeout": Fault(error=httpx.ReadTimeout),
    "no connection": Fault(error=httpx.ConnectError),
    "cut": Fault.cut(),
    "html": Fault(200, "<html>welcome</html>", "text/html"),
    "shape": Fault.shape(),
    "another market": Fault.shape('[{"market":"KRW-XXX"}]'),
    "429": Fault(429, "slow down", "text/plain"),
}


def failing(symbol: str, fault: Fault, times: float) -> Callable[[str, dict[str, str]], Fault | None]:
    """The first so many requests for the candles of one market get this fault."""
    left = [times]

    def faults(path: str, query: dict[str, str]) -> Fault | None:
        if query.get("market") != symbol or left[0] <= 0:
            return None
        left[0] -= 1
        return fault

    return faults


@pytest.mark.parametrize("kind", PASSING)
def test_what_passes_is_tried_again(warehouse: Warehouse, exchange: Sandbox, kind: str) -> None:
    exchange.faults = failing("KRW-ETH", PASSING[kind], times=3)
    done = collect(warehouse, exchange, [BTC, ETH, XRP])
    assert (set(done.states.values()), done.requests, done.reasons) == ({FRESH}, 6, {})
    assert is_true(warehouse, exchange, *ETH)


@pytest.mark.parametrize("kind", PASSING)
def test_what_does_not_pass_fails_alone_and_says_why(warehouse: Warehouse, exchange: Sandbox, kind: str) -> None:
    collect(warehouse, exchange, [ETH], history=10)
    exchange.faults = failing("KRW-ETH", PASSING[kind], times=np.inf)
    done = collect(warehouse, exchange, [BTC, ETH, XRP], history=60)
    assert done.states == {BTC: FRESH, ETH: FAILED, XRP: FRESH}
    assert list(done.reasons) == [ETH]
    assert done.reasons[ETH] == standing(warehouse, *ETH).reason
    assert standing(warehouse, *ETH).candles == 10  # what was there stays
    assert is_true(warehouse, exchange, *BTC)
    exchange.faults = None
    collect(warehouse, exchange, [ETH], history=60)
    assert (standing(warehouse, *ETH).state, standing(warehouse, *ETH).reason, standing(warehouse, *ETH).candles) == (FRESH, None, 60)


def test_a_request_that_is_refused_is_not_repeated(warehouse: Warehouse, exchange: Sandbox) -> None:
    exchange.faults = failing("KRW-ETH", Fault(400, '{"error":{"name":400,"message":"Type mismatch error."}}'), times=np.inf)
    done = collect(warehouse, exchange, [BTC, ETH])
    assert (done.states[ETH], done.reasons[ETH]) == (FAILED, "answered 400: Type mismatch error.")
    assert sum(request.query["market"] == "KRW-ETH" for request in exchange.log) == 1


def test_a_delisted_market_keeps_its_history(warehouse: Warehouse, exchange: Sandbox, now: Clock) -> None:
    collect(warehouse, exchange, [BTC, ETH])
    exchange.delist("KRW-ETH")
    now.now += 3 * HOUR
    done = collect(warehouse, exchange, [BTC, ETH])
    assert done.states == {BTC: FRESH, ETH: DELISTED}
    assert sum(request.query["market"] == "KRW-ETH" for request in exchange.log if request.status == 404) == 1
    found = standing(warehouse, *ETH)
    assert (found.state, found.candles, len(held(warehouse, *ETH))) == (DELISTED, 60, 60)


def test_an_exchange_that_is_down_is_given_up_on_early(warehouse: Warehouse, exchange: Sandbox) -> None:
    exchange.faults = lambda path, query: Fault(error=httpx.ConnectError)
    partitions = [(f"KRW-M{i:03}", "1h") for i in range(120)]
    done = collect(warehouse, exchange, partitions)
    assert set(done.states.values()) == {FAILED}
    assert len(done.states) == 120
    assert done.requests < 120
    assert sum(reason.startswith("not tried: http://sandbox") for reason in done.reasons.values()) > 80
    assert all("cannot be reached" in reason for reason in done.reasons.values())


@pytest.mark.parametrize("seconds", [3, 20])
def test_a_short_block_is_waited_out(warehouse: Warehouse, exchange: Sandbox, seconds: int) -> None:
    exchange.faults = failing("KRW-ETH", Fault(418, f'{{"error":{{"message":"blocked for {seconds} seconds"}}}}'), times=1)
    partitions = [(symbol, frame) for frame in ("1h", "4h") for symbol in ("KRW-BTC", "KRW-ETH", "KRW-XRP")]
    done = collect(warehouse, exchange, partitions)
    assert set(done.states.values()) == {FRESH}
    at = next(i for i, request in enumerate(exchange.log) if request.status == 418)
    blocked_at = exchange.log[at].at
    asked = [request.at for request in exchange.log if request.at > blocked_at]
    assert asked
    assert min(asked) >= blocked_at + seconds - 0.1


def test_a_long_block_ends_the_collection(warehouse: Warehouse, exchange: Sandbox) -> None:
    exchange.faults = failing("KRW-ETH", Fault(418, '{"error":{"message":"blocked for 600 seconds"}}'), times=1)
    partitions = [(symbol, frame) for symbol in ("KRW-ETH", "KRW-BTC", "KRW-XRP", "KRW-SOL") for frame in TIMEFRAMES]
    done = collect(warehouse, exchange, partitions)
    assert done.states[ETH] == FAILED
    reasons = [reason for partition, reason in done.reasons.items() if done.states[partition] == FAILED]
    assert len(reasons) > 20
    assert all("blocked" in reason and "418" in reason for reason in reasons)
    at = next(i for i, request in enumerate(exchange.log) if request.status == 418)
    assert len(exchange.log) - at <= 12  # at most what was under way


# ---- candles that cannot be


@pytest.mark.parametrize("bad", [{"close": -1.0}, {"high": 1.0}, {"low": 1e12}, {"volume": -1.0}])
def test_an_impossible_candle_is_quarantined_until_it_is_mended(
    warehouse: Warehouse, exchange: Sandbox, now: Clock, bad: dict[str, float]
) -> None:
    collect(warehouse, exchange, [BTC, ETH])
    frame, end = TIMEFRAMES["1h"], newest_end(NOW, "1h")
    now.now += 5 * HOUR
    true = exchange.candles("KRW-ETH", frame, end + 5 * HOUR, 3)[:1]  # the third of the five new ones
    (at,) = true.opened_at.tolist()
    mended = {name: float(getattr(true, name)[0]) for name in bad}
    exchange.correct("KRW-ETH", frame, at, **bad)
    for _ in range(2):
        done = collect(warehouse, exchange, [BTC, ETH])
        assert done.states == {BTC: FRESH, ETH: QUARANTINED}
        assert standing(warehouse, *ETH).covered[1] == at  # up to it, and not beyond
        assert standing(warehouse, *ETH).reason == done.reasons[ETH]
        assert rows(warehouse, "SELECT symbol, timeframe FROM quarantine") == [ETH]
    exchange.correct("KRW-ETH", frame, at, **mended)
    assert collect(warehouse, exchange, [BTC, ETH]).states == {BTC: FRESH, ETH: FRESH}
    assert is_true(warehouse, exchange, *ETH)
    assert standing(warehouse, *ETH).candles == 65


# ---- odds and ends


def test_nothing_to_fill(warehouse: Warehouse, exchange: Sandbox) -> None:
    done = collect(warehouse, exchange, [])
    assert (done.requests, done.states) == (0, {})


def test_what_breaks_while_writing_ends_the_collection(warehouse: Warehouse, exchange: Sandbox) -> None:
    """A full disk, say: it is raised, and nobody goes on asking."""
    with warehouse.write() as connection:
        connection.execute("DROP TABLE candles")

    async def main(_: Callable[[], float]) -> Filled:
        async with ask(exchange) as client:
            return await fill(client, warehouse, [(f"KRW-{code}", "1h") for code in ("BTC", "ETH", "XRP", "SOL") * 20], 200)

    with pytest.raises(Exception, match="candles"):
        virtually(main)
    assert len(exchange.log) <= 64 + 12 + 1  # what waits to be written, what is on its way, and what is being written


def test_the_error_tree_is_the_one_that_is_drawn() -> None:
    drawn = [line.split("──")[-1].split()[0] for line in str(wire.__doc__).splitlines() if "──" in line]
    for name in drawn:
        assert issubclass(getattr(wire, name), wire.ExchangeError)
