"""A screen over the warehouse: read the last bars that it needs, judge, keep the result."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np

from mdms_pipeline.market import SETTLE, Floats, Instant
from mdms_pipeline.rules import Key
from mdms_pipeline.screen.judge import Candidate, Outcome, Row, ScreenResult, judge
from mdms_pipeline.screen.load import BUILT_IN, Loaded, Screen, load_screens
from mdms_pipeline.settings import Settings
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import Standing, last_checked, standings
from mdms_pipeline.store.frames import append, instants, timestamps
from mdms_pipeline.store.journal import Work, emit, note_work
from mdms_pipeline.store.schema import SKIP, indicator_tables
from mdms_pipeline.store.series import Series, read_last
from mdms_pipeline.store.universe import turnovers
from mdms_pipeline.vocabulary import column_of, indicator_of, load_extensions, tables, vocabulary


def screens_of(settings: Settings) -> Loaded:
    """The built-in screens and those of the extensions folder; what is wrong with a file stands beside the good ones."""
    load_extensions(settings.extensions)
    own = [settings.extensions / "screens"] if settings.extensions and (settings.extensions / "screens").is_dir() else []
    return load_screens([BUILT_IN, *own], vocabulary())


def instant_of(screen: Screen, now: float) -> Instant:
    """The newest slot of the screen's timeframe whose settle time has passed."""
    return screen.timeframe.newest_closed(int(now), SETTLE)


def look(connection: duckdb.DuckDBPyConnection, screen: Screen, now: float) -> ScreenResult:
    """Judge every collected symbol by the screen at the newest settled slot."""
    at = instant_of(screen, now)
    stable_after = {call: indicator_of(call).stable_after for call in screen.calls}
    return judge(screen, at, candidates(connection, screen, at), stable_after)


def candidates(connection: duckdb.DuckDBPyConnection, screen: Screen, at: Instant, only: Sequence[str] | None = None) -> list[Candidate]:
    """What the warehouse knows of each collected symbol (or of `only` these) at the slot that opened at `at`."""
    frame = screen.timeframe.name
    worth = turnovers(connection)
    symbols = sorted(worth) if only is None else list(only)
    known = standings(connection, [(symbol, frame) for symbol in symbols])
    by_symbol = {symbol: standing for (symbol, _), standing in known.items()}
    wanted = _there(connection, tables((*screen.series, *screen.calls)))
    read = read_last(connection, wanted, frame, by_symbol, screen.lookback + 2 + _newer(screen, by_symbol.values(), at))
    found = []
    for symbol in symbols:
        standing = by_symbol.get(symbol)
        bars = read.get(symbol)
        past = None if bars is None else bars.until(at)
        found.append(
            Candidate(
                symbol,
                covered_to=standing.covered_to if standing else None,
                opened_at=_last_trade(standing, past),
                turnover=worth.get(symbol, float("nan")),
                bars=(standing.bars if standing else 0) - (len(bars.opened_at) - len(past.opened_at) if bars and past else 0),
                series=_named(screen, past),
            )
        )
    return found


def _last_trade(standing: Standing | None, past: Series | None) -> Instant | None:
    """The newest bar with a trade: under `flat` a bar may be without."""
    if standing is None or past is None:
        return None
    opened_at = past.opened_at if standing.no_trade == SKIP else past.opened_at[past.columns["volume"] > 0]
    return int(opened_at[-1]) if len(opened_at) else None


def keep(connection: duckdb.DuckDBPyConnection, screen: Screen, result: ScreenResult, now: Instant, run_id: str | None) -> int:
    """Store a result in the place of an earlier one for the same slot; how many rows changed."""
    fresh = {row.symbol: _stored(row) for row in result.rows}
    held = {
        symbol: tuple(rest)
        for symbol, *rest in connection.execute(
            f"""SELECT symbol, {", ".join(COLUMNS)} FROM screen_results
                WHERE screen = ? AND instant = make_timestamp(?::BIGINT * 1000000) AND fingerprint = ?""",
            [screen.name, result.at, screen.fingerprint],
        ).fetchall()
    }
    changed = {symbol for symbol in fresh.keys() | held.keys() if fresh.get(symbol) != held.get(symbol)}
    if not changed:
        return 0
    connection.execute(
        "DELETE FROM screen_results WHERE screen = ? AND instant = make_timestamp(?::BIGINT * 1000000)", [screen.name, result.at]
    )
    n = len(result.rows)
    columns: dict[str, Sequence[object] | np.ndarray] = {
        name: [fresh[row.symbol][i] for row in result.rows] for i, name in enumerate(COLUMNS)
    }
    columns |= {
        "screen": [screen.name] * n,
        "timeframe": [result.timeframe] * n,
        "fingerprint": [screen.fingerprint] * n,
        "run_id": [run_id] * n,
    }
    columns |= {"symbol": [row.symbol for row in result.rows], "instant": timestamps([result.at] * n)}
    append(connection, "screen_results", columns)
    passed = [row.symbol for row in result.ranking]
    emit(connection, "screened", now, run_id, passed, result.timeframe, len(result.rows))
    return len(changed)


COLUMNS = ("verdict", "reason", "age", "unstable", "place", "rank_value", "turnover", "details")


@dataclass(frozen=True)
class RankedRow:
    """One place of a ranking."""

    place: int
    symbol: str
    korean_name: str
    english_name: str
    age: int  # slots since its last trade
    unstable: str | None  # indicators whose seed still shows
    rank_value: float | None
    turnover: float | None
    values: Mapping[str, float | None]  # what decided and what is shown beside, by text


