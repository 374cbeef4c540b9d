"""The graph does not lie: every declared read carries data, and the edges are those of the design."""

from __future__ import annotations

import numpy as np
import pytest

from mdms_pipeline.calculate.catalog import DEFAULTS, KINDS, closure, kind_edges, ordered
from mdms_pipeline.calculate.indicator import Indicator
from mdms_pipeline.calculate.run import inputs, run
from mdms_pipeline_tests.laws.markets import CATALOG, known, market, same_bits

READS = [(indicator, at) for indicator in DEFAULTS for at in range(len(indicator.reads))]


def name(read: object) -> str:
    return read if isinstance(read, str) else read.name  # type: ignore[attr-defined]


@pytest.mark.parametrize(("indicator", "at"), READS, ids=[f"{i}<-{name(i.reads[at])}" for i, at in READS])
def test_a_changed_upstream_changes_the_result(indicator: Indicator, at: int) -> None:
    columns = inputs(indicator, known(market(1, 400), (indicator,)))
    _, before = run(indicator, indicator.memory, columns)
    changed = list(columns)
    changed[at] = columns[at] + np.nanmax(columns[at]) * np.random.default_rng(1).random(columns[at].size)
    _, after = run(indicator, indicator.memory, changed)
    assert not same_bits(before, after)


def test_lineage_of_kinds() -> None:
    assert kind_edges() == {
        "tr": {"candles"},
        "sma": {"candles"},
        "ema": {"candles"},
        "stddev": {"candles"},
        "highest": {"candles"},
        "lowest": {"candles"},
        "rsi": {"candles", "sma"},
        "atr": {"tr"},
        "macd": {"ema"},
        "bollinger": {"candles", "sma", "stddev"},
        "stoch": {"candles", "highest", "lowest"},
    }


@pytest.mark.parametrize(
    ("kind", "reads"),
    [
        ("rsi", ["rise", "fall", "sma_rise_14", "sma_fall_14"]),
        ("atr", ["tr"]),
        ("macd", ["ema_12", "ema_26"]),
        ("bollinger", ["close", "sma_20", "stddev_20"]),
        ("stoch", ["close", "highest_14", "lowest_14"]),
        ("tr", ["high", "low", "close"]),
    ],
)
def test_lineage_of_variants(kind: str, reads: list[str]) -> None:
    assert [name(read) for read in KINDS[kind]().reads] == reads


def test_what_the_defaults_read_is_stored_too() -> None:
    assert set(closure(DEFAULTS)) == set(DEFAULTS)


def test_upstream_stands_before_downstream() -> None:
    for indicators in (CATALOG, closure(reversed(DEFAULTS))):
        for at, indicator in enumerate(indicators):
            assert all(upstream in indicators[:at] for upstream in indicator.upstream)
    seen: set[str] = set()
    for kind, reads in kind_edges().items():
        assert reads - {"candles"} <= seen, kind
        seen.add(kind)
    assert ordered(["stoch", "rsi", "sma", "highest"]) == ["sma", "highest", "rsi", "stoch"]


def test_names_of_columns_are_unlike() -> None:
    columns = [column for indicator in CATALOG for column in indicator.columns]
    assert len(columns) == len(set(columns))
    assert len({indicator.fingerprint for indicator in CATALOG}) == len(CATALOG)
