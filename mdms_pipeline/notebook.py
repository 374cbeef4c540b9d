"""What is stored, as a pandas DataFrame, for notebooks. Reads the warehouse; asks nobody and writes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import pandas as pd

from mdms_pipeline.calculate.advance import current
from mdms_pipeline.calculate.run import calculate
from mdms_pipeline.market import PRICES_AND_AMOUNTS, TIMEFRAMES, Floats, Instants, check_symbol
from mdms_pipeline.market import timeframe as known_timeframe
from mdms_pipeline.rules import Call, Formula, Key, RuleError, did_you_mean, evaluate, parse_value
from mdms_pipeline.rules.nodes import Series as Name
from mdms_pipeline.settings import Settings
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import Standing, standings
from mdms_pipeline.store.series import read_all
from mdms_pipeline.vocabulary import column_of, indicator_of, load_extensions, parse_indicator, tables, vocabulary


def frame(texts: str | Sequence[str], symbol: str, timeframe: str, settings: Settings | None = None) -> pd.DataFrame:
    """One column per value, one row per stored candle, oldest first; the index `opened_at` is UTC, NaN is "not known".

    A text is a candle column, an indicator (a column for each of its outputs, named as in the warehouse) or a formula of both:
    `frame(["close", "macd", "close / sma(37) - 1"], "KRW-BTC", "1h")`. What is not stored is calculated in RAM by the same kernels.
    ValueError where the symbol, the timeframe or a text is not known.
    """
    settings = Settings.load() if settings is None else settings
    load_extensions(settings.extensions)
    wanted: dict[str, Formula] = {}
    for text in [texts] if isinstance(texts, str) else texts:
        wanted.update(_formulas(text))
    calls = tuple(dict.fromkeys(call for formula in wanted.values() for call in formula.calls))
    with _warehouse(settings).read() as connection:
        opened_at, series = _series(connection, calls, _standing(connection, symbol, timeframe))
    columns = {name: evaluate(formula, series) for name, formula in wanted.items()}
    return pd.DataFrame(columns, index=pd.to_datetime(opened_at, unit="s", utc=True).rename("opened_at"))


def _formulas(text: str) -> dict[str, Formula]:
    """Column name -> what it holds; several for an indicator with several outputs."""
    try:
        formula = parse_value(text, vocabulary())
    except RuleError:
        indicator = parse_indicator(text)
        calls = [indicator.call] if len(indicator.columns) == 1 else [f"{indicator.call}.{output}" for output in indicator.kind.writes]
        return {column: parse_value(call, vocabulary()) for column, call in zip(indicator.columns, calls, strict=True)}
    root = formula.root
    return {column_of(root) if isinstance(root, Call) else root.name if isinstance(root, Name) else str(formula): formula}


def _warehouse(settings: Settings) -> Warehouse:
    if not settings.warehouse.exists():
        raise ValueError(f"there is no warehouse at {settings.warehouse}: run `mdms run`, or name its folder by MDMS_HOME")
    return Warehouse(settings.warehouse, settings.exchange_url, settings.memory_mb, no_trade=settings.no_trade)


def _standing(connection: duckdb.DuckDBPyConnection, symbol: str, timeframe: str) -> Standing:
    """The standing of a partition that has candles, else ValueError naming those that do."""
    check_symbol(symbol)
    known_timeframe(timeframe)
    stored = {partition: standing for partition, standing in standings(connection).items() if standing.candles}
    symbols = sorted({name for name, _ in stored})
    if symbol not in symbols:
        raise ValueError(f"symbol {symbol!r} has no stored candles: {did_you_mean(symbol, symbols)}")
    if (symbol, timeframe) not in stored:
        held = ", ".join(name for name in TIMEFRAMES if (symbol, name) in stored)
        raise ValueError(f"timeframe {timeframe!r} of {symbol} has no stored candles: stored are {held} (MDMS_TIMEFRAMES)")
    return stored[symbol, timeframe]


def _series(connection: duckdb.DuckDBPyConnection, calls: Sequence[Call], standing: Standing) -> tuple[Instants, dict[Key, Floats]]:
    """The opening instants of all stored candles, and every candle column and call over them."""
    indicators = {call: indicator_of(call) for call in calls}
    stored = current(connection, list(dict.fromkeys(indicators.values())), standing.timeframe, [standing.symbol])[standing.symbol]
    wanted = tables((*PRICES_AND_AMOUNTS, *(call for call, indicator in indicators.items() if indicator in stored)))
    bars = read_all(connection, wanted, standing.timeframe, standing.symbol)
    columns = {**bars.columns, **calculate(set(indicators.values()) - stored, bars.candles)}
    plain: dict[Key, Floats] = {name: columns[name] for name in PRICES_AND_AMOUNTS}
    return bars.opened_at, {**plain, **{call: columns[column_of(call)] for call in calls}}
