"""Indicator tables: no NaN in any of them, and one view that joins all."""

from __future__ import annotations

import numpy as np

from mdms_pipeline.calculate.catalog import defaults
from mdms_pipeline.calculate.kernels import sma
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.schema import indicator_tables
from mdms_pipeline.store.series import read_all, read_last
from mdms_pipeline_tests.support import HOUR, NOW, bits, calculate, candles, page, put, rows

START = NOW // HOUR * HOUR - 300 * HOUR


def test_nan_is_stored_as_null_everywhere(warehouse: Warehouse) -> None:
    quiet = candles(START, 60)
    for column in (quiet.open, quiet.high, quiet.low, quiet.close):
        column[20:40] = 100.0  # no movement: rsi and percent_b are unknown
    put(warehouse, page("KRW-BTC", quiet))
    calculate(warehouse, ["KRW-BTC"])
    with warehouse.read() as connection:
        tables = indicator_tables(connection)
        for table, columns in tables.items():
            for column in columns:
                nan, known = connection.execute(f'SELECT count(*) FILTER (isnan("{column}")), count("{column}") FROM {table}').fetchone()
                assert nan == 0, column
                assert known < 60 or column == "tr", column  # every one has a warm-up, or a stretch without an answer
    assert {column for columns in tables.values() for column in columns} == {name for i in defaults() for name in i.columns}


def test_the_view_shows_every_candle_with_every_column(warehouse: Warehouse) -> None:
    put(warehouse, page("KRW-BTC", candles(START, 30)), page("KRW-ETH", candles(START, 20, seed=2)))
    calculate(warehouse, ["KRW-BTC"])
    with warehouse.read() as connection:
        view = connection.execute("SELECT * FROM indicators ORDER BY symbol, opened_at").fetchnumpy()
    assert set(view) >= {"symbol", "timeframe", "opened_at", "close", "value", *(name for i in defaults() for name in i.columns)}
    assert view["symbol"].tolist() == ["KRW-BTC"] * 30 + ["KRW-ETH"] * 20  # one that is not calculated is there, with NULL
    assert not np.ma.getmaskarray(view["sma_5"])[4:30].any()
    assert np.ma.getmaskarray(view["sma_5"])[30:].all()


def test_the_view_follows_a_new_column(warehouse: Warehouse) -> None:
    put(warehouse, page("KRW-BTC", candles(START, 50)))
    calculate(warehouse, ["KRW-BTC"], indicators=[sma(5)])
    calculate(warehouse, ["KRW-BTC"], indicators=[sma(37)])
    assert rows(warehouse, "SELECT count(sma_5), count(sma_37) FROM indicators") == [(46, 14)]


def test_series_are_what_the_tables_hold(warehouse: Warehouse) -> None:
    """The last bars of many markets, however rarely they trade, are the tail of all of theirs."""
    rare = candles(START, 300)[np.arange(300) % 23 == 0]
    put(warehouse, page("KRW-BTC", candles(START, 300)), page("KRW-RARE", rare, covered=(START, START + 300 * HOUR)))
    calculate(warehouse, ["KRW-BTC", "KRW-RARE"], indicators=[sma(5)])
    wanted = {"candles": ["close"], "sma": ["sma_5"]}
    with warehouse.read() as connection:
        from mdms_pipeline.store.candles import standings

        known = {symbol: standing for (symbol, _), standing in standings(connection).items()}
        last = read_last(connection, wanted, "1h", known, 8)
        for symbol in known:
            whole = read_all(connection, wanted, "1h", symbol)
            assert np.array_equal(last[symbol].opened_at, whole.opened_at[-8:])
            for name in ("close", "sma_5"):
                assert np.array_equal(last[symbol].columns[name], whole.columns[name][-8:], equal_nan=True)
    assert bits(warehouse, ["candles"]) == bits(warehouse, ["candles"])
