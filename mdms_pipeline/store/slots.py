"""What every slot is. Each expected slot of a (symbol, timeframe) is one of

    traded      a candle is stored
    no trade    inside of the coverage, and there is no candle
    unknown     never asked for, or asked for in vain
    forming     not over yet, or not settled

Expected are the slots from a window's start (or from the listing, where that is known) up to the one that is forming; of a delisted
market up to where it was covered. A maintenance hole is a stretch in which no market traded although that cannot be chance.

`classify` says it slot by slot (pure); `survey` counts by one reading per timeframe, in so many columns of time: rows in memory are
symbols x columns, however many candles there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import numpy.typing as npt

from mdms_pipeline.market import SETTLE, Instant, Instants, Timeframe, timeframe
from mdms_pipeline.store.candles import DELISTED, Standing
from mdms_pipeline.store.frames import instants

Counts = npt.NDArray[np.int64]
Span = tuple[Instant, Instant]  # half-open, both on slot boundaries

TRADED, NO_TRADE, UNKNOWN, FORMING = "traded", "no trade", "unknown", "forming"
COLUMNS = 240  # of time, in a survey
HOLE_MARKETS = 3  # a hole of fewer markets is their own quiet
HOLE_CHANCE = -9.0  # log10 of how likely a hole may be by chance, if markets were quiet independently of each other


@dataclass(frozen=True)
class Survey:
    """Slots of one timeframe: arrays of shape (symbols, columns), counted from `edges[i]` up to `edges[i + 1]`, forming ones left out."""

    timeframe: str
    symbols: tuple[str, ...]
    edges: Instants
    expected: Counts
    covered: Counts
    traded: Counts
    maintenance: Counts  # covered slots without a trade that lie in a hole of all markets
    forming: Counts  # by symbol
    holes: tuple[Span, ...]

    @property
    def no_trade(self) -> Counts:
        """Covered slots without a candle, those in maintenance holes left out."""
        return self.covered - self.traded - self.maintenance

    @property
    def unknown(self) -> Counts:
        return self.expected - self.covered

    def rows(self) -> list[dict[str, object]]:
        """Totals by symbol."""
        names = ("expected", "traded", "no_trade", "maintenance", "unknown")
        sums = {name: getattr(self, name).sum(axis=1).tolist() for name in names}
        return [
            {
                "symbol": symbol,
                "timeframe": self.timeframe,
                **{name: sums[name][i] for name in names},
                "forming": int(self.forming[i]),
            }
            for i, symbol in enumerate(self.symbols)
        ]


def expected_span(standing: Standing, start: Instant, now: float) -> Span:
    """The slots that are to be known of a partition, from `start` on."""
    frame = timeframe(standing.timeframe)
    end = frame.floor(int(now) - SETTLE)
    if standing.state == DELISTED:
        end = standing.covered[1] if standing.covered else start
    if standing.begins and standing.covered:
        start = max(start, standing.covered[0])
    return start, max(start, end)


def forming_slots(standing: Standing, now: float) -> int:
    """Slots that are not over or not settled: 1, in the moments after a close 2; none of a delisted market."""
    frame = timeframe(standing.timeframe)
    if standing.state == DELISTED:
        return 0
    return frame.slots(frame.floor(int(now) - SETTLE), frame.floor(int(now))) + 1


def classify(standing: Standing, opened_at: Instants, start: Instant, now: float) -> dict[Instant, str]:
    """Every expected slot from `start` on, and what it is; `opened_at` are the stored candles."""
    frame = timeframe(standing.timeframe)
    first, end = expected_span(standing, start, now)
    traded, (covered_from, covered_to) = set(opened_at.tolist()), standing.covered or (0, 0)
    kinds = {}
    for i in range(frame.slots(first, end)):
        at = frame.after(first, i)
        kinds[at] = TRADED if at in traded else NO_TRADE if covered_from <= at < covered_to else UNKNOWN
    return kinds | {frame.after(end, i): FORMING for i in range(forming_slots(standing, now))}


def survey(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    standings: Iterable[Standing],
    now: float,
    since: Instant | None = None,
    columns: int = COLUMNS,
) -> Survey | None:
    """Count the slots of these partitions of one timeframe from `since` (the earliest coverage) on; None where nothing is covered."""
    frame, rows = timeframe(name), [row for row in standings if row.timeframe == name]
    starts = [row.covered[0] for row in rows if row.covered]
    if not starts:
        return None
    start, end = min(starts) if since is None else frame.floor(since), frame.floor(int(now) - SETTLE)
    slots = max(1, frame.slots(start, end))
    width = -(-slots // columns)
    edges = np.array([frame.after(start, i) for i in range(0, slots + width, width)], dtype=np.int64)
    spans = [expected_span(row, start, now) for row in rows]
    covers = [_within(row.covered or (start, start), span) for row, span in zip(rows, spans, strict=True)]
    traded = _traded(connection, [row.symbol for row in rows], frame, start, width, len(edges) - 1)
    covered = _counted(frame, covers, edges)
    holes = _holes(connection, frame, start, covers, traded.sum(axis=1), covered.sum(axis=1))
    return Survey(
        name,
        tuple(row.symbol for row in rows),
        edges,
        expected=_counted(frame, spans, edges),
        covered=covered,
        traded=traded,
        maintenance=np.sum([_counted(frame, [_within(hole, span) for span in covers], edges) for hole in holes], axis=0, dtype=np.int64)
        if holes
        else np.zeros_like(covered),
        forming=np.array([forming_slots(row, now) for row in rows], dtype=np.int64),
        holes=holes,
    )


def _within(span: Span, bounds: Span) -> Span:
    start = max(span[0], bounds[0])
    return start, max(start, min(span[1], bounds[1]))


def _counted(frame: Timeframe, spans: Sequence[Span], edges: Instants) -> Counts:
    """How many slots of each span lie between neighbouring edges."""
    if frame.seconds is None:
        index = {at: frame.slots(int(edges[0]), at) for at in {*edges.tolist(), *(at for span in spans for at in span)}}
        bounds, ends = np.array([index[at] for at in edges.tolist()]), np.array([[index[at] for at in span] for span in spans])
    else:
        bounds, ends = (edges - edges[0]) // frame.seconds, (np.array(spans) - edges[0]) // frame.seconds
    left = np.maximum(bounds[None, :-1], ends[:, :1])
    right = np.minimum(bounds[None, 1:], ends[:, 1:])
    counted: Counts = np.maximum(right - left, 0).astype(np.int64)
    return counted


def _traded(
    connection: duckdb.DuckDBPyConnection, symbols: Sequence[str], frame: Timeframe, start: Instant, width: int, columns: int
) -> Counts:
    """Stored candles by symbol and column of time: the one reading of the candles."""
    began = f"make_timestamp({start}::BIGINT * 1000000)"
    slot = (
        f"datediff('month', {began}, opened_at)"
        if frame.seconds is None
        else f"(epoch_us(opened_at) // 1000000 - {start}) // {frame.seconds}"
    )
    found = connection.execute(
        f"""SELECT symbol, ({slot}) // {width} AS place, count(*) FROM candles
            WHERE timeframe = ? AND opened_at >= {began} AND symbol IN (SELECT unnest(?::VARCHAR[])) GROUP BY ALL""",
        [frame.name, list(symbols)],
    ).fetchall()
    counts, rows = np.zeros((len(symbols), columns), dtype=np.int64), {symbol: i for i, symbol in enumerate(symbols)}
    for symbol, place, count in found:
        if place < columns:
            counts[rows[symbol], place] = count
    return counts


def _holes(
    connection: duckdb.DuckDBPyConnection, frame: Timeframe, start: Instant, covers: Sequence[Span], traded: Counts, covered: Counts
) -> tuple[Span, ...]:
    """The stretches in which nobody traded, where that cannot be chance.

    A market that usually trades in a share p of its slots is quiet in n neighbouring ones with the chance (1 - p) ** n, and all markets
    together with the product of those: below 10 ** HOLE_CHANCE it was not they who were quiet.
    """
    if frame.seconds is None or len(covers) < HOLE_MARKETS:
        return ()
    rows = connection.execute(
        f"""SELECT {instants("opened_at", "next")} FROM (
                SELECT opened_at, lead(opened_at) OVER (ORDER BY opened_at) AS next FROM (
                    SELECT DISTINCT opened_at FROM candles WHERE timeframe = ? AND opened_at >= make_timestamp(?::BIGINT * 1000000)))
            WHERE next > opened_at + to_seconds(?) ORDER BY opened_at""",
        [frame.name, start, frame.seconds],
    ).fetchnumpy()
    begins, ends = np.asarray(rows["opened_at"], dtype=np.int64) + frame.seconds, np.asarray(rows["next"], dtype=np.int64)
    chance, markets = np.zeros(len(begins)), np.zeros(len(begins), dtype=np.int64)
    for (covered_from, covered_to), count, slots in zip(covers, traded.tolist(), covered.tolist(), strict=True):
        inside = (covered_from <= begins) & (ends <= covered_to) & (slots > count)
        chance[inside] += np.log10((slots - count) / slots) if slots > count else 0.0
        markets += inside
    found = (markets >= HOLE_MARKETS) & (chance * ((ends - begins) // frame.seconds) <= HOLE_CHANCE)
    return tuple(zip(begins[found].tolist(), ends[found].tolist(), strict=True))
