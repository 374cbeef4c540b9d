"""Pages of candles: stored with coverage, status and event in the caller's one transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import duckdb

from mdms_pipeline.market import PRICES_AND_AMOUNTS, TIMEFRAMES, Candles, Instant
from mdms_pipeline.store.frames import KEY, PARTITIONS, append, candle_rows, incoming, insert, instants, nulled, partitions_of, timestamps
from mdms_pipeline.store.frames import Partition as Partition
from mdms_pipeline.store.journal import emit
from mdms_pipeline.store.revisions import Change, Told, counted, differences, put_aside, revise
from mdms_pipeline.store.schema import SKIP

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
    oldest: Instant | None = None  # opening instant of the oldest candle
    refill_from: Instant | None = None  # a rescaled history is collected again, back to here
    no_trade: str = SKIP  # what indicators see of covered slots without a trade

    @property
    def partition(self) -> Partition:
        return self.symbol, self.timeframe

    @property
    def covered_to(self) -> Instant | None:
        """Up to where it was asked for, exclusive."""
        return self.covered[1] if self.covered is not None else None

    @property
    def last_bar(self) -> Instant | None:
        """The newest bar that indicators see: the newest candle; under `flat` the last covered slot."""
        if self.no_trade == SKIP or self.newest is None or self.covered is None:
            return self.newest
        return TIMEFRAMES[self.timeframe].after(self.covered[1], -1)

    @property
    def bars(self) -> int:
        """How many bars indicators see: the candles; under `flat` every slot from the first candle to the last covered one."""
        last = self.last_bar
        if self.no_trade == SKIP or self.oldest is None or last is None:
            return self.candles
        return TIMEFRAMES[self.timeframe].slots(self.oldest, last) + 1

    def at(self, now: Instant) -> str:
        """The state at `now`: what was fresh when it was written falls behind by itself."""
        if self.state != FRESH:
            return self.state
        frame = TIMEFRAMES[self.timeframe]
        return FRESH if self.covered is not None and self.covered[1] >= frame.floor(now) else BEHIND


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
    reread: Candles | None = None  # older candles that the same answer told again; from its first on, it left none out
    evidence: str | None = None  # what says that nothing was traded, where no page was asked for: "ticker"

    @property
    def partition(self) -> Partition:
        return self.symbol, self.timeframe


def standings(connection: duckdb.DuckDBPyConnection, partitions: Iterable[Partition] | None = None) -> dict[Partition, Standing]:
    """What is known of these partitions, or of every one that was ever tried."""
    only = "" if partitions is None else f"WHERE (symbol, timeframe) IN {PARTITIONS}"
    rows = connection.execute(
        f"""SELECT symbol, timeframe, state, reason, {instants("newest", "covered_from", "covered_to")}, begins, revision, candles,
                   {instants("checked_at", "oldest", "refill_from")},
                   coalesce((SELECT value FROM meta WHERE key = 'no_trade'), '{SKIP}') AS no_trade
            FROM status LEFT JOIN coverage USING (symbol, timeframe) {only} ORDER BY symbol, timeframe""",
        [] if partitions is None else partitions_of(partitions),
    ).fetchall()
    found = (
        Standing(symbol, frame, state, reason, newest, None if start is None else (start, end), *rest)
        for symbol, frame, state, reason, newest, start, end, *rest in rows
    )
    return {standing.partition: standing for standing in found}


def store_pages(
    connection: duckdb.DuckDBPyConnection, pages: Sequence[Page], as_of: Instant, now: Instant, run_id: str | None
) -> dict[Partition, int]:
    """Store pages and what follows from them in the caller's transaction; partition -> candles that were new.

    `as_of` is the instant whose newest slot was asked for, `now` the time of writing. What lies inside of the stored coverage is known
    already and is left out: two processes that fetch the same page store it once. A page that does not adjoin the coverage (another process
    began elsewhere meanwhile) is left out too: covered spans have no gaps, and its slots are asked for again. Candles that a page told
    again are compared with those stored, and revised where they differ.
    """
    before = standings(connection, {page.partition for page in pages})
    after = dict(before)
    fresh: list[tuple[Page, Candles]] = []
    for page in pages:
        standing = after.get(page.partition) or Standing(*page.partition, FRESH)
        if not adjoins(page, standing.covered):
            continue
        new = outside(page.candles, standing.covered)
        fresh.append((page, new))
        after[page.partition] = extended(standing, page, new, as_of)
    insert(connection, "candles", [candle_rows(page.symbol, page.timeframe, new) for page, new in fresh])
    _quarantine(connection, pages, now)
    again = [Told(*page.partition, page.reread, until=page.covered[0]) for page, _ in fresh if page.reread is not None]
    changes = differences(connection, again)
    after |= revised(connection, {change.partition: after[change.partition] for change in changes}, changes, "told otherwise", now, run_id)
    write_standings(connection, after.values(), run_id)
    _tell_quiet(connection, [page for page, _ in fresh if page.evidence], now, run_id)
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


def correct(connection: duckdb.DuckDBPyConnection, changes: Sequence[Change], reason: str, now: Instant, run_id: str | None) -> None:
    """Store what the exchange tells otherwise; all that was calculated from these partitions is due from the start."""
    if changes:
        before = standings(connection, {change.partition for change in changes})
        write_standings(connection, revised(connection, before, changes, reason, now, run_id).values(), run_id)


def revised(
    connection: duckdb.DuckDBPyConnection,
    before: Mapping[Partition, Standing],
    changes: Sequence[Change],
    reason: str,
    now: Instant,
    run_id: str | None,
) -> dict[Partition, Standing]:
    """Revise the candles of these partitions and tell of it; how they stand afterwards."""
    revisions = {partition: standing.revision + 1 for partition, standing in before.items()}
    revise(connection, changes, revisions, reason, now, run_id)
    after = {
        partition: replace(before[partition], revision=revisions[partition], oldest=oldest, newest=newest, candles=candles)
        for partition, (oldest, newest, candles) in counted(connection, before).items()
    }
    for name in dict.fromkeys(frame for _, frame in before):
        mine = sorted(symbol for symbol, frame in before if frame == name)
        count = sum(change.timeframe == name for change in changes)
        emit(connection, "market_data_corrected", now, run_id, mine, name, count, max(revisions[symbol, name] for symbol in mine))
    return after


def restate(connection: duckdb.DuckDBPyConnection, standing: Standing, factor: float, now: Instant, run_id: str | None) -> Standing:
    """The exchange has rescaled a market's history: put ours aside, to be collected again as far back as it reached.

    Every old row is kept in `revisions`: should the market vanish before its history is there again, nothing was lost.
    """
    before = standings(connection, [standing.partition]).get(standing.partition, standing)
    moved = put_aside(connection, before.partition, before.revision + 1, f"history rescaled by {factor:g}", now, run_id)
    emit(connection, "market_redenominated", now, run_id, [before.symbol], before.timeframe, moved, before.revision + 1)
    after = emptied(before, factor)
    write_standings(connection, [after], run_id)
    return after


def emptied(standing: Standing, factor: float) -> Standing:
    """The standing of a partition whose history was put aside."""
    reached = [at for at in (standing.refill_from, standing.covered and standing.covered[0]) if at is not None]
    return replace(
        standing, state=BEHIND, reason=f"the exchange rescaled its history by {factor:g}: collected again", covered=None, newest=None,
        oldest=None, candles=0, begins=False, revision=standing.revision + 1, refill_from=min(reached, default=None),
    )  # fmt: skip


def _tell_quiet(connection: duckdb.DuckDBPyConnection, pages: Sequence[Page], now: Instant, run_id: str | None) -> None:
    """Say by what evidence coverage grew without a page: `market_quiet_by_ticker`, its count the slots without a trade."""
    for name, evidence in dict.fromkeys((page.timeframe, page.evidence) for page in pages):
        mine = [page for page in pages if (page.timeframe, page.evidence) == (name, evidence)]
        slots = sum(TIMEFRAMES[name].slots(*page.covered) for page in mine)
        emit(connection, f"market_quiet_by_{evidence}", now, run_id, sorted(page.symbol for page in mine), name, slots)


def adjoins(page: Page, covered: tuple[Instant, Instant] | None) -> bool:
    """Whether the page's span and the covered one are one span together."""
    return covered is None or (page.covered[1] >= covered[0] and page.covered[0] <= covered[1])


