"""`mdms_pipeline.frame`: what notebooks read."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mdms_pipeline
from mdms_pipeline.calculate.advance import advance
from mdms_pipeline.calculate.run import calculate
from mdms_pipeline.market import HOUR, Candles, instant
from mdms_pipeline.settings import Settings
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import Page, store_pages
from mdms_pipeline.vocabulary import parse_indicator, stored
from mdms_pipeline_tests.laws.markets import market

NOW = instant("2026-11-22T12:00:00")
BARS = 300


def hours(bars: int, seed: int = 3) -> Candles:
    """Hourly candles up to NOW."""
    return replace(market(seed, bars), opened_at=np.arange(bars, dtype=np.int64) * HOUR + NOW - bars * HOUR)


def store(warehouse: Warehouse, symbol: str, candles: Candles) -> None:
    span = (int(candles.opened_at[0]), int(candles.opened_at[-1]) + HOUR)
    with warehouse.write() as connection:
        store_pages(connection, [Page(symbol, "1h", candles, span)], NOW, NOW, None)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A warehouse with KRW-BTC fully calculated and KRW-ETH not at all."""
    settings = Settings.load({"MDMS_HOME": str(tmp_path_factory.mktemp("home")), "MDMS_EXCHANGE_URL": "sandbox"})
    warehouse = Warehouse(settings.warehouse, settings.exchange_url)
    store(warehouse, "KRW-BTC", hours(BARS))
    store(warehouse, "KRW-ETH", hours(BARS, seed=4))
    for indicator in stored():
        advance(warehouse, [indicator], {"1h": ["KRW-BTC"]})
    return settings


def test_a_stored_indicator(settings: Settings) -> None:
    found = mdms_pipeline.frame("rsi(14)", "KRW-BTC", "1h", settings)
    assert list(found.columns) == ["rsi_14"]
    assert found.index.name == "opened_at"
    assert isinstance(found.index, pd.DatetimeIndex)
    assert str(found.index.tz) == "UTC"
    assert found.index[-1] == pd.Timestamp(NOW - HOUR, unit="s", tz="UTC")
    assert len(found) == BARS
    assert found["rsi_14"].isna().sum() == 14


def test_one_column_per_output_and_candle_columns_by_name(settings: Settings) -> None:
    found = mdms_pipeline.frame(["close", "macd", "bollinger(20, 2).upper"], "KRW-BTC", "1h", settings)
    assert list(found.columns) == ["close", "macd_12_26_9_line", "macd_12_26_9_signal", "macd_12_26_9_histogram", "bollinger_20_2_upper"]
    assert found["close"].tolist() == hours(BARS).close.tolist()


@pytest.mark.parametrize("text", ["rsi(14)", "sma(37)", "stoch(5, 2, 2)", "macd", "sma(volume, 20)"])
def test_stored_or_calculated_in_ram_are_the_same_bits(settings: Settings, text: str) -> None:
    wanted = calculate([parse_indicator(text)], hours(BARS))
    found = mdms_pipeline.frame(text, "KRW-BTC", "1h", settings)
    assert {name: column.tobytes() for name, column in wanted.items()} == {name: found[name].to_numpy().tobytes() for name in found}


def test_a_market_that_was_never_calculated(settings: Settings) -> None:
    found = mdms_pipeline.frame("rsi(14)", "KRW-ETH", "1h", settings)
    assert found["rsi_14"].tolist()[14:] == calculate([parse_indicator("rsi(14)")], hours(BARS, seed=4))["rsi_14"].tolist()[14:]


def test_an_indicator_that_is_behind_its_candles_is_calculated(tmp_path: Path) -> None:
    settings = Settings.load({"MDMS_HOME": str(tmp_path), "MDMS_EXCHANGE_URL": "sandbox"})
    warehouse, candles = Warehouse(settings.warehouse, settings.exchange_url), hours(BARS)
    store(warehouse, "KRW-BTC", candles[: BARS - 10])
    advance(warehouse, [parse_indicator("ema(12)")], {"1h": ["KRW-BTC"]})
    store(warehouse, "KRW-BTC", candles[BARS - 10 :])
    found = mdms_pipeline.frame("ema(12)", "KRW-BTC", "1h", settings)
    assert found["ema_12"].to_numpy().tobytes() == calculate([parse_indicator("ema(12)")], candles)["ema_12"].tobytes()


def test_a_formula_is_named_by_its_text(settings: Settings) -> None:
    found = mdms_pipeline.frame(["close/sma(37)-1", "close[1]"], "KRW-BTC", "1h", settings)
    assert list(found.columns) == ["close / sma(37) - 1", "close[1]"]
    assert found["close[1]"].tolist()[1:] == hours(BARS).close.tolist()[:-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rsj(14)", "KRW-BTC", "1h"), "unknown indicator 'rsj'(.|\n)*did you mean rsi"),
        (("rsi(14", "KRW-BTC", "1h"), "never closed"),
        (("close > 3", "KRW-BTC", "1h"), "a condition where a number is wanted"),
        (("close", "BTC", "1h"), "symbol 'BTC' is not a KRW market code: write it like KRW-BTC"),
        (("close", "KRW-BTCC", "1h"), "symbol 'KRW-BTCC' has no stored candles: did you mean KRW-BTC"),
        (("close", "KRW-BTC", "2h"), "timeframe '2h' is not known: use one of 1m"),
        (("close", "KRW-BTC", "1d"), "timeframe '1d' of KRW-BTC has no stored candles: stored are 1h"),
    ],
)
def test_what_cannot_be_is_refused(settings: Settings, arguments: tuple[str, str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mdms_pipeline.frame(*arguments, settings)


def test_a_warehouse_that_is_not_there_is_refused_and_not_made(tmp_path: Path) -> None:
    settings = Settings.load({"MDMS_HOME": str(tmp_path / "none")})
    with pytest.raises(ValueError, match=r"there is no warehouse at .*: run `mdms run`, or name its folder by MDMS_HOME"):
        mdms_pipeline.frame("close", "KRW-BTC", "1h", settings)
    assert not (tmp_path / "none").exists()


def test_import_stays_light() -> None:
    heavy = "{'numba', 'pandas', 'numpy', 'duckdb', 'dagster'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"import sys, mdms_pipeline; assert not ({heavy}), {heavy}"], check=True)
