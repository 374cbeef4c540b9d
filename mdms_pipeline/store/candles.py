"""Pages of candles: stored with coverage, status and event in the caller's one transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import duckdb

from mdms_pipeline.market import TIMEFRAMES, Candles, Instant
from mdms_pipeline.store.frames import KEY, append, candle_rows, incoming, insert, instants, partitions_of, timestamps
from mdms_pipeline.store.journal import emit

Partition = tuple[str, str]  # symbol, timeframe
FRESH, BEHIND, FAILED, QUARANTINED, DELISTED, ABSENT = "fresh", "behind", "failed", "quarantined", "delisted", "not in universe"


@dataclass(frozen=True)
class Standing:
    """What the store knows of one (symbol, timeframe)."""

    symbol: str
    timeframe: str
    state: str
    reason: str | None = None
    newest: Instant | None = None  # opening instant of the newest candle
    covered: tuple[Instant, Instant] | None = None  # half-open
    begins: bool = False  # the exchange has nothing older
    revision: int = 0
    candles: int = 0
    checked_at: Instant | None = None

    @property
    def partition(self) -> Partition:
        return self.symbol, self.timeframe

    def at(self, now: Instant) -> str:
        """The state at `now`: what was fresh when it was written falls behind by itself."""
        if self.state != FRESH or self.covered is None:
            return self.state
        frame = TIMEFRAMES[self.timeframe]
        return FRESH if self.covered[1] >= frame.floor(now) else BEHIND


@dataclass(frozen=True)
class Page:
    """What one answer of the exchange adds to one partition."""

    symbol: str
    timeframe: str
    candles: Candles
    covered: tuple[Instant, Instant]  # the span that this answer covers, adjoining what was covered before
    begins: bool = False
    refused: Candles | None = None  # impossible candles, never stored among the others
    reason: str | None = None  # why they were refused

    @property
    def partition(self) -> Partition:
        return self.symbol, self.timeframe


def standings(connection: duckdb.DuckDBPyConnection, partitions: Iterable[Partition] | None = None) -> dict[Partition, Standing]:
    """What is known of these partitions, or of every one that was ever tried."""
    only = "" if partitions is None else "SEMI JOIN wanted USING (symbol, timeframe)"
    if partitions is not None:
        connection.register("wanted", partitions_of(partitions))
    rows = connection.execute(
        f"""SELECT symbol, timeframe, state, reason, {instants("newest", "covered_from", "covered_to")}, begins, revision, candles,
                   {instants("checked_at")}
            FROM status LEFT JOIN coverage USING (symbol, timeframe) {only} ORDER BY symbol, timeframe"""
    ).fetchall()
    return {
        (symbol, frame): Standing(symbol, frame, state, reason, newest, None if start is None else (start, end), begins, *rest)
        for symbol, frame, state, reason, newest, start, end, begins, *rest in rows
    }


def store_pages(
    connection: duckdb.DuckDBPyConnection, pages: Sequence[Page], as_of: Instant, now: Instant, run_id: str | None
) -> dict[Partition, int]:
    """Store pages and what follows from them in the caller's transaction; partition -> candles that were new.

    `as_of` is the instant whose newest slot was asked for, `now` the time of writing. What lies inside of the stored coverage is known
    already and is left out: two processes that fetch the same page store it once.
    """
    before = standings(connection, {page.partition for page in pages})
    after = dict(before)
    fresh: list[tuple[Page, Candles]] = []
    for page in pages:
        standing = after.get(page.partition) or Standing(*page.partition, FRESH)
        new = outside(page.candles, standing.covered)
        fresh.append((page, new))
        after[page.partition] = extended(standing, page, new, as_of)
    insert(connection, "candles", [candle_rows(page.symbol, page.timeframe, new) for page, new in fresh])
    _quarantine(connection, pages, now)
    write_standings(connection, after.values(), run_id)
    for name in dict.fromkeys(page.timeframe for page in pages):
        stored = [(page.symbol, len(new)) for page, new in fresh if page.timeframe == name and len(new)]
        if stored:
            symbols = sorted({symbol for symbol, _ in stored})
            revision = max(after[symbol, name].revision for symbol in symbols)
            emit(connection, "market_data_collected", now, run_id, symbols, name, sum(count for _, count in stored), revision)
    counts = Counter[Partition]()
    for page, new in fresh:
        counts[page.partition] += len(new)
    return dict(counts)


def outside(candles: Candles, covered: tuple[Instant, Instant] | None) -> Candles:
    """The candles that do not lie inside of the covered span."""
    if covered is None:
        return candles
    return candles[(candles.opened_at < covered[0]) | (candles.opened_at >= covered[1])]


def extended(standing: Standing, page: Page, new: Candles, as_of: Instant) -> Standing:
    """The standing once `page` is stored. History that grows backward raises the revision: all that was calculated stands on other bars."""
    start, end = page.covered
    if standing.covered is not None:
        if end < standing.covered[0] or start > standing.covered[1]:
            raise ValueError(f"page {page.covered} of {page.symbol} {page.timeframe} does not adjoin what is covered, {standing.covered}")
        start, end = min(start, standing.covered[0]), max(end, standing.covered[1])
    backward = bool(len(new)) and standing.newest is not None and int(new.opened_at[0]) < standing.newest
    return replace(
        standing,
        state=FRESH if page.refused is None else QUARANTINED,
        reason=page.reason,
        newest=max([*new.opened_at[-1:].tolist(), *([] if standing.newest is None else [standing.newest])], default=None),
        covered=(start, end),
        begins=standing.begins or page.begins,
        revision=standing.revision + backward,
        candles=standing.candles + len(new),
        checked_at=as_of,
    )


def last_checked(connection: duckdb.DuckDBPyConnection, timeframe: str) -> Instant | None:
    """When the timeframe was last collected, as far as anything of it was; None if never."""
    row = connection.execute(
        f"SELECT {instants('newest')} FROM (SELECT max(checked_at) AS newest FROM status WHERE timeframe = ?)", [timeframe]
    ).fetchone()
    return None if row is None else row[0]


def mark(
    connection: duckdb.DuckDBPyConnection, states: Mapping[Partition, tuple[str, str | None]], as_of: Instant, run_id: str | None
) -> None:
    """Note how an attempt ended where no page was stored: (state, reason) by partition."""
    before = standings(connection, states)
    after = [
        replace(before.get(partition) or Standing(*partition, state), state=state, reason=reason, checked_at=as_of)
        for partition, (state, reason) in states.items()
    ]
    write_standings(connection, after, run_id)


def write_standings(connection: duckdb.DuckDBPyConnection, standings: Iterable[Standing], run_id: str | None) -> None:
    """Replace the rows of status and coverage of these partitions."""
    rows = list(standings)
    connection.register("wanted", partitions_of(row.partition for row in rows))
    for table in ("status", "coverage"):
        connection.execute(f"DELETE FROM {table} USING wanted w WHERE {table}.symbol = w.symbol AND {table}.timeframe = w.timeframe")
    key = {"symbol": [row.symbol for row in rows], "timeframe": [row.timeframe for row in rows]}
    status = {name: [getattr(row, name) for row in rows] for name in ("state", "reason", "begins", "revision", "candles")}
    times = {name: timestamps([getattr(row, name) for row in rows]) for name in ("newest", "checked_at")}
    append(connection, "status", {**key, **status, **times, "run_id": [run_id] * len(rows)})
    covered = [row for row in rows if row.covered]
    spans = {
        "covered_from": [row.covered[0] for row in covered if row.covered],
        "covered_to": [row.covered[1] for row in covered if row.covered],
    }
    key = {"symbol": [row.symbol for row in covered], "timeframe": [row.timeframe for row in covered]}
    append(connection, "coverage", {**key, **{name: timestamps(times) for name, times in spans.items()}})


def _quarantine(connection: duckdb.DuckDBPyConnection, pages: Sequence[Page], now: Instant) -> None:
    for page in pages:
        if page.refused is not None:
            with incoming(connection, [candle_rows(page.symbol, page.timeframe, page.refused)]):
                connection.execute(
                    f"""INSERT INTO quarantine BY NAME SELECT {KEY}, * EXCLUDE (symbol, timeframe, opened_at), ? AS reason,
                        make_timestamp(?::BIGINT * 1000000) AS refused_at FROM incoming""",
                    [page.reason, now],
                )
