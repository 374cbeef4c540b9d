"""What Dagster's event log costs per (asset, partition): stock SQLite storage beside ours.

    python benchmarks/event_log.py [--symbols 120 --timeframes 3 --assets 12 --stock-symbols 20 --rounds 3]

Twelve chained assets that calculate nothing, one run over the whole range, each partition with metadata: all the time is
Dagster's and the log's. Each case runs in a process and a home of its own; the median of the rounds counts. Stock takes
minutes at full size, so it is measured over fewer symbols. "create" is what a launch waits for: the planned events alone.
`--public-metadata` attaches metadata with `context.add_asset_metadata`, to see what that costs instead.
"""

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from mdms_pipeline.defs.storage import add_partition_metadata, environment, write_dagster_yaml

BAR_MS = 1.5  # per (asset, partition), ours
SUBSET = "DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS"


@dataclass(frozen=True)
class Case:
    storage: str  # "stock" or "ours"
    planned: str  # "each" partition, or the "subset" in one event
    symbols: int
    timeframes: int
    assets: int
    public_metadata: bool

    @property
    def partitions(self) -> int:
        """(asset, partition) pairs."""
        return self.symbols * self.timeframes * self.assets


@dataclass(frozen=True)
class Measured:
    seconds: float
    create_seconds: float
    events: int
    json_bytes: int  # of the events, in the run's file and in the index
    disk_bytes: int  # of both files


# ---------------------------------------------------------------- one case, in its own process


def grid(case: Case) -> dg.MultiPartitionsDefinition:
    timeframes = dg.StaticPartitionsDefinition([f"t{n}" for n in range(case.timeframes)])
    return dg.MultiPartitionsDefinition({"symbol": dg.DynamicPartitionsDefinition(name="symbol"), "timeframe": timeframes})


def describe(context: dg.AssetExecutionContext, public: bool) -> None:
    rows = {key: {"dagster/partition_row_count": 400, "rows_written": 1, "state": "fresh"} for key in context.partition_keys}
    if not public:
        add_partition_metadata(context, rows)
        return
    for key, values in rows.items():
        context.add_asset_metadata(values, partition_key=key)


def chain(case: Case) -> list[dg.AssetsDefinition]:
    partitions_def = grid(case)

    def link(n: int) -> dg.AssetsDefinition:
        @dg.asset(
            name=f"asset_{n:02d}",
            partitions_def=partitions_def,
            deps=[f"asset_{n - 1:02d}"] if n else [],
            backfill_policy=dg.BackfillPolicy.single_run(),
        )
        def body(context: dg.AssetExecutionContext) -> None:
            describe(context, case.public_metadata)

        return body

    return [link(n) for n in range(case.assets)]


def measure(case: Case, home: Path) -> Measured:
    if case.storage == "ours":
        write_dagster_yaml(home)
    else:
        (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    symbols = [f"KRW-S{n:03d}" for n in range(case.symbols)]
    tags = {ASSET_PARTITION_RANGE_START_TAG: f"{symbols[0]}|t0", ASSET_PARTITION_RANGE_END_TAG: f"{symbols[-1]}|t{case.timeframes - 1}"}
    job = dg.define_asset_job("grid", selection="*", executor_def=dg.in_process_executor)
    definitions = dg.Definitions(assets=chain(case), jobs=[job]).resolve_job_def("grid")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.add_dynamic_partitions("symbol", symbols)
        started = time.perf_counter()
        result = definitions.execute_in_process(instance=instance, tags=tags)
        seconds = time.perf_counter() - started
        files = [home / "history" / "runs" / name for name in (f"{result.run_id}.db", "index.db")]
        events, json_bytes = contents(files)
        disk_bytes = sum(file.stat().st_size for file in files)
        started = time.perf_counter()
        instance.create_run_for_job(definitions, tags=tags)
        return Measured(seconds, time.perf_counter() - started, events, json_bytes, disk_bytes)


def contents(files: list[Path]) -> tuple[int, int]:
    """(events of the run, bytes of JSON in all files)."""
    counts, sizes = [], []
    for file in files:
        with closing(sqlite3.connect(file)) as db:
            count, size = db.execute("SELECT count(*), sum(length(CAST(event AS BLOB))) FROM event_logs").fetchone()
        counts.append(count)
        sizes.append(size)
    return counts[0], sum(sizes)


# ---------------------------------------------------------------- all cases


def variables(case: Case) -> dict[str, str]:
    """Ours runs with the project's environment; stock without batches, which it would take apart again."""
    inherited = {name: value for name, value in os.environ.items() if name not in environment()}
    ours = environment() if case.storage == "ours" else {}
    return {**inherited, **ours, SUBSET: "true" if case.planned == "subset" else "false"}


def run_case(case: Case) -> Measured:
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, __file__, "--case", json.dumps(asdict(case)), "--home", home]
        done = subprocess.run(command, env=variables(case), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def median(rounds: list[Measured]) -> Measured:
    return sorted(rounds, key=lambda one: one.seconds)[len(rounds) // 2]


def report(cases: list[Case], measured: list[Measured]) -> None:
    per_pair = [1000 * m.seconds / c.partitions for c, m in zip(cases, measured, strict=True)]
    print(
        f"{'storage':8}{'planned':9}{'symbols':>8}{'(a, p)':>8}{'events':>8}{'seconds':>9}{'ms/(a,p)':>10}{'of stock':>10}"
        f"{'create s':>10}{'JSON B/(a,p)':>14}{'disk B/(a,p)':>14}{'disk B/event':>14}"
    )
    for case, m, ms in zip(cases, measured, per_pair, strict=True):
        print(
            f"{case.storage:8}{case.planned:9}{case.symbols:8}{case.partitions:8}{m.events:8}{m.seconds:9.2f}{ms:10.2f}"
            f"{ms / per_pair[0]:10.3f}{m.create_seconds:10.2f}{m.json_bytes / case.partitions:14.0f}"
            f"{m.disk_bytes / case.partitions:14.0f}{m.disk_bytes / m.events:14.0f}"
        )
    worst = max(ms for case, ms in zip(cases, per_pair, strict=True) if case.storage == "ours")
    print(f"bar: {BAR_MS} ms per (asset, partition); ours at most {worst:.2f}: {'held' if worst <= BAR_MS else 'MISSED'}")


def arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--symbols", type=int, default=120)
    parser.add_argument("--timeframes", type=int, default=3)
    parser.add_argument("--assets", type=int, default=12)
    parser.add_argument("--stock-symbols", type=int, default=20, help="symbols for the stock storage; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--public-metadata", action="store_true")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if given.case:
        print(json.dumps(asdict(measure(Case(**json.loads(given.case)), given.home))))
        return
    cases = [
        Case(storage, planned, symbols, given.timeframes, given.assets, given.public_metadata)
        for storage, symbols in (("stock", given.stock_symbols), ("ours", given.symbols))
        for planned in ("each", "subset")
        if symbols
    ]
    rounds = [[run_case(case) for case in cases] for _ in range(given.rounds)]  # interleaved: a slow minute hits all alike
    report(cases, [median([one[n] for one in rounds]) for n in range(len(cases))])


if __name__ == "__main__":
    main()
