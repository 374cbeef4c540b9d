"""The refresh: one run over every symbol of neighbouring timeframes, from candles to rankings. And when the next one is made.

`decide` is pure: what the sensor knows goes in, what it does comes out.

1. no run while another is unfinished, so none overlaps
2. no run for a while after one has failed: the pause doubles with each failure in a row. The exchange may be down
3. of all that is due, one stretch of neighbouring timeframes: that whose candle closed first, the finer one where they closed together
4. a second run for the same close is a retry and waits like 2; a new close does not

However long nothing ran, what is due is due once: catching up is one run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from mdms_pipeline.defs.grid import SYMBOLS, range_tags
from mdms_pipeline.market import SETTLE, TIMEFRAMES, Instant, stretches
from mdms_pipeline.screen.load import Screen

JOB = "refresh"
TIMEFRAMES_TAG = "mdms/timeframes"  # of a refresh: "1h,4h"
EVENT_TAG = "mdms/event"  # of a refresh: the newest event when it was made
WHY_TAG = "mdms/why"
# Seconds between two ticks, where 1m is kept and else. The daemon looks every 5 s and a little: a whole 5 are often not over yet.
FINE_TICK, TICK = 4, 14
FIRST_PAUSE, LONGEST_PAUSE = 15.0, 300.0  # seconds after a failure, doubling
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
FAILED = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


def tick_seconds(timeframes: Sequence[str]) -> int:
    """How often a sensor that follows the candles of these timeframes is evaluated."""
    return FINE_TICK if "1m" in timeframes else TICK


def under_way(instance: dg.DagsterInstance, job: str) -> bool:
    """Whether a run of this job has not ended."""
    return bool(instance.get_runs(dg.RunsFilter(job_name=job, statuses=UNFINISHED), limit=1))


def refresh_job() -> UnresolvedAssetJobDefinition:
    everything = dg.AssetSelection.all() - dg.AssetSelection.groups("backtests")
    return dg.define_asset_job(JOB, everything, description="Collect, calculate, screen and rank.")


def selection_of(timeframes: Sequence[str], grid: Sequence[str], screens: Sequence[Screen]) -> list[dg.AssetKey]:
    """The assets of a refresh of these timeframes: the grid, and the rankings that stand on these timeframes."""
    rankings = [screen.name for screen in screens if screen.timeframe.name in timeframes]
    return [dg.AssetKey(name) for name in (*grid, *rankings)]


def tags_of(instance: dg.DagsterInstance, timeframes: Sequence[str], event: int, why: str) -> dict[str, str]:
    """The tags of a refresh of these neighbouring timeframes, over every symbol that Dagster knows."""
    symbols = instance.get_dynamic_partitions(str(SYMBOLS.name))
    return {**range_tags(symbols, timeframes), TIMEFRAMES_TAG: ",".join(timeframes), EVENT_TAG: str(event), WHY_TAG: why}


def newest_closes(timeframes: Sequence[str], now: float) -> dict[str, Instant]:
    """Timeframe -> when its newest settled candle closed."""
    return {name: TIMEFRAMES[name].floor(int(now) - SETTLE) for name in timeframes}


@dataclass(frozen=True)
class Ended:
    """A run that has ended."""

    failed: bool
    at: float  # s, the machine's clock


@dataclass(frozen=True)
class Memory:
    """What the sensor remembers from tick to tick."""

    idle: str = ""  # the state of things, in one word, in which nothing was due
    launched: Mapping[str, tuple[Instant, int]] = field(default_factory=dict)  # timeframe -> (close, runs made since)

    @classmethod
    def read(cls, cursor: str | None) -> Memory:
        """The memory that a cursor holds; none where it holds something else."""
        try:
            held = json.loads(cursor or "")
            return cls(str(held["idle"]), {name: (int(close), int(runs)) for name, (close, runs) in held["launched"].items()})
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls()

    def write(self) -> str:
        return json.dumps({"idle": self.idle, "launched": self.launched})

    def runs(self, name: str, close: Instant) -> int:
        """How many runs were made for this close."""
        before, runs = self.launched.get(name, (close, 0))
        return runs if before == close else 0

    def after(self, timeframes: Sequence[str], closes: Mapping[str, Instant]) -> Memory:
        """Once a run over these timeframes is made."""
        return Memory("", {**self.launched, **{name: (closes[name], self.runs(name, closes[name]) + 1) for name in timeframes}})


def pause(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return 0.0 if failures == 0 else min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (failures - 1))


def waits(ended: Sequence[Ended], now: float) -> float:
    """Seconds that nothing runs because the last runs (newest first) have failed."""
    failures = next((i for i, run in enumerate(ended) if not run.failed), len(ended))
    return max(0.0, ended[0].at + pause(failures) - now) if failures else 0.0


def decide(
    due: Mapping[str, str], closes: Mapping[str, Instant], memory: Memory, ended: Sequence[Ended], now: float
) -> tuple[list[str], str]:
    """The timeframes of the run to make now, or none, and why. `now` is the machine's clock, which Dagster writes down runs by."""
    if not due:
        return [], "everything is up to date"
    wait = waits(ended, now)
    if wait > 0:
        return [], f"waiting {wait:.0f} s because the last run failed; due: {', '.join(due)}"
    since = ended[0].at if ended else 0.0
    held = {name: since + pause(memory.runs(name, closes[name])) - now for name in due}
    ready = [name for name in due if held[name] <= 0]
    if not ready:
        return [], f"waiting {min(held.values()):.0f} s until what is left over is tried again; due: {', '.join(due)}"
    chosen = min(stretches(ready), key=lambda stretch: (min(closes[name] for name in stretch), list(TIMEFRAMES).index(stretch[0])))
    return chosen, "; ".join(f"{name}: {due[name]}" for name in chosen)
