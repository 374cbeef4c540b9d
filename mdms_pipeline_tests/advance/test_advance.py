"""Indicators through the store: each bar once, to the same bits however the bars arrived, and nothing that its reads do not tell it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdms_pipeline.calculate.advance import FROM_START, HIT, INCREMENTAL, SKIPPED, advance, outstanding
from mdms_pipeline.calculate.catalog import KINDS, closure, defaults
from mdms_pipeline.calculate.indicator import Indicator, Kind, Output, indicator
from mdms_pipeline.calculate.kernels import atr, macd, rsi, sma, tr
from mdms_pipeline.market import Candles, Floats
from mdms_pipeline.store import StoreError, Warehouse
from mdms_pipeline_tests.support import HOUR, NOW, beside, bits, calculate, candles, elsewhere, page, put, rows

BARS = 260  # enough for the longest window, 200
START = NOW // HOUR * HOUR - BARS * HOUR
FEW = (sma(5), rsi(14), macd(12, 26, 9))


def opened(path: Path, memory_mb: int = 200) -> Warehouse:
    return Warehouse(path, "sandbox", memory_mb=memory_mb)


def market(symbol: str, bars: int = BARS) -> Candles:
    """A market with slots without a trade, and a stretch without movement."""
    whole = candles(START, bars, seed=sum(map(ord, symbol)))
    for column in (whole.open, whole.high, whole.low, whole.close):
        column[60:90] = column[60]
    return whole[np.arange(bars) % 11 != 3] if symbol != "KRW-BTC" else whole


def part(whole: Candles, start: int, end: int) -> Candles:
    return whole[(whole.opened_at >= START + start * HOUR) & (whole.opened_at < START + end * HOUR)]


def bring(warehouse: Warehouse, symbols: Sequence[str], start: int, end: int) -> None:
    """The candles of the slots [start, end), as collected."""
    span = (START + start * HOUR, START + end * HOUR)
    put(warehouse, *(page(symbol, part(market(symbol), start, end), covered=span) for symbol in symbols))


def counts(warehouse: Warehouse) -> dict[str, tuple[int, int]]:
    """Indicator -> (bars since its start, bars ever calculated), where all partitions agree."""
    found = rows(warehouse, "SELECT indicator, min(bars), max(bars), min(calculated), max(calculated) FROM memory GROUP BY indicator")
    assert all(low == high and least == most for _, low, high, least, most in found)
    return {name: (bars, calculated) for name, bars, _, calculated, _ in found}


# ---- hit, incremental, from start


def test_modes_and_their_reasons(warehouse: Warehouse) -> None:
    bring(warehouse, ["KRW-BTC"], 0, 50)
    first = calculate(warehouse, ["KRW-BTC", "KRW-NONE"], indicators=FEW)
    assert {tuple(step.modes.items()) for step in first.values()} == {(("KRW-BTC", FROM_START), ("KRW-NONE", SKIPPED))}
    assert {tuple(step.reasons.items()) for step in first.values()} == {(("KRW-BTC", "first time"), ("KRW-NONE", "no candles"))}
    assert {tuple(step.rows.items()) for step in first.values()} == {(("KRW-BTC", 50),)}
    again = calculate(warehouse, ["KRW-BTC"], indicators=FEW)
    assert {(step.modes["KRW-BTC"], step.bars, *step.reasons.values(), *step.rows.values()) for step in again.values()} == {(HIT, 0)}
    bring(warehouse, ["KRW-BTC"], 50, 53)
    more = calculate(warehouse, ["KRW-BTC"], indicators=FEW)
    assert {(step.modes["KRW-BTC"], step.reasons["KRW-BTC"], step.rows["KRW-BTC"]) for step in more.values()} == {
        (INCREMENTAL, "new bars", 3)
    }
    assert {step.newest["KRW-BTC"] for step in more.values()} == {START + 52 * HOUR}


def test_history_that_grows_backward_is_calculated_from_the_start(warehouse: Warehouse) -> None:
    bring(warehouse, ["KRW-BTC"], 50, 100)
    calculate(warehouse, ["KRW-BTC"], indicators=FEW)
    bring(warehouse, ["KRW-BTC"], 0, 50)
    done = calculate(warehouse, ["KRW-BTC"], indicators=FEW)
    assert {(step.modes["KRW-BTC"], step.reasons["KRW-BTC"]) for step in done.values()} == {(FROM_START, "candles was revised")}
    straight = opened(warehouse.path.parent / "straight" / "mdms.duckdb")
    bring(straight, ["KRW-BTC"], 0, 100)
    calculate(straight, ["KRW-BTC"], indicators=FEW)
    tables = ["candles", "sma", "ema", "rsi", "macd"]
    assert bits(warehouse, tables) == bits(straight, tables)


def test_what_is_quarantined_waits_alone(warehouse: Warehouse) -> None:
    bring(warehouse, ["KRW-BTC", "KRW-ETH"], 0, 30)
    bad = part(market("KRW-ETH"), 31, 32)
    put(warehouse, page("KRW-ETH", part(market("KRW-ETH"), 30, 31), refused=bad, reason="high below low"))
    done = calculate(warehouse, ["KRW-BTC", "KRW-ETH"], indicators=FEW)
    assert {tuple(step.modes.values()) for step in done.values()} == {(FROM_START, SKIPPED)}
    assert done["rsi", "1h"].reasons["KRW-ETH"] == "quarantined: high below low"


def test_an_indicator_alone_stops_where_its_upstream_does_and_says_so(warehouse: Warehouse) -> None:
    def rsi_alone() -> tuple[str, str | None, int]:
        [done] = advance(warehouse, [rsi(14)], {"1h": ["KRW-BTC"]})
        return done.modes["KRW-BTC"], done.reasons.get("KRW-BTC"), (done.newest.get("KRW-BTC", START - HOUR) - START) // HOUR

    sums = [sma("rise", 14), sma("fall", 14)]
    bring(warehouse, ["KRW-BTC"], 0, 40)
    assert rsi_alone() == (SKIPPED, "sma_rise_14 is not calculated yet", -1)
    advance(warehouse, sums, {"1h": ["KRW-BTC"]})
    assert rsi_alone() == (FROM_START, "first time", 39)
    bring(warehouse, ["KRW-BTC"], 40, 50)
    assert rsi_alone() == (HIT, "nothing new; stops where sma_rise_14 does", 39)
    advance(warehouse, sums[:1], {"1h": ["KRW-BTC"]})
    assert rsi_alone() == (HIT, "nothing new; stops where sma_fall_14 does", 39)
    advance(warehouse, sums, {"1h": ["KRW-BTC"]})
    bring(warehouse, ["KRW-BTC"], 50, 60)
    assert rsi_alone() == (INCREMENTAL, "new bars; stops where sma_rise_14 does", 49)
    assert rows(warehouse, "SELECT count(*), count(rsi_14) FROM indicators") == [(60, 36)]


# ---- the split law


def calculate_there(path: Path, symbols: Sequence[str]) -> None:
    calculate(opened(path), symbols)


def test_any_portions_give_the_same_bits(warehouse: Warehouse) -> None:
    """Candles that arrive in portions, calculated here or in another process, one symbol or both: as if they had come at once."""
    dice, symbols = random.Random(1), ["KRW-BTC", "KRW-ETH"]
    cuts = sorted({0, BARS, *dice.sample(range(1, BARS), 3)})
    for start, end, who in zip(cuts, cuts[1:], (symbols, symbols[:1], None, symbols), strict=False):
        bring(warehouse, symbols, start, end)
        if who is None:
            elsewhere(calculate_there, warehouse.path, symbols)
        else:
            calculate(warehouse, who)
    straight = opened(warehouse.path.parent / "straight" / "mdms.duckdb")
    bring(straight, symbols, 0, BARS)
    calculate(straight, symbols)
    assert bits(warehouse) == bits(straight)
    found = rows(warehouse, "SELECT symbol, indicator FROM memory WHERE bars <> calculated")
    assert found == []  # nothing was calculated twice


def test_pieces_as_small_as_can_be_give_the_same_bits(warehouse: Warehouse, tmp_path: Path) -> None:
    bars = 2_300
    long, coarse = candles(START - 2_000 * HOUR, bars, seed=5), candles(START - 8_000 * HOUR, 1_300, seed=6, frame="4h")
    straight = opened(tmp_path / "straight" / "mdms.duckdb")
    for one in (warehouse, straight):
        put(one, page("KRW-BTC", long[:2_100]), page("KRW-ETH", long[:700]), page("KRW-XRP", long[:1_100]))
        put(one, page("KRW-ETH", coarse[:1_200], "4h"), page("KRW-XRP", coarse, "4h"))
    warehouse.memory_mb = 0  # what DuckDB may take was settled when it was opened
    for until in (0, bars):
        for one in (warehouse, straight):
            put(one, *([page("KRW-BTC", long[2_100:until])] if until else []))
            done = calculate(one, ["KRW-BTC", "KRW-ETH", "KRW-XRP"], ("1h", "4h"), FEW)
            assert done["rsi", "1h"].rows["KRW-BTC"] == (200 if until else 2_100)
    assert bits(warehouse) == bits(straight)
    assert rows(warehouse, "SELECT DISTINCT bars = calculated FROM memory") == [(True,)]
    events = "SELECT count(*) FROM events WHERE type = 'rsi_calculated'"
    assert rows(warehouse, events)[0][0] > rows(straight, events)[0][0]  # it was in pieces


# ---- every edge carries data

EDGES = [(found, read) for found in defaults() for read in found.reads]


def told(read: str | Output) -> tuple[str, str]:
    """Table and column that an edge brings data from."""
    if isinstance(read, Output):
        return read.indicator.kind.name, read.name
    return "candles", "close" if read in ("rise", "fall") else read


def test_a_changed_upstream_changes_the_downstream(warehouse: Warehouse) -> None:
    """One symbol for each edge, all with the same candles: what differs afterwards was told by that edge."""
    symbols = {f"KRW-E{at}": edge for at, edge in enumerate(EDGES)}
    put(warehouse, *(page(symbol, candles(START, 230)) for symbol in ("KRW-SAME", *symbols)))
    calculate(warehouse, ["KRW-SAME", *symbols])
    with warehouse.write() as connection:
        for symbol, (found, read) in symbols.items():
            table, column = told(read)
            noise = "(1 + 0.03 * (1 + (epoch(opened_at)::BIGINT // 3600) % 7))"
            connection.execute(f"UPDATE {table} SET {column} = {column} * {noise} WHERE symbol = ?", [symbol])
            if isinstance(read, Output):
                upstream = read.indicator.name
                revise = "UPDATE memory SET revision = nextval('revision_id') WHERE symbol = ? AND indicator = ?"
                connection.execute(revise, [symbol, upstream])
            else:  # to be calculated anew, and nothing that it reads besides
                connection.execute("DELETE FROM memory WHERE symbol = ? AND indicator = ?", [symbol, found.name])
    for kind in KINDS.values():
        mine = {symbol: edge for symbol, edge in symbols.items() if edge[0].kind is kind}
        [done] = advance(warehouse, list({found for found, _ in mine.values()}), {"1h": list(mine)})
        assert done.modes == dict.fromkeys(mine, FROM_START)
        assert done.reasons == {
            symbol: f"{read.indicator.name} was revised" if isinstance(read, Output) else "first time" for symbol, (_, read) in mine.items()
        }
    for symbol, (found, read) in symbols.items():
        values = {
            who: rows(warehouse, f"SELECT {', '.join(found.columns)} FROM {found.kind.name} WHERE symbol = ? ORDER BY opened_at", who)
            for who in (symbol, "KRW-SAME")
        }
        assert values[symbol] != values["KRW-SAME"], f"{found} does not stand on {told(read)}"


# ---- what is calculated, and what is not


def test_a_new_variant_is_a_new_column_and_no_other_work(warehouse: Warehouse) -> None:
    bring(warehouse, ["KRW-BTC", "KRW-ETH"], 0, 120)
    calculate(warehouse, ["KRW-BTC", "KRW-ETH"])
    before = bits(warehouse)
    kept = [found for found in defaults() if found.kind is sma]
    [done] = advance(warehouse, [*kept, sma(37)], {"1h": ["KRW-BTC", "KRW-ETH"]})
    assert done.modes == dict.fromkeys(["KRW-BTC", "KRW-ETH"], FROM_START)
    after = bits(warehouse)
    new = after["sma"].pop("sma_37")
    after.pop("memory"), before.pop("memory")
    assert after == before
    assert set(rows(warehouse, "SELECT bars = calculated FROM memory")) == {(True,)}
    assert done.bars == sum(bars for (bars,) in rows(warehouse, "SELECT bars FROM memory WHERE indicator = 'sma_37'"))
    straight = opened(warehouse.path.parent / "straight" / "mdms.duckdb")
    bring(straight, ["KRW-BTC", "KRW-ETH"], 0, 120)
    advance(straight, [sma(37)], {"1h": ["KRW-BTC", "KRW-ETH"]})
    assert new == bits(straight, ["sma"])["sma"]["sma_37"]


def test_nothing_is_calculated_twice_however_many_ask(warehouse: Warehouse) -> None:
    for end in (30, 40, 55):
        bring(warehouse, ["KRW-BTC"], 0 if end == 30 else end - 15, end)
        for asked in ([rsi(14)], [macd(12, 26, 9), sma(5)], FEW):
            calculate(warehouse, ["KRW-BTC"], indicators=asked)
    assert set(counts(warehouse).values()) == {(55, 55)}
    assert set(counts(warehouse)) == {found.name for found in closure(FEW)}


def copied(version: int) -> Kind:
    """A kind whose kernel was mended once: version 2 gives the double."""

    def base(memory: Floats, x: Floats) -> tuple[Floats, Floats]:
        """The close, or its double."""
        return memory.copy(), (x * version).reshape(1, -1)

    return indicator(reads=lambda: ("close",), version=version)(base)


def above(kind: Kind) -> Kind:
    def top(memory: Floats, x: Floats) -> tuple[Floats, Floats]:
        """What it reads, and 1."""
        return memory.copy(), (x + 1).reshape(1, -1)

    return indicator(reads=lambda: (kind(),))(top)


def test_a_mended_kernel_is_run_from_the_start_and_so_is_all_that_reads_it(warehouse: Warehouse) -> None:
    bring(warehouse, ["KRW-BTC"], 0, 20)

    def step(found: Indicator) -> tuple[str, str | None]:
        [done] = advance(warehouse, [found], {"1h": ["KRW-BTC"]})
        return done.modes["KRW-BTC"], done.reasons.get("KRW-BTC")

    old, new = copied(1), copied(2)
    assert [step(old()), step(above(old)())] == [(FROM_START, "first time")] * 2
    assert step(above(new)()) == (SKIPPED, "base stands on an older declaration")  # not on what the old kernel wrote
    assert step(new()) == (FROM_START, "declaration changed")
    assert step(above(new)()) == (FROM_START, "declaration changed")
    assert rows(warehouse, "SELECT DISTINCT base = 2 * close, top = base + 1 FROM indicators") == [(True, True)]
    assert step(above(new)()) == (HIT, None)


def test_a_mended_kernel_in_pieces(warehouse: Warehouse) -> None:
    """Between two pieces the old rows must neither stay nor be doubled."""
    long = candles(START - 2_000 * HOUR, 2_300, seed=5)
    put(warehouse, page("KRW-BTC", long))
    for version in (1, 2):
        warehouse.memory_mb = 0 if version == 2 else 200
        advance(warehouse, [copied(version)()], {"1h": ["KRW-BTC"]})
        assert rows(warehouse, "SELECT count(*), count(DISTINCT opened_at), bool_and(base = ? * close) FROM indicators", version) == [
            (2_300, 2_300, True)
        ]


# ---- two at once


def follow(ready: Any, path: Path, ends: Sequence[int]) -> None:
    """Bring and calculate portion after portion, as another process does at the same time."""
    warehouse = opened(path)
    ready.set()
    for start, end in zip([0, *ends], ends, strict=False):
        span = (START + start * HOUR, START + end * HOUR)
        put(warehouse, *(page(symbol, part(market(symbol), start, end), covered=span) for symbol in ("KRW-BTC", "KRW-ETH")))
        calculate(warehouse, ["KRW-BTC", "KRW-ETH"], indicators=FEW)


def test_two_processes_double_nothing(warehouse: Warehouse) -> None:
    with beside(follow, warehouse.path, [50, 100, 140]), beside(follow, warehouse.path, [70, 140]):
        pass
    calculate(warehouse, ["KRW-BTC", "KRW-ETH"], indicators=FEW)
    straight = opened(warehouse.path.parent / "straight" / "mdms.duckdb")
    bring(straight, ["KRW-BTC", "KRW-ETH"], 0, 140)
    calculate(straight, ["KRW-BTC", "KRW-ETH"], indicators=FEW)
    assert bits(warehouse) == bits(straight)


def test_who_was_overtaken_stores_nothing(warehouse: Warehouse) -> None:
    """Calculated from what was there; by the time of storing, another has stored the same and more."""
    from mdms_pipeline.calculate.advance import _load, _plan, _run, _to_do  # the moment in between cannot be had from outside
    from mdms_pipeline.store.indicators import next_revision, store_advances

    bring(warehouse, ["KRW-BTC", "KRW-ETH"], 0, 30)
    with warehouse.read() as connection:
        plan = _plan(connection, [tr()], "1h", ["KRW-BTC", "KRW-ETH"])
        slow = _run(_load(connection, [item for dues in plan.values() for item in _to_do(dues)], "1h"), "1h")
    calculate(warehouse, ["KRW-BTC"], indicators=[tr()])
    bring(warehouse, ["KRW-BTC"], 30, 40)
    calculate(warehouse, ["KRW-BTC"], indicators=[tr()])
    before = bits(warehouse, ["tr"])
    with warehouse.write() as connection:
        assert store_advances(connection, "tr", slow, next_revision(connection)) == {"KRW-BTC"}
    assert rows(warehouse, "SELECT symbol, count(*), count(DISTINCT opened_at) FROM tr GROUP BY ALL ORDER BY ALL") == [
        ("KRW-BTC", 40, 40),
        ("KRW-ETH", len(part(market("KRW-ETH"), 0, 30)), len(part(market("KRW-ETH"), 0, 30))),
    ]
    with warehouse.write() as connection:
        connection.execute("DELETE FROM tr WHERE symbol = 'KRW-ETH'")
    assert bits(warehouse, ["tr"]) == before


# ---- tables that somebody has changed by hand


@pytest.mark.parametrize(
    ("damage", "asked"),
    [
        ("DELETE FROM tr WHERE opened_at = (SELECT max(opened_at) FROM tr)", atr(14)),
        ("DELETE FROM tr WHERE opened_at = (SELECT min(opened_at) FROM tr)", atr(20)),
        ("DELETE FROM tr", atr(20)),
        ("DELETE FROM candles WHERE opened_at = (SELECT min(opened_at) FROM candles)", sma(5)),
        ("DELETE FROM candles WHERE opened_at = (SELECT max(opened_at) FROM candles)", tr()),
    ],
)
def test_tables_out_of_step_are_refused(warehouse: Warehouse, damage: str, asked: Indicator) -> None:
    """Rather than calculate on with NaN for what is missing."""
    bring(warehouse, ["KRW-BTC"], 0, 30)
    calculate(warehouse, ["KRW-BTC"], indicators=[atr(14)])
    bring(warehouse, ["KRW-BTC"], 30, 32)
    if asked.kind is atr:
        calculate(warehouse, ["KRW-BTC"], indicators=[tr()])
    with warehouse.write() as connection:
        connection.execute(damage)
    before = bits(warehouse)
    with pytest.raises(StoreError, match=r"KRW-BTC 1h.*DELETE FROM"):
        advance(warehouse, [asked], {"1h": ["KRW-BTC"]})
    assert bits(warehouse) == before


def test_the_remedy_for_tables_out_of_step_works(warehouse: Warehouse) -> None:
    bring(warehouse, ["KRW-BTC"], 0, 30)
    calculate(warehouse, ["KRW-BTC"], indicators=[atr(14)])
    good = bits(warehouse, ["tr", "atr"])
    with warehouse.write() as connection:
        connection.execute("DELETE FROM tr WHERE opened_at < (SELECT max(opened_at) FROM tr)")
        connection.execute("DELETE FROM memory WHERE symbol = 'KRW-BTC' AND timeframe = '1h'")
    calculate(warehouse, ["KRW-BTC"], indicators=[atr(14)])
    assert bits(warehouse, ["tr", "atr"]) == good


def test_outstanding_is_what_advance_would_do(warehouse: Warehouse) -> None:
    def waiting() -> dict[str, int]:
        with warehouse.read() as connection:
            return outstanding(connection, closure(FEW), "1h", ["KRW-BTC", "KRW-NONE"])

    assert waiting() == {}
    bring(warehouse, ["KRW-BTC"], 0, 30)
    assert waiting() == {f"{call} first time": 1 for call in ("sma(5)", "sma(rise, 14)", "sma(fall, 14)", "ema(12)", "ema(26)")}
    calculate(warehouse, ["KRW-BTC"], indicators=FEW)
    assert waiting() == {}
