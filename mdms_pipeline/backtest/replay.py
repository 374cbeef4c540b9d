"""A kept run, made again from its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mdms_pipeline.backtest.find import history_of
from mdms_pipeline.backtest.run import backtest
from mdms_pipeline.backtest.strategy import Recipe
from mdms_pipeline.market import instant
from mdms_pipeline.store import Warehouse

# What may differ without other bits: how an indicator was come by (the split law), and revisions, which only count what `data` shows.
APART = ("calculated", "revisions")


@dataclass(frozen=True)
class Replayed:
    """What differs from the record; empty where the run is the same."""

    differences: tuple[str, ...]
    trades: int

    @property
    def same(self) -> bool:
        return not self.differences


def replayed(warehouse: Warehouse, recipe: Recipe, record: Mapping[str, Any]) -> Replayed:
    """The run of `record` again, compared with it. The record holds the digest of fills and equity, so equal records are equal bits."""
    strategy = recipe.bind(record["params"])
    history = history_of(warehouse, strategy).only(record["symbols"])
    result = backtest(strategy, history, instant(record["from"]), instant(record["to"]))
    differences = [f"{name} differs" for name, said in record.items() if name not in APART and result.record.get(name) != said]
    return Replayed(tuple(differences), len(result.trades))
