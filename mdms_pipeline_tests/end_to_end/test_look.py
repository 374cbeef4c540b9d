"""Screens over the warehouse: every collected market has a verdict, a result is kept once, and says as of when it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mdms_pipeline.collect.fill import newest_end
from mdms_pipeline.market import TIMEFRAMES
from mdms_pipeline.sandbox import Sandbox
from mdms_pipeline.screen.load import Screen
from mdms_pipeline.screen.look import instant_of, ranking, screen_all, screens_of, unscreened
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.universe import Market, store_universe
from mdms_pipeline.vocabulary import stored
from mdms_pipeline_tests.support import HOUR, NOW, Clock, calculate, collect, rows, settings

RULE = """title: Above its mean
timeframe: 1h
where:
  - close > sma(5)
rank: {expression: close / sma(5), direction: desc}
columns: [rsi(14)]
"""
SYMBOLS = ("KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-SOL")


def screen(folder: Path, rule: str = RULE) -> Screen:
    """A screen of one's own, from a file."""
    (folder / "screens").mkdir(parents=True, exist_ok=True)
    (folder / "screens" / "above.yaml").write_text(rule)
    return screens_of(settings(folder, MDMS_EXTENSIONS=str(folder))).screens["above"]


def prepare(warehouse: Warehouse, exchange: Sandbox, found: Screen, symbols: Sequence[str] = SYMBOLS) -> None:
    with warehouse.write() as connection:
        markets = [Market(symbol, symbol, symbol, False, float(len(SYMBOLS) - i)) for i, symbol in enumerate(SYMBOLS)]
        store_universe(connection, markets, SYMBOLS, "test", NOW)
    collect(warehouse, exchange, [(symbol, "1h") for symbol in symbols], history=40)
    calculate(warehouse, symbols, indicators=[read for read in stored(found.expressions) if read.name in ("sma_5", "rsi_14")])


def test_a_result_is_kept_once(warehouse: Warehouse, exchange: Sandbox, tmp_path: Path) -> None:
    found = screen(tmp_path)
    prepare(warehouse, exchange, found)
    with warehouse.read() as connection:
        assert unscreened(connection, [found]) == ["above"]
    first = screen_all(warehouse, [found], "1h")
    with warehouse.read() as connection:
        assert unscreened(connection, [found]) == []
        ranked = ranking(connection, found)
    assert ranked is not None
    assert ranked.at == instant_of(found, NOW) == TIMEFRAMES["1h"].after(newest_end(NOW, "1h"), -1)
    assert (first.rows, ranked.judged, ranked.passed) == (4, 4, len(ranked.rows))
    truth = rows(
        warehouse,
        """SELECT symbol FROM indicators WHERE opened_at = (SELECT max(opened_at) FROM candles) AND close > sma_5
           ORDER BY close / sma_5 DESC""",
    )
    assert [row.symbol for row in ranked.rows] == [symbol for (symbol,) in truth]
    assert [row.place for row in ranked.rows] == list(range(1, len(truth) + 1))
    assert screen_all(warehouse, [found], "1h").rows == 0
    assert rows(warehouse, "SELECT count(*) FROM screen_results") == [(4,)]


def test_a_changed_rule_takes_the_place_of_the_old_result(warehouse: Warehouse, exchange: Sandbox, tmp_path: Path) -> None:
    old = screen(tmp_path)
    prepare(warehouse, exchange, old)
    screen_all(warehouse, [old], "1h")
    new = screen(tmp_path, RULE.replace("close > sma(5)", "close > 0"))
    with warehouse.read() as connection:
        assert unscreened(connection, [new]) == ["above"]
    screen_all(warehouse, [new], "1h")
    assert rows(warehouse, "SELECT verdict, count(*), count(DISTINCT symbol) FROM screen_results GROUP BY ALL") == [("passed", 4, 4)]


def test_what_is_not_covered_is_not_known(warehouse: Warehouse, exchange: Sandbox, now: Clock, tmp_path: Path) -> None:
    """One market is collected an hour later than the others, one never: neither fails, neither passes."""
    found = screen(tmp_path)
    prepare(warehouse, exchange, found, SYMBOLS[:3])
    now.now += HOUR
    prepare(warehouse, exchange, found, SYMBOLS[:2])
    screen_all(warehouse, [found], "1h")
    verdicts = dict(rows(warehouse, "SELECT symbol, verdict FROM screen_results"))
    assert {symbol: verdicts[symbol] for symbol in SYMBOLS[2:]} == dict.fromkeys(SYMBOLS[2:], "not known")
    assert {verdicts[symbol] for symbol in SYMBOLS[:2]} <= {"passed", "failed"}


def test_no_nan_gets_into_a_result(warehouse: Warehouse, exchange: Sandbox, tmp_path: Path) -> None:
    found = screen(tmp_path)
    prepare(warehouse, exchange, found)
    with warehouse.write() as connection:
        connection.execute("UPDATE symbols SET turnover = NULL WHERE symbol = 'KRW-BTC'")
        connection.execute("UPDATE sma SET sma_5 = NULL WHERE symbol = 'KRW-ETH'")
    screen_all(warehouse, [found], "1h")
    assert rows(warehouse, "SELECT count(*) FILTER (isnan(rank_value) OR isnan(turnover)), count(*) FROM screen_results") == [(0, 4)]
    assert rows(warehouse, "SELECT turnover FROM screen_results WHERE symbol = 'KRW-BTC'") == [(None,)]
    assert rows(warehouse, "SELECT verdict FROM screen_results WHERE symbol = 'KRW-ETH'") == [("unknown",)]
    assert screen_all(warehouse, [found], "1h").rows == 0
