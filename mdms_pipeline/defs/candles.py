"""`candles`: closed candles of every symbol and timeframe, and the checks that hold over all of them."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence

import dagster as dg

from mdms_pipeline.alerts import GRACE
from mdms_pipeline.collect.fill import Filled, fill
from mdms_pipeline.defs.coverage import observe_coverage
from mdms_pipeline.defs.grid import GRID, OWNERS, by_timeframe, newest, partitions_of, tell
from mdms_pipeline.defs.resources import Mdms, WarehouseResource
from mdms_pipeline.market import CANDLE_COLUMNS, DAY, Instant, iso
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import ABSENT, FAILED, Partition, Standing, standings
from mdms_pipeline.store.checks import BROKEN, broken_candles, stale, unreconciled
from mdms_pipeline.store.universe import universe

RECONCILED = 32  # days that each refresh reconciles: a whole month candle; `mdms reconcile` takes the whole store
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
    filled = asyncio.run(_fill(context, store, mdms, asked))
    with store.read() as connection:
        known = standings(connection, asked)
    tell(context, {partition: _told(partition, filled, known.get(partition)) for partition in asked})
    observe_coverage(context, store, mdms, list(by_timeframe(asked)))
    _log(context, filled)
    if filled.states and all(state == FAILED for state in filled.states.values()):
        raise dg.Failure(f"no market could be collected: {next(iter(filled.reasons.values()))}", allow_retries=False)
    return dg.MaterializeResult(metadata={"requests": filled.requests, "seconds": round(filled.seconds, 3)})


async def _fill(context: dg.AssetExecutionContext, store: Warehouse, mdms: Mdms, asked: list[Partition]) -> Filled:
    """Collect those of the asked that are in the universe, finest timeframe first."""
    with store.read() as connection:
        wanted = set(universe(connection))
    partitions = [(symbol, name) for name, symbols in by_timeframe(asked).items() for symbol in symbols if symbol in wanted]
    async with mdms.connect() as exchange:
        exchange.notice = context.log.warning
        return await fill(exchange, store, partitions, mdms.settings.history, context.run.run_id, mdms.progress)


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


@dg.multi_asset_check(
    name="candles_laws",
    specs=[dg.AssetCheckSpec(name, asset="candles", description=law.description) for name, law in BROKEN.items()],
    can_subset=True,
)
def laws(context: dg.AssetCheckExecutionContext, warehouse: WarehouseResource) -> Iterator[dg.AssetCheckResult]:
    """What every stored candle obeys, law by law."""
    with warehouse.get_reader() as connection:
        found = {key: broken_candles(connection, key.name) for key in context.selected_asset_check_keys}
    for key, broken in found.items():
        yield dg.AssetCheckResult(
            asset_key=key.asset_key, check_name=key.name, passed=not broken, severity=dg.AssetCheckSeverity.ERROR,
            metadata={"partitions": len(broken), "first": broken[:20]},
        )  # fmt: skip


@dg.asset_check(asset="candles", name="fresh")
def fresh(warehouse: WarehouseResource, mdms: dg.ResourceParam[Mdms]) -> dg.AssetCheckResult:
    """Every collected market has been asked for up to the slot that was its newest five minutes ago, in every timeframe that is kept."""
    return freshness(warehouse.warehouse, mdms.settings.timeframes, int(mdms.clock()))


def freshness(store: Warehouse, timeframes: Sequence[str], now: Instant) -> dg.AssetCheckResult:
    """The verdict of the check `fresh`, which runs and the sensor `watch` report."""
    with store.read() as connection:
        behind = stale(connection, timeframes, now - GRACE)
    markets = sorted({symbol for symbol, _, _ in behind})
    said = f"{len(markets)} markets are stale: {', '.join(markets[:5])}" + (" and others" if len(markets) > 5 else "")
    return dg.AssetCheckResult(
        passed=not behind,
        severity=dg.AssetCheckSeverity.ERROR,
        description=said if behind else "every market is fresh",
        metadata={"stale": len(behind), "symbols": [" ".join(entry) for entry in behind[:100]]},
    )


@dg.asset_check(asset="candles", name="reconciled")
def reconciled(warehouse: WarehouseResource, mdms: dg.ResourceParam[Mdms]) -> dg.AssetCheckResult:
    """Finer candles add up to the coarser ones that they cover: open, high, low, close, volume and value, over the last RECONCILED days."""
    with warehouse.get_reader() as connection:
        odd = unreconciled(connection, int(mdms.clock()) - RECONCILED * DAY)
    said = [f"{one.symbol} {one.timeframe} {iso(one.opened_at)}: {one.said}" for one in odd[:100]]
    return dg.AssetCheckResult(passed=not odd, severity=dg.AssetCheckSeverity.ERROR, metadata={"differing": len(odd), "candles": said})
