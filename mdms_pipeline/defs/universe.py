"""`symbols`: which markets there are, and which are collected. Its materialization keeps the dynamic partitions."""

import asyncio
from typing import Any

import dagster as dg

from mdms_pipeline.collect.universe import update_universe
from mdms_pipeline.defs.grid import OWNERS, SYMBOLS
from mdms_pipeline.defs.resources import Mdms, WarehouseResource
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.universe import known_symbols, universe


def keep_partitions(instance: dg.DagsterInstance, chosen: list[str]) -> list[str]:
    """Add the symbols that Dagster does not know, sorted, at the end; none is ever taken away. The new ones."""
    new = sorted(set(chosen) - set(instance.get_dynamic_partitions(str(SYMBOLS.name))))
    if new:
        instance.add_dynamic_partitions(str(SYMBOLS.name), new)
    return new


def universe_metadata(warehouse: Warehouse, new: list[str]) -> dict[str, Any]:
    with warehouse.read() as connection:
        chosen, known = universe(connection), known_symbols(connection)
    rows = "\n".join(f"| {place} | {symbol} | {known[symbol][0]} | {known[symbol][1]} |" for place, symbol in enumerate(chosen[:20], 1))
    return {
        "collected": len(chosen),
        "listed": sum(listed for _, _, listed in known.values()),
        "new_partitions": len(new),
        "by_turnover": dg.MetadataValue.md(f"| | symbol | name | |\n|-|-|-|-|\n{rows}"),
    }


@dg.asset(group_name="collect", kinds={"duckdb"}, owners=OWNERS)
def symbols(context: dg.AssetExecutionContext, warehouse: WarehouseResource, mdms: dg.ResourceParam[Mdms]) -> dg.MaterializeResult[None]:
    """The universe: every KRW market of the exchange, and which of them are collected (the setting MDMS_SYMBOLS). Keeps the partitions."""
    store = warehouse.warehouse
    chosen = asyncio.run(_update(store, mdms, context.run.run_id))
    new = keep_partitions(context.instance, chosen)
    return dg.MaterializeResult(metadata=universe_metadata(store, new))


async def _update(store: Warehouse, mdms: Mdms, run_id: str) -> list[str]:
    async with mdms.connect() as exchange:
        return await update_universe(exchange, store, mdms.settings, run_id)
