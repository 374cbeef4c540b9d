"""Signals in the table: each once, with its event, its values to the bit, and the stretch that was watched."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from mdms_pipeline.live.signal import Signal
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.journal import events_after
from mdms_pipeline.store.schema import TABLES, VERSION
from mdms_pipeline.store.signals import Watched, counted, keep, last_signals, place, signals_after, signals_of, watches
from mdms_pipeline_tests.support import HOUR, NOW, rows

AT = NOW // HOUR * HOUR
WATCHED = Watched("w1", "strategy", "breakout", "entry", "f1", "1h", ("KRW-BTC", "KRW-ETH"), AT)


def signal(bar: int = 0, symbol: str = "KRW-BTC", **changes: object) -> Signal:
    made = Signal(
        "strategy", "breakout", "entry", symbol, "1h", AT + bar * HOUR, True, False, {"close": 0.1 + 0.2, "sma(20)[1]": None}, False,
        NOW + 0.123456, NOW + 0.25,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def kept(warehouse: Warehouse, signals: Sequence[Signal], until: int = 1, watched: Sequence[Watched] = ()) -> list[Signal]:
    with warehouse.write() as connection:
        return list(keep(connection, signals, watched, until, NOW))  # type: ignore[arg-type]


def test_a_signal_comes_back_as_it_was(warehouse: Warehouse) -> None:
    awkward = {"close": 1e8 + 2**-20, "rsi(14)": 5e-324, "x": -0.0, "거래": 1 / 3, "unknown": None}
    made = [
        signal(0, answer=answer, before=before, rule=f"{answer}{before}", values=awkward)
        for answer in (True, False, None) for before in (True, False, None) if answer is not before
    ]  # fmt: skip
    kept(warehouse, made)
    with warehouse.read() as connection:
        found = signals_after(connection)
    for one, other in zip(made, found, strict=True):
        for name in ("id", "source", "name", "rule", "symbol", "timeframe", "opened_at", "answer", "before", "revision", "emitted_at"):
            assert getattr(one, name) == getattr(other, name), name
        assert other.received_at == pytest.approx(one.received_at, abs=1e-6)
        assert {name: value if value is None else value.hex() for name, value in other.values.items()} == {
            name: value if value is None else value.hex() for name, value in awkward.items()
        }
    assert [one.number for one in found] == sorted({one.number for one in found})


def test_brought_in_any_way_each_is_there_once(warehouse: Warehouse) -> None:
    """Batches that overlap, come again, and hold one twice; one event for each batch that brought anything."""
    dice, whole, new = random.Random(5), [signal(bar, symbol) for bar in range(20) for symbol in ("KRW-BTC", "KRW-ETH")], []
    while len(new) < len(whole):
        new += kept(warehouse, dice.choices(whole, k=7))
    assert kept(warehouse, whole) == []
    assert sorted(one.id for one in new) == sorted(one.id for one in whole)
    assert rows(warehouse, "SELECT count(*), count(DISTINCT id), count(DISTINCT number) FROM signals") == [(40, 40, 40)]
    with warehouse.read() as connection:
        events = events_after(connection, 0)
    assert {event.type for event in events} == {"signals_emitted"}
    assert sum(event.count for event in events) == len(whole)
    assert {event.timeframe for event in events} == {None}  # or a refresh would be made for them


def test_a_bar_that_changed_is_another_signal(warehouse: Warehouse) -> None:
    kept(warehouse, [signal(), signal(revision=1, answer=False)])
    assert rows(warehouse, "SELECT revision, answer FROM signals ORDER BY revision") == [(0, True), (1, False)]


def test_all_of_a_batch_or_none(warehouse: Warehouse) -> None:
    with suppress(RuntimeError), warehouse.write() as connection:
        keep(connection, [signal()], [WATCHED], 7, NOW)  # type: ignore[list-item]
        raise RuntimeError
    with warehouse.read() as connection:
        assert (signals_after(connection), watches(connection), place(connection), events_after(connection, 0)) == ([], [], None, [])


def test_the_place_never_moves_back(warehouse: Warehouse) -> None:
    kept(warehouse, [], 500)
    kept(warehouse, [], 400)
    with warehouse.read() as connection:
        assert place(connection) == 500


def test_what_was_watched_grows_and_never_shrinks(warehouse: Warehouse) -> None:
    later = replace(WATCHED, since=AT + 9 * HOUR, symbols=("KRW-BTC",))
    for until in (None, AT + HOUR, AT + 3 * HOUR, AT + 2 * HOUR, None):
        kept(warehouse, [], watched=[replace(WATCHED, until=until)])
    kept(warehouse, [], watched=[later])
    with warehouse.read() as connection:
        assert watches(connection) == [replace(WATCHED, until=AT + 3 * HOUR), later]


def test_what_is_asked_for(warehouse: Warehouse) -> None:
    kept(warehouse, [signal(bar) for bar in range(5)] + [signal(2, source="screen", name="dip", rule="where")])
    with warehouse.read() as connection:
        stretch = replace(WATCHED, since=AT + HOUR, until=AT + 3 * HOUR)
        assert [one.opened_at for one in signals_of(connection, stretch)] == [AT + HOUR, AT + 2 * HOUR, AT + 3 * HOUR]
        assert signals_of(connection, replace(stretch, until=None)) == signals_of(connection, replace(stretch, symbols=("KRW-ETH",))) == []
        assert [one.name for one in last_signals(connection, 2)] == ["dip", "breakout"]
        assert [one.number for one in signals_after(connection, 3, 2)] == [4, 5]
        found = counted(connection)
    assert (found.total, found.newest) == (6, AT + 4 * HOUR)
    assert found.by_rule == {"screen dip where": 1, "strategy breakout entry": 5}


@pytest.mark.parametrize("missing", [("signals", "watched"), ("signals", "watched", "cursors", "alerts")])
def test_a_warehouse_of_version_2_gets_what_it_lacks(warehouse: Warehouse, missing: Sequence[str]) -> None:
    """Also one made while version 2 was being developed, before it had alerts."""
    with duckdb.connect(warehouse.path) as connection:
        for table in missing:
            connection.execute(f"DROP TABLE {table}")
        connection.execute("DROP SEQUENCE signal_number")
        connection.execute("UPDATE meta SET value = '2' WHERE key = 'version'")
    again = Warehouse(Path(warehouse.path), "sandbox")
    assert {name for (name,) in rows(again, "SELECT table_name FROM duckdb_tables()")} >= set(TABLES)
    assert rows(again, "SELECT value FROM meta WHERE key = 'version'") == [(str(VERSION),)]
    assert len(kept(again, [signal()])) == 1
