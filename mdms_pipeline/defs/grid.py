"""The partitions of the grid assets, symbol x timeframe, and what a step tells of each of them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg

from mdms_pipeline.defs.storage import add_partition_metadata, partition_keys
from mdms_pipeline.market import TIMEFRAMES, Instant, iso, kst
from mdms_pipeline.store.candles import Partition

SYMBOLS = dg.DynamicPartitionsDefinition(name="symbol")
GRID = dg.MultiPartitionsDefinition({"symbol": SYMBOLS, "timeframe": dg.StaticPartitionsDefinition(list(TIMEFRAMES))})
OWNERS = ["team:market-data"]
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


def key_of(partition: Partition) -> dg.MultiPartitionKey:
    symbol, timeframe = partition
    return dg.MultiPartitionKey({"symbol": symbol, "timeframe": timeframe})


def partitions_of(context: dg.AssetExecutionContext) -> list[Partition]:
    """The (symbol, timeframe) pairs that this step is asked for."""
    keys = [GRID.get_partition_key_from_str(key).keys_by_dimension for key in partition_keys(context)]
    return [(key["symbol"], key["timeframe"]) for key in keys]


def by_timeframe(partitions: Iterable[Partition]) -> dict[str, list[str]]:
    """Timeframe -> symbols, finest timeframe first."""
    groups: dict[str, list[str]] = {}
    for symbol, timeframe in sorted(partitions, key=lambda pair: list(TIMEFRAMES).index(pair[1])):
        groups.setdefault(timeframe, []).append(symbol)
    return groups


def range_tags(symbols: Sequence[str], timeframes: Sequence[str]) -> dict[str, str]:
    """Tags of a run over every symbol of these neighbouring timeframes. `symbols` in the order of the dynamic dimension."""
    return {RANGE_START: str(key_of((symbols[0], timeframes[0]))), RANGE_END: str(key_of((symbols[-1], timeframes[-1])))}


def tell(context: dg.AssetExecutionContext, told: Mapping[Partition, Mapping[str, Any]]) -> None:
    """Metadata of each partition: green in Dagster means that it was considered; how it stands is said here."""
    add_partition_metadata(
        context,
        {str(key_of(partition)): {name: value for name, value in shown.items() if value is not None} for partition, shown in told.items()},
    )


def newest(at: Instant | None) -> dict[str, Any]:
    """The newest bar for machines (`newest`) and for people."""
    return {} if at is None else {"newest": iso(at), "newest_kst": kst(at)}


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as the UI draws it in metadata."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["-"] * len(head), *rows))