def outside(candles: Candles, covered: tuple[Instant, Instant] | None) -> Candles:
    """The candles that do not lie inside of the covered span."""
    if covered is None:
        return candles
    return candles[(candles.opened_at < covered[0]) | (candles.opened_at >= covered[1])]


def extended(standing: Standing, page: Page, new: Candles, as_of: Instant) -> Standing:
    """The standing once `page` is stored. History that grows backward raises the revision: all that was calculated stands on other bars."""
    start, end = page.covered
    if standing.covered is not None:
        if not adjoins(page, standing.covered):
            raise ValueError(f"page {page.covered} of {page.symbol} {page.timeframe} does not adjoin what is covered, {standing.covered}")
        start, end = min(start, standing.covered[0]), max(end, standing.covered[1])
    backward = bool(len(new)) and standing.newest is not None and int(new.opened_at[0]) < standing.newest
    return replace(
        standing,
        state=FRESH if page.refused is None else QUARANTINED,
        reason=page.reason,
        newest=max([*new.opened_at[-1:].tolist(), *([] if standing.newest is None else [standing.newest])], default=None),
        oldest=min([*new.opened_at[:1].tolist(), *([] if standing.oldest is None else [standing.oldest])], default=None),
        covered=(start, end),
        begins=standing.begins or page.begins,
        refill_from=None if standing.refill_from is None or start <= standing.refill_from or page.begins else standing.refill_from,
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
    for table in ("status", "coverage"):
        connection.execute(f"DELETE FROM {table} WHERE (symbol, timeframe) IN {PARTITIONS}", partitions_of(row.partition for row in rows))
    key = {"symbol": [row.symbol for row in rows], "timeframe": [row.timeframe for row in rows]}
    status = {name: [getattr(row, name) for row in rows] for name in ("state", "reason", "begins", "revision", "candles")}
    times = {name: timestamps([getattr(row, name) for row in rows]) for name in ("newest", "checked_at", "oldest", "refill_from")}
    append(connection, "status", {**key, **status, **times, "run_id": [run_id] * len(rows)})
    covered = [row for row in rows if row.covered]
    spans = {
        "covered_from": [row.covered[0] for row in covered if row.covered],
        "covered_to": [row.covered[1] for row in covered if row.covered],
    }
    key = {"symbol": [row.symbol for row in covered], "timeframe": [row.timeframe for row in covered]}
    append(connection, "coverage", {**key, **{name: timestamps(times) for name, times in spans.items()}})


def _quarantine(connection: duckdb.DuckDBPyConnection, pages: Sequence[Page], now: Instant) -> None:
    """Keep the candles that were refused, each once however often it is asked for again."""
    for page in pages:
        if page.refused is None:
            continue
        with incoming(connection, [candle_rows(page.symbol, page.timeframe, page.refused)]):
            connection.execute(
                """DELETE FROM quarantine USING incoming i WHERE quarantine.symbol = i.symbol
                   AND quarantine.timeframe = i.timeframe AND quarantine.opened_at = i.opened_at"""
            )
            values = ", ".join(f'{nulled(name)} AS "{name}"' for name in PRICES_AND_AMOUNTS)
            connection.execute(
                f"""INSERT INTO quarantine BY NAME
                    SELECT {KEY}, {values}, ? AS reason, make_timestamp(?::BIGINT * 1000000) AS refused_at FROM incoming""",
                [page.reason, now],
            )
