"""`candles`: closed candles of every symbol and timeframe, and the checks that hold over all of them."""

import asyncio
from collections import Counter

import dagster as dg

from mdms_pipeline.collect.fill import Filled, fill
from mdms_pipeline.defs.grid import GRID, OWNERS, by_timeframe, newest, partitions_of, tell
from mdms_pipeline.defs.resources import Mdms, WarehouseResource
from mdms_pipeline.market import CANDLE_COLUMNS
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import ABSENT, FAILED, Partition, Standing, standings
from mdms_pipeline.store.checks import BROKEN, broken_candles, stale
from mdms_pipeline.store.universe import universe

SCHEMA = dg.TableSchema(
    [
        dg.TableColumn("symbol", "VARCHAR"),
        dg.TableColumn("timeframe", "VARCHAR"),
        dg.TableColumn("opened_at", "TIMESTAMP", description="UTC"),
        *(dg.TableColumn(name, "DOUBLE") for name in CANDLE_COLUMNS[1:5]),
        dg.TableColumn("volume", "DOUBLE", description="in the base asset"),
        dg.TableColumn("value", "DOUBLE", description="in KRW"),
    ]
)


@dg.asset(
    group_name="collect",
    kinds={"duckdb", "upbit"},
    owners=OWNERS,
    deps=["symbols"],
    partitions_def=GRID,
    backfill_policy=dg.BackfillPolicy.single_run(),
    metadata={"dagster/column_schema": SCHEMA, "dagster/table_name": "candles"},
)
def candles(context: dg.AssetExecutionContext, warehouse: WarehouseResource, mdms: dg.ResourceParam[Mdms]) -> dg.MaterializeResult[None]:
    """Closed candles from the exchange, with coverage, status and the event market_data_collected in the same transaction."""
    store, asked = warehouse.warehouse, partitions_of(context)
    filled = asyncio.run(_fill(store, mdms, asked, context.run_id))
    with store.read() as connection:
        known = standings(connection, asked)
    tell(context, {partition: _told(partition, filled, known.get(partition)) for partition in asked})
    _log(context, filled)
    if filled.states and all(state == FAILED for state in filled.states.values()):
        raise dg.Failure(f"no market could be collected: {next(iter(filled.reasons.values()))}", allow_retries=False)
    return dg.MaterializeResult(metadata={"requests": filled.requests, "seconds": round(filled.seconds, 3)})


async def _fill(store: Warehouse, mdms: Mdms, asked: list[Partition], run_id: str) -> Filled:
    """Collect those of the asked that are in the universe, finest timeframe first."""
    with store.read() as connection:
        wanted = set(universe(connection))
    partitions = [(symbol, name) for name, symbols in by_timeframe(asked).items() for symbol in symbols if symbol in wanted]
    async with mdms.connect() as exchange:
        with mdms.progress("candles", len(partitions)) as advanced:
            return await fill(exchange, store, partitions, mdms.settings.history, run_id, advanced)


def _told(partition: Partition, filled: Filled, standing: Standing | None) -> dict[str, object]:
    return {
        "state": filled.states.get(partition, ABSENT),
        "reason": filled.reasons.get(partition),
        "rows_written": filled.candles.get(partition, 0),
        "dagster/partition_row_count": standing.candles if standing else 0,
        **newest(standing.newest if standing else None),
    }


def _log(context: dg.AssetExecutionContext, filled: Filled) -> None:
    states = ", ".join(f"{count} {state}" for state, count in Counter(filled.states.values()).most_common())
    context.log.info(
        f"{sum(filled.candles.values())} candles, {filled.requests} requests, {filled.seconds:.1f} s: {states or 'nothing asked'}"
    )
    for partition, reason in filled.reasons.items():
        context.log.warning(f"{' '.join(partition)} {filled.states[partition]}: {reason}")


def _check(name: str) -> dg.AssetChecksDefinition:
    """One law that every stored candle obeys."""

    @dg.asset_check(asset="candles", name=name, description=BROKEN[name].description)
    def check(warehouse: WarehouseResource) -> dg.AssetCheckResult:
        with warehouse.get_reader() as connection:
            found = broken_candles(connection, name)
        return dg.AssetCheckResult(
            passed=not found, severity=dg.AssetCheckSeverity.ERROR, metadata={"partitions": len(found), "first": found[:20]}
        )

    return check


@dg.asset_check(asset="candles", name="fresh")
def fresh(warehouse: WarehouseResource, mdms: dg.ResourceParam[Mdms]) -> dg.AssetCheckResult:
    """Every collected market has been asked for up to its newest closed slot, in every timeframe that is kept."""
    with warehouse.get_reader() as connection:
        behind = stale(connection, mdms.settings.timeframes, int(mdms.clock()))
    return dg.AssetCheckResult(
        passed=not behind,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={"stale": len(behind), "symbols": [" ".join(entry) for entry in behind[:100]]},
    )


checks = [_check(name) for name in BROKEN]
