"""The event bus: each reader goes on from its own cursor, and sees what is stored, whole and in order."""

from __future__ import annotations

from contextlib import suppress

from mdms_pipeline.calculate.catalog import KINDS
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.journal import emit, events_after
from mdms_pipeline_tests.support import HOUR, NOW, calculate, candles, page, put

START = NOW // HOUR * HOUR - 30 * HOUR


def test_readers_follow_each_at_its_own_pace(warehouse: Warehouse) -> None:
    read: dict[str, list[int]] = {"eager": [], "idle": []}
    for hour in range(4):
        put(warehouse, page("KRW-BTC", candles(START + hour * HOUR, 1)), page("KRW-ETH", candles(START + hour * HOUR, 1)))
        with warehouse.read() as connection:
            read["eager"] += [event.id for event in events_after(connection, read["eager"][-1] if read["eager"] else 0)]
    with warehouse.read() as connection:
        while found := events_after(connection, read["idle"][-1] if read["idle"] else 0, limit=3):
            read["idle"] += [event.id for event in found]
        events = events_after(connection, 0)
    assert read["eager"] == read["idle"] == [event.id for event in events] == sorted({event.id for event in events})
    assert [(event.type, event.symbols, event.timeframe, event.count) for event in events] == [
        ("market_data_collected", ("KRW-BTC", "KRW-ETH"), "1h", 2)
    ] * 4


def test_an_event_is_seen_when_and_only_when_its_data_is(warehouse: Warehouse) -> None:
    with suppress(RuntimeError), warehouse.write() as connection:
        emit(connection, "market_listed", NOW, None, ["KRW-NEW"], None, 1)
        raise RuntimeError
    with warehouse.read() as connection:
        assert events_after(connection, 0) == []
    put(warehouse, page("KRW-BTC", candles(START, 20)))
    calculate(warehouse, ["KRW-BTC"])
    with warehouse.read() as connection:
        types = [event.type for event in events_after(connection, 0)]
    assert types[0] == "market_data_collected"
    assert types[1:] == [f"{kind}_calculated" for kind in KINDS]
