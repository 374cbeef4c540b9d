"""`signals`: what `mdms live` has told, below the candles and indicators that its rules read.

The live process works outside of Dagster and writes the table; here the table is followed.

`signals` (sensor)  reports one observation for all that came since the last tick. Once candles were collected it reports a
                    materialization and has the check made: Dagster takes a check to be outdated once its asset is materialized again
`live_parity`       the signals of every stretch that was watched equal those that the stored candles give, one for one and bit for bit
docs/signals.md shows a sensor of your own that acts on them.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from mdms_pipeline.defs.grid import OWNERS, markdown, newest
from mdms_pipeline.defs.refresh import WHY_TAG, tick_seconds, under_way
from mdms_pipeline.defs.resources import Mdms, WarehouseResource, patiently
from mdms_pipeline.defs.screens import WORD_JOINER
from mdms_pipeline.live.ran import Compared, comparable, compare
from mdms_pipeline.live.watch import Watch
from mdms_pipeline.market import KST, Instant, kst
from mdms_pipeline.rules import answer_text
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.journal import Event, events_after
from mdms_pipeline.store.signals import EMITTED, Counted, Kept, counted, last_signals
from mdms_pipeline.vocabulary import tables

KEY, PARITY_JOB = "signals", "live_parity"
COLLECTED = "market_data_collected"
EVENTS_AT_ONCE = 1_000
PARITY_SECONDS = 900  # between two checks
SHOWN = 20  # signals in a materialization
SCHEMA = dg.TableSchema(
    [
        dg.TableColumn("number", "BIGINT", description="grows in the order of arrival"),
        dg.TableColumn("id", "VARCHAR", description="the same for the same answer: each is there once"),
        *(dg.TableColumn(name, "VARCHAR") for name in ("source", "name", "rule", "symbol", "timeframe")),
        dg.TableColumn("opened_at", "TIMESTAMP", description="UTC, of the bar that decided"),
        dg.TableColumn("answer", "BOOLEAN", description="NULL: not known"),
        dg.TableColumn("before", "BOOLEAN", description="at the bar before"),
        dg.TableColumn("values", "VARCHAR", description="JSON: every leaf of the rule with its value"),
        *(dg.TableColumn(name, "TIMESTAMP") for name in ("received_at", "emitted_at", "delivered_at")),
        dg.TableColumn("revision", "INTEGER", description="counts up where the bar changed after it was thought closed"),
    ]
)


def signals_asset(watches: Sequence[Watch]) -> dg.AssetSpec:
    """The table of signals. Its edges are what the rules read that can be watched."""
    named = dict.fromkeys(f"- {watch.source} `{watch.name}`, {watch.timeframe}" for watch in watches)
    return dg.AssetSpec(
        KEY,
        deps=sorted({table for watch in watches for table in tables(watch.columns)} | {"candles"}),
        description="Answers of strategies and screens that changed as a bar closed, told by `mdms live`.\n\n" + "\n".join(named),
        group_name="live",
        kinds={"duckdb", "websocket"},
        owners=OWNERS,
        metadata={"dagster/column_schema": SCHEMA, "dagster/table_name": "signals"},
    )


# ---- what has come


def signals_sensor(mdms: Mdms) -> dg.SensorDefinition:
    @dg.sensor(
        name="signals",
        job_name=PARITY_JOB,
        minimum_interval_seconds=tick_seconds(mdms.settings.timeframes),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reports live signals that came into the table, and has them compared with the candles that were collected since.",
    )
    def signals(context: dg.SensorEvaluationContext, warehouse: WarehouseResource) -> dg.SensorResult | dg.SkipReason:
        return patiently(lambda: _signals(context, warehouse.impatient, int(mdms.clock())))

    return signals


def _signals(context: dg.SensorEvaluationContext, warehouse: Warehouse, now: Instant) -> dg.SensorResult | dg.SkipReason:
    followed, checked_at = (int(part) for part in (context.cursor or "0@0").split("@"))
    with warehouse.read() as connection:
        events = events_after(connection, followed, EVENTS_AT_ONCE, [EMITTED, COLLECTED])
        told = [event for event in events if event.type == EMITTED]
        new = sum(event.count for event in told)
        whole, last = counted(connection), last_signals(connection, min(max(new, 1), SHOWN))
        collected = any(event.type == COLLECTED for event in events) and comparable(connection)
    if not events:
        return dg.SkipReason("no signal came")
    reported: list[dg.AssetObservation | dg.AssetMaterialization] = []
    if told:
        reported.append(dg.AssetObservation(KEY, metadata=signals_metadata(told, whole, last)))
    due = collected and now >= checked_at + PARITY_SECONDS and not under_way(context.instance, PARITY_JOB)
    cursor = f"{events[-1].id}@{now if due else checked_at}"
    if not reported and not due:
        return dg.SensorResult(skip_reason=dg.SkipReason("no signal came"), cursor=cursor)
    if due:
        reported.append(dg.AssetMaterialization(KEY, metadata=table_metadata(whole)))
    requests = [dg.RunRequest(tags={WHY_TAG: "candles were collected since"})] if due else []
    return dg.SensorResult(run_requests=requests, asset_events=reported, cursor=cursor)


def signals_metadata(told: Sequence[Event], whole: Counted, last: Sequence[Kept]) -> dict[str, Any]:
    """What came."""
    lags = [one.emitted_at - one.received_at for one in last]
    return {
        "signals": sum(event.count for event in told),
        "batches": len(told),
        "symbols": ", ".join(sorted({symbol for event in told for symbol in event.symbols})),
        "last": dg.MetadataValue.md(signals_table(last)),
        "slowest_emission_ms": round(1000 * max(lags, default=0.0), 3),
        **table_metadata(whole),
    }


def table_metadata(whole: Counted) -> dict[str, Any]:
    """What there is in all."""
    counts = markdown(["rule", "signals"], [[rule, str(count)] for rule, count in whole.by_rule.items()])
    return {"dagster/row_count": whole.total, "by_rule": dg.MetadataValue.md(counts), **newest(whole.newest)}


def signals_table(signals: Sequence[Kept]) -> str:
    """Signals in Markdown, with what decided."""
    head = ["market", "bar", "rule", "answer", "what decided", "told"]
    rows = [
        [
            _together(one.symbol), _together(f"{kst(one.opened_at)} {one.timeframe}"),
            _together(f"{one.name} {one.rule}"),
            _together(f"{answer_text(one.before)} → {answer_text(one.answer)}") + (f", revision {one.revision}" if one.revision else ""),
            ", ".join(f"`{name}` {answer_text(value)}" for name, value in one.values.items()),
            _together(datetime.fromtimestamp(one.emitted_at, KST).strftime("%H:%M:%S KST")),
        ]
        for one in signals
    ]  # fmt: skip
    return markdown(head, rows)


def _together(text: str) -> str:
    """On one line."""
    return text.replace(" ", "\u00a0").replace("-", f"-{WORD_JOINER}")


# ---- parity


def live_parity_check(watches: Sequence[Watch]) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=dg.AssetKey(KEY), name="live_parity")
    def live_parity(warehouse: WarehouseResource, mdms: dg.ResourceParam[Mdms]) -> dg.AssetCheckResult:
        """Wherever rules were watched live, the signals in the table are those that the stored candles give: one for one, to the bit."""
        with warehouse.get_reader() as connection:
            found = compare(connection, watches, int(mdms.clock()))
        return parity_result(found)

    return live_parity


def parity_result(found: Compared) -> dg.AssetCheckResult:
    """A difference is an error; where nothing was watched yet there is nothing to be wrong."""
    return dg.AssetCheckResult(
        passed=not found.differences,
        severity=dg.AssetCheckSeverity.ERROR,
        description=found.said,
        metadata={
            "stretches": found.stretches,
            "judged": found.judged,
            "signals": found.signals,
            "differing": len(found.differences),
            "differences": "\n".join(map(str, found.differences[:50])),
            "open": "\n".join(map(str, found.open[:50])),
            "rules_changed_since": ", ".join(sorted(found.changed)),
            "corrected_since": ", ".join(sorted(found.corrected)),
        },
    )


def parity_job() -> UnresolvedAssetJobDefinition:
    return dg.define_asset_job(
        PARITY_JOB,
        dg.AssetSelection.checks_for_assets(KEY),
        description="Compare the live signals with what the stored candles give.",
    )
