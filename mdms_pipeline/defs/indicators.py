"""One asset per kind of the catalog. Its edges are the declared reads; its description is the kernel's docstring."""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from mdms_pipeline.calculate.advance import Done, advance
from mdms_pipeline.calculate.catalog import KINDS
from mdms_pipeline.calculate.indicator import Indicator, Kind, Output
from mdms_pipeline.defs.grid import GRID, OWNERS, by_timeframe, newest, partitions_of, tell
from mdms_pipeline.defs.resources import Mdms, WarehouseResource

# What a derived source is made of.
MADE_OF = {"rise": "close", "fall": "close"}


def indicator_asset(kind: Kind, indicators: Sequence[Indicator]) -> dg.AssetsDefinition:
    """The asset of one kind, which keeps these indicators."""

    @dg.asset(
        name=kind.name,
        group_name="calculate",
        kinds={"duckdb", "numba"},
        owners=OWNERS,
        description=f"{kind.doc}\n\nKept: {', '.join(indicator.call for indicator in indicators)}",
        deps=sorted({edge for indicator in indicators for edge in _edges(indicator)}),
        partitions_def=GRID,
        backfill_policy=dg.BackfillPolicy.single_run(),
        op_tags={"dagster/priority": str(-list(KINDS).index(kind.name))},  # a run follows the order that `mdms plan` prints
        metadata={
            "dagster/column_schema": _schema(indicators),
            "dagster/column_lineage": _lineage(indicators),
            "dagster/table_name": kind.name,
        },
        code_version=str(kind.version),
    )
    def asset(context: dg.AssetExecutionContext, warehouse: WarehouseResource, mdms: dg.ResourceParam[Mdms]) -> dg.MaterializeResult[None]:
        store = warehouse.warehouse
        asked = by_timeframe(partitions_of(context))
        with mdms.progress(kind.name, sum(map(len, asked.values()))) as advanced:
            done = advance(store, indicators, asked, mdms.clock, context.run.run_id, advanced)
        _tell(context, done)
        return dg.MaterializeResult(metadata=_totals(done))

    return asset


def _edges(indicator: Indicator) -> set[str]:
    """The assets whose data reaches this indicator directly."""
    return {read.indicator.kind.name if isinstance(read, Output) else "candles" for read in indicator.reads}


def _tell(context: dg.AssetExecutionContext, done: Sequence[Done]) -> None:
    for step in done:
        tell(
            context,
            {
                (symbol, step.timeframe): {
                    "mode": mode,
                    "reason": step.reasons.get(symbol),
                    "rows_written": step.rows.get(symbol, 0),
                    **newest(step.newest.get(symbol)),
                }
                for symbol, mode in step.modes.items()
            },
        )
        counts = ", ".join(f"{step.count(mode)} {mode}" for mode in dict.fromkeys(step.modes.values()))
        context.log.info(f"{step.kind} {step.timeframe}: {counts}; {sum(step.rows.values())} rows in {step.seconds:.2f} s {step.why or ''}")


def _totals(done: Sequence[Done]) -> dict[str, Any]:
    modes = ("hit", "incremental", "from start", "skipped")
    return {f"symbols_{mode.replace(' ', '_')}": sum(step.count(mode) for step in done) for mode in modes}


def _schema(indicators: Sequence[Indicator]) -> dg.TableSchema:
    columns = [dg.TableColumn(name, "DOUBLE", description=indicator.call) for indicator in indicators for name in indicator.columns]
    return dg.TableSchema(
        [dg.TableColumn("symbol", "VARCHAR"), dg.TableColumn("timeframe", "VARCHAR"), dg.TableColumn("opened_at", "TIMESTAMP"), *columns]
    )


def _lineage(indicators: Sequence[Indicator]) -> dg.TableColumnLineage:
    return dg.TableColumnLineage({name: _column_deps(indicator) for indicator in indicators for name in indicator.columns})


def _column_deps(indicator: Indicator) -> list[dg.TableColumnDep]:
    pairs = [
        (read.indicator.kind.name, read.name) if isinstance(read, Output) else ("candles", MADE_OF.get(read, read))
        for read in indicator.reads
    ]
    return [dg.TableColumnDep(dg.AssetKey(table), column) for table, column in dict.fromkeys(pairs)]


def indicator_assets(kept: Sequence[Indicator]) -> list[dg.AssetsDefinition]:
    """The assets of all kinds that have something to keep, upstream first."""
    groups = {kind: [indicator for indicator in kept if indicator.kind is kind] for kind in KINDS.values()}
    return [indicator_asset(kind, indicators) for kind, indicators in groups.items() if indicators]
