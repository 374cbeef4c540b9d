"""The asset graph, held: whoever changes an edge changes it here too."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from mdms_pipeline.calculate.catalog import defaults
from mdms_pipeline.calculate.indicator import Output
from mdms_pipeline.definitions import build
from mdms_pipeline.defs.resources import Mdms
from mdms_pipeline.vocabulary import stored
from mdms_pipeline_tests.support import settings

# Every asset and what it reads.
ASSETS = {
    "symbols": [],
    "candles": ["symbols"],
    "tr": ["candles"],
    "sma": ["candles"],
    "ema": ["candles"],
    "stddev": ["candles"],
    "highest": ["candles"],
    "lowest": ["candles"],
    "rsi": ["candles", "sma"],
    "atr": ["tr"],
    "macd": ["ema"],
    "bollinger": ["candles", "sma", "stddev"],
    "stoch": ["candles", "highest", "lowest"],
    "screen_results": ["atr", "bollinger", "candles", "highest", "macd", "rsi", "sma", "stoch"],
    "breakout_on_volume": ["screen_results"],
    "pullback_in_uptrend": ["screen_results"],
    "volatility_squeeze": ["screen_results"],
    "backtest_breakout": ["atr", "candles", "highest", "sma"],
    "backtest_pullback": ["atr", "candles", "rsi", "sma"],
    "backtest_trend_following": ["atr", "candles", "sma"],
    "signals": ["atr", "bollinger", "candles", "highest", "rsi", "sma"],
}

# Every variant that is kept unasked, and what it reads.
VARIANTS = {
    "tr": ["high", "low", "close"],
    **{f"sma_{n}": ["close"] for n in (5, 10, 20, 60, 120, 200)},
    "sma_volume_20": ["volume"],
    "sma_rise_14": ["rise"],
    "sma_fall_14": ["fall"],
    **{f"ema_{n}": ["close"] for n in (12, 26, 50, 200)},
    "stddev_20": ["close"],
    **{f"highest_{n}": ["high"] for n in (14, 20, 55)},
    **{f"lowest_{n}": ["low"] for n in (14, 20, 55)},
    "rsi_14": ["rise", "fall", "sma_rise_14", "sma_fall_14"],
    "atr_14": ["tr"],
    "macd_12_26_9": ["ema_12", "ema_26"],
    "bollinger_20_2": ["close", "sma_20", "stddev_20"],
    "stoch_14_3_3": ["close", "highest_14", "lowest_14"],
}


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> dg.Definitions:
    return build(Mdms(settings(tmp_path_factory.mktemp("graph"))))


def test_assets_and_their_edges(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    assert {
        key.to_user_string(): sorted(parent.to_user_string() for parent in graph.get(key).parent_keys) for key in graph.get_all_asset_keys()
    } == ASSETS


def test_variants_and_their_edges() -> None:
    assert {found.name: [read.name if isinstance(read, Output) else read for read in found.reads] for found in defaults()} == VARIANTS
    assert {found.name for found in stored()} == set(VARIANTS)


def test_column_lineage_is_the_variants(definitions: dg.Definitions) -> None:
    """What Dagster shows of each column: the columns that its variant reads, and no other."""
    graph, made_of = definitions.resolve_asset_graph(), {"rise": "close", "fall": "close"}
    for found in defaults():
        lineage = graph.get(dg.AssetKey(found.kind.name)).metadata["dagster/column_lineage"].deps_by_column
        edges = sorted({made_of.get(read, read) for read in VARIANTS[found.name]})
        for column in found.columns:
            assert sorted(dep.column_name for dep in lineage[column]) == edges
            assert {dep.asset_key.to_user_string() for dep in lineage[column]} <= set(ASSETS[found.kind.name])


def test_every_asset_says_what_it_is(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description, key
        assert node.group_name in ("collect", "calculate", "screen", "rankings", "backtests", "live"), key
        assert node.owners == ["team:market-data"], key
        assert node.kinds, key


def test_a_rule_outside_of_the_package_adds_its_indicator(tmp_path: Path) -> None:
    (tmp_path / "more" / "screens").mkdir(parents=True)
    rule = "title: Mine\ntimeframe: 1h\nwhere:\n  - close > sma(37)\nrank: {expression: ema(9), direction: desc}\n"
    (tmp_path / "more" / "screens" / "mine.yaml").write_text(rule)
    graph = build(Mdms(settings(tmp_path, MDMS_EXTENSIONS=str(tmp_path / "more")))).resolve_asset_graph()
    edges = {key.to_user_string(): {parent.to_user_string() for parent in graph.get(key).parent_keys} for key in graph.get_all_asset_keys()}
    assert edges["mine"] == {"screen_results"}
    assert "ema" in edges["screen_results"]
    kept = graph.get(dg.AssetKey("sma")).metadata["dagster/column_schema"].columns
    assert "sma_37" in [column.name for column in kept]
