"""Candles that the exchange tells otherwise than before: found, replaced, and kept as they were."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import duckdb
import numpy as np

from mdms_pipeline.market import PRICES_AND_AMOUNTS, Candles, Floats, Instant
from mdms_pipeline.store.frames import PARTITIONS, Partition, append, as_table, instants, partitions_of, timestamps

Values = tuple[float, ...]  # of PRICES_AND_AMOUNTS

RATIO_TOLERANCE = 0.01  # of the factor: the tick of a price of 100 KRW is 1 %, and a rescaled price is rounded to its tick
LEAST_RESCALE = 0.05  # a factor nearer to 1 is no redenomination: those are by 10 and more
LEAST_OVERLAP = 2  # candles that must show the factor, where as many are stored


@dataclass(frozen=True)
class Told:
    """Candles that one answer told of one partition; between its first candle and `until` (the last one) it left none out."""

    symbol: str
    timeframe: str
    candles: Candles
    since: Instant | None = None  # the answer is complete from here on; None: from its first candle
    until: Instant | None = None  # exclusive; None: up to and with its last candle

    @property
    def span(self) -> tuple[Instant, Instant]:
        """Half-open."""
        opened_at = self.candles.opened_at
        since = int(opened_at[0]) if self.since is None else self.since
        return since, int(opened_at[-1]) + 1 if self.until is None else self.until


@dataclass(frozen=True)
class Change:
    """One candle as it was stored and as it is told now; None: no candle."""

    symbol: str
    timeframe: str
    opened_at: Instant
    old: Values | None
    new: Values | None

    @property
    def partition(self) -> Partition:
        return self.symbol, self.timeframe


def differences(connection: duckdb.DuckDBPyConnection, told: Sequence[Told]) -> list[Change]:
    """Where what was told differs from what is stored: another value, a candle more or one less. Exact: both came over the same wire."""
    told = [one for one in told if len(one.candles) or one.since is not None]
    if not told:
        return []
    held = stored(connection, [(one.symbol, one.timeframe, *one.span) for one in told])
    changes: dict[tuple[str, str, Instant], Change] = {}
    for one, candles in zip(told, held, strict=True):
        old, new = values_of(candles), values_of(one.candles)
        for at in sorted(old.keys() | new.keys()):
            if old.get(at) != new.get(at):
                changes[one.symbol, one.timeframe, at] = Change(one.symbol, one.timeframe, at, old.get(at), new.get(at))
    return list(changes.values())


def stored(connection: duckdb.DuckDBPyConnection, spans: Sequence[tuple[str, str, Instant, Instant]]) -> list[Candles]:
    """The stored candles of each span: symbol, timeframe, and the half-open stretch of opening instants."""
    symbols, timeframes, since, until = ([span[i] for span in spans] for i in range(4))
    key: dict[str, Any] = {"symbol": symbols, "timeframe": timeframes, "place": np.arange(len(spans))}
    connection.register("told_spans", as_table({**key, "since": np.array(since), "until": np.array(until)}))
    found = connection.execute(
        f"""SELECT place, {instants("opened_at")}, {", ".join(PRICES_AND_AMOUNTS)} FROM candles c JOIN told_spans w
            ON c.symbol = w.symbol AND c.timeframe = w.timeframe
            WHERE opened_at >= make_timestamp(?::BIGINT * 1000000) AND opened_at < make_timestamp(?::BIGINT * 1000000)
              AND opened_at >= make_timestamp(since * 1000000) AND opened_at < make_timestamp(until * 1000000) ORDER BY place, opened_at""",
        [min(since), max(until)],
    ).fetchnumpy()
    connection.unregister("told_spans")
    edges = np.searchsorted(found["place"], np.arange(len(spans) + 1))
    columns = [np.ma.filled(found[name]) for name in ("opened_at", *PRICES_AND_AMOUNTS)]
    return [Candles(*(column[start:end] for column in columns)) for start, end in pairwise(edges.tolist())]


def values_of(candles: Candles) -> dict[Instant, Values]:
    """Opening instant -> values."""
    columns = [getattr(candles, name).tolist() for name in PRICES_AND_AMOUNTS]
    return dict(zip(candles.opened_at.tolist(), zip(*columns, strict=True), strict=True)) if len(candles) else {}


def rescaled(old: Candles, new: Candles) -> float | None:
    """The one factor by which all prices of the candles that both have were multiplied; None where there is no such factor."""
    _, mine, theirs = np.intersect1d(old.opened_at, new.opened_at, return_indices=True)
    if not len(mine):
        return None
    ratios: Floats = np.concatenate([getattr(new, name)[theirs] / getattr(old, name)[mine] for name in ("open", "high", "low", "close")])
    factor = float(np.median(ratios))
    same = bool((np.abs(ratios / factor - 1) <= RATIO_TOLERANCE).all())
    return factor if same and abs(factor - 1) >= LEAST_RESCALE else None


def revise(
    connection: duckdb.DuckDBPyConnection,
    changes: Sequence[Change],
    revisions: Mapping[Partition, int],
    reason: str,
    now: Instant,
    run_id: str | None,
) -> None:
    """Put the new rows in the place of the old ones, which are kept in `revisions`."""
    if not changes:
        return
    n = len(changes)
    key: dict[str, Any] = {"symbol": [change.symbol for change in changes], "timeframe": [change.timeframe for change in changes]}
    key["opened_at"] = timestamps([change.opened_at for change in changes])
    rows: dict[str, Any] = {
        f"old_{name}": [change.old and change.old[i] for change in changes] for i, name in enumerate(PRICES_AND_AMOUNTS)
    }
    rows |= {f"new_{name}": [change.new and change.new[i] for change in changes] for i, name in enumerate(PRICES_AND_AMOUNTS)}
    noted: dict[str, Any] = {
        "reason": [reason] * n,
        "revision": [revisions[change.partition] for change in changes],
        "run_id": [run_id] * n,
    }
    append(connection, "revisions", {**key, **rows, **noted, "revised_at": timestamps([now] * n)})
    connection.register("changed", as_table(key))
    connection.execute(
        """DELETE FROM candles USING changed c
           WHERE candles.symbol = c.symbol AND candles.timeframe = c.timeframe AND candles.opened_at = c.opened_at"""
    )
    connection.unregister("changed")
    new = [change for change in changes if change.new is not None]
    columns = {name: [change.new and change.new[i] for change in new] for i, name in enumerate(PRICES_AND_AMOUNTS)}
    key = {"symbol": [change.symbol for change in new], "timeframe": [change.timeframe for change in new]}
    append(connection, "candles", {**key, "opened_at": timestamps([change.opened_at for change in new]), **columns})


def put_aside(
    connection: duckdb.DuckDBPyConnection, partition: Partition, revision: int, reason: str, now: Instant, run_id: str | None
) -> int:
    """Move all candles of a partition to `revisions`; how many."""
    old = ", ".join(f"{name} AS old_{name}" for name in PRICES_AND_AMOUNTS)
    connection.execute(
        f"""INSERT INTO revisions BY NAME SELECT symbol, timeframe, opened_at, {old}, ? AS reason, ? AS revision,
            make_timestamp(?::BIGINT * 1000000) AS revised_at, ? AS run_id FROM candles WHERE symbol = ? AND timeframe = ?""",
        [reason, revision, now, run_id, *partition],
    )
    row = connection.execute("DELETE FROM candles WHERE symbol = ? AND timeframe = ?", list(partition)).fetchone()
    return 0 if row is None else int(row[0])


def counted(
    connection: duckdb.DuckDBPyConnection, partitions: Collection[Partition]
) -> dict[Partition, tuple[Instant | None, Instant | None, int]]:
    """Partition -> its oldest and newest candle, and how many there are."""
    if not partitions:
        return {}
    rows = connection.execute(
        f"""SELECT symbol, timeframe, {instants("oldest", "newest")}, counted FROM (
                SELECT w.symbol, w.timeframe, min(opened_at) AS oldest, max(opened_at) AS newest, count(opened_at) AS counted
                FROM {PARTITIONS} w LEFT JOIN candles c ON c.symbol = w.symbol AND c.timeframe = w.timeframe GROUP BY ALL)""",
        partitions_of(partitions),
    ).fetchall()
    return {(symbol, frame): (oldest, newest, count) for symbol, frame, oldest, newest, count in rows}


def newest_of(connection: duckdb.DuckDBPyConnection, standings: Mapping[Partition, Instant]) -> dict[Partition, Candles]:
    """Partition -> its stored candle that opened at the given instant, if there is one."""
    spans = [(*partition, at, at + 1) for partition, at in standings.items()]
    found = stored(connection, spans) if spans else []
    return {partition: candles for partition, candles in zip(standings, found, strict=True) if len(candles)}