@dataclass(frozen=True)
class Ranked:
    """The newest stored ranking of a screen."""

    at: Instant  # opening of the slot that was judged
    rows: tuple[RankedRow, ...]
    outcomes: Mapping[str, int]  # outcome -> symbols

    @property
    def judged(self) -> int:
        return sum(self.outcomes.values())

    @property
    def passed(self) -> int:
        return self.outcomes.get(Outcome.PASSED, 0)

    @property
    def shown(self) -> list[str]:
        """The texts of the values that every row has."""
        return list(self.rows[0].values) if self.rows else []


def ranking(connection: duckdb.DuckDBPyConnection, screen: Screen) -> Ranked | None:
    """The newest stored ranking of a screen; None where it never ran."""
    row = connection.execute(
        f"SELECT {instants('instant')} FROM (SELECT max(instant) AS instant FROM screen_results WHERE screen = ?)", [screen.name]
    ).fetchone()
    if row is None or row[0] is None:
        return None
    here = "FROM screen_results LEFT JOIN symbols USING (symbol) WHERE screen = ? AND instant = make_timestamp(?::BIGINT * 1000000)"
    outcomes = dict(connection.execute(f"SELECT verdict, count(*) {here} GROUP BY verdict", [screen.name, row[0]]).fetchall())
    rows = connection.execute(
        f"""SELECT place, symbol, coalesce(korean_name, ''), coalesce(english_name, ''), age, unstable, rank_value,
                   screen_results.turnover, details
            {here} AND place <= ? ORDER BY place""",
        [screen.name, row[0], screen.limit],
    ).fetchall()
    return Ranked(int(row[0]), tuple(_ranked_row(*row) for row in rows), outcomes)


def _ranked_row(*cells: Any) -> RankedRow:
    names = ("place", "symbol", "korean_name", "english_name", "age", "unstable", "rank_value", "turnover")
    return RankedRow(**dict(zip(names, cells[:-1], strict=True)), values=_values(cells[-1]))


def _values(details: str) -> dict[str, float | None]:
    held = json.loads(details)
    values: dict[str, float | None] = {}
    for clause in held["clauses"]:
        values.update(clause["values"])
    values.update(held["columns"])
    return values


def unscreened(connection: duckdb.DuckDBPyConnection, screens: Sequence[Screen]) -> list[str]:
    """The screens that have no result, by their present rules, for the slot of their timeframe's last collection."""
    missing = []
    for screen in screens:
        now = last_checked(connection, screen.timeframe.name)
        held = (
            now is not None
            and connection.execute(
                """SELECT 1 FROM screen_results
                   WHERE screen = ? AND fingerprint = ? AND instant = make_timestamp(?::BIGINT * 1000000) LIMIT 1""",
                [screen.name, screen.fingerprint, instant_of(screen, now)],
            ).fetchone()
        )
        if not held:
            missing.append(screen.name)
    return missing


@dataclass(frozen=True)
class Screened:
    """What a screening of one timeframe did."""

    results: tuple[ScreenResult, ...]
    rows: int  # stored rows that changed
    seconds: float


def screen_all(warehouse: Warehouse, screens: Sequence[Screen], timeframe: str, run_id: str | None = None) -> Screened:
    """Judge all collected symbols by these screens, all of one timeframe, as of its last collection; keep the results."""
    clock = time.perf_counter()
    with warehouse.read() as connection:
        now = last_checked(connection, timeframe)
        results = tuple(look(connection, screen, now) for screen in screens) if now is not None else ()
    if now is None or not results:
        return Screened((), 0, time.perf_counter() - clock)
    with warehouse.write() as connection:
        rows = sum(keep(connection, screen, result, now, run_id) for screen, result in zip(screens, results, strict=True))
        seconds = time.perf_counter() - clock
        judged = len({row.symbol for result in results for row in result.rows})
        note_work(connection, Work(run_id, "screen_results", timeframe, now, seconds, partitions=judged, rows=rows))
    return Screened(results, rows, seconds)


def _stored(row: Row) -> tuple[object, ...]:
    details = {
        "clauses": [{"text": clause.text, "verdict": clause.verdict, "values": dict(clause.values)} for clause in row.clauses],
        "columns": dict(row.columns),
    }
    unstable = ", ".join(row.unstable) or None
    return (str(row.outcome), row.reason or None, row.age, unstable, row.place, row.rank, row.turnover, json.dumps(details))


def _named(screen: Screen, series: Series | None) -> dict[Key, Floats]:
    """The series by the names that the screen's rules use; a column that was never calculated is unknown."""
    bars = 0 if series is None else len(series.opened_at)
    columns = {} if series is None else series.columns
    names: dict[Key, str] = {**{name: name for name in screen.series}, **{call: column_of(call) for call in screen.calls}}
    return {name: columns.get(column, np.full(bars, np.nan)) for name, column in names.items()}


def _there(connection: duckdb.DuckDBPyConnection, wanted: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Those columns that were ever calculated; the others are unknown everywhere."""
    have = indicator_tables(connection)
    return {
        table: columns if table == "candles" else [column for column in columns if column in have.get(table, ())]
        for table, columns in wanted.items()
        if table == "candles" or table in have
    }


def _newer(screen: Screen, known: Iterable[Standing], at: Instant) -> int:
    """How many slots the newest candle lies after `at`: as many more bars must be read to reach back far enough."""
    last = [standing.last_bar for standing in known if standing.last_bar is not None]
    return max((screen.timeframe.slots(at, newest) for newest in last if newest > at), default=0)
