"""A run as a whole: the worked example of the docs, numbers, universes, the record, the tables, the page, the commands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from click.testing import CliRunner
from click.testing import Result as Called

from mdms_pipeline.backtest.engine import Fill
from mdms_pipeline.backtest.find import history_of
from mdms_pipeline.backtest.history import History, HistoryError, Past, members
from mdms_pipeline.backtest.keep import keep, record_of, runs
from mdms_pipeline.backtest.metrics import buy_and_hold, longest, losing_run, measure, monthly
from mdms_pipeline.backtest.replay import replayed
from mdms_pipeline.backtest.report import Doubts, page
from mdms_pipeline.backtest.run import Result, backtest
from mdms_pipeline.cli_backtest import commands
from mdms_pipeline.market import DAY, Candles, instant, timeframe
from mdms_pipeline.settings import SETTINGS
from mdms_pipeline.store import Warehouse
from mdms_pipeline_tests.backtest.markets import GOOD, START, history, recipe, walk, warehouse

DOCS = (Path(__file__).parents[2] / "docs" / "backtest.md").read_text(encoding="utf-8")


# ---- the example of the docs


def example(folder: Path) -> Result:
    yaml = re.search(r"```yaml\n(.*?)```", DOCS, re.DOTALL)
    assert yaml
    rows = [[cell.strip() for cell in line.split("|")[1:6]] for line in DOCS.splitlines() if re.match(r"\| \d+ \|", line)]
    bars = np.array([[float(cell) for cell in row] for row in rows if row[1]])
    ones = np.full(len(bars), 1e9)
    candles = Candles(START + DAY * (bars[:, 0].astype(np.int64) - 1), *(bars[:, i].copy() for i in range(1, 5)), ones / bars[:, 4], ones)
    return backtest(recipe(folder, yaml.group(1)).usual, History.of(timeframe("1d"), {"KRW-AAA": Past(candles)}))


def test_the_example_of_the_docs(tmp_path: Path) -> None:
    result = example(tmp_path)
    said = [line.split("|") for line in DOCS.splitlines() if re.match(r"\| \d+ \|", line)][1:]
    assert [f"{equity:.2f}" for equity in result.outcome.equity] == [cells[7].strip() for cells in said]
    assert [f"{trade.profit:,.2f}" for trade in result.trades] == ["-25,828.46", "-6,566.53"]
    assert [trade.closed for trade in result.trades] == ["stop", "exit rule"]
    assert result.outcome.fills[:, Fill.PRICE].tolist() == [10260, 9740, 10010, 9885]
    assert [f"{fee:.2f}" for fee in result.outcome.fills[:, Fill.FEE]] == ["250.00", "237.33", "243.54", "240.50"]
    assert result.orders == ()
    for number in ("48.732943", "48.659917"):
        assert number in DOCS
    assert [f"{units:.6f}" for units in result.outcome.fills[[0, 2], Fill.UNITS]] == ["48.732943", "48.659917"]


# ---- numbers


def test_numbers_by_hand() -> None:
    equity = np.array([110.0, 99.0, 99.0, 120.0])
    found = measure(equity, equity / 2, np.array([1, 1, 0, 0]), 100.0, timeframe("1d"), np.array([10.0, -11.0, -1.0, 22.0]),
                    np.array([0.1, -0.1, -0.01, 0.2]), np.array([1.0, 2.0, 3.0, 4.0]), 400.0, 3.0)  # fmt: skip
    each = np.array([0.1, -0.1, 0.0, 120 / 99 - 1])
    assert found.total_return == pytest.approx(0.2)
    assert found.annual_return == pytest.approx(1.2 ** (365 / 4) - 1)
    assert found.volatility == pytest.approx(each.std(ddof=1) * 365**0.5)
    assert found.sharpe == pytest.approx(each.mean() / each.std(ddof=1) * 365**0.5)
    assert found.sortino == pytest.approx(each.mean() / (0.01 / 4) ** 0.5 * 365**0.5)
    assert (found.max_drawdown, found.drawdown_days) == (pytest.approx(0.1), 2.0)
    assert found.calmar == pytest.approx((1.2 ** (365 / 4) - 1) / 0.1)
    assert (found.exposure, found.in_market) == (0.5, 0.5)
    assert found.turnover == pytest.approx(400 / 107 / 4 * 365)
    assert (found.win_rate, found.expectancy, found.losing_run, found.mean_days) == (0.5, 5.0, 2, 2.5)
    assert found.profit_factor == pytest.approx(32 / 12)


def test_a_ratio_without_a_denominator_is_none() -> None:
    nothing = np.empty(0)
    flat = measure(np.full(5, 100.0), np.full(5, 100.0), np.zeros(5), 100.0, timeframe("1d"), nothing, nothing, nothing, 0.0, 0.0)
    ratios = (flat.sharpe, flat.sortino, flat.calmar, flat.win_rate, flat.profit_factor, flat.expectancy, flat.mean_return)
    assert ratios == (None,) * 7
    assert (flat.total_return, flat.max_drawdown, flat.trades) == (0.0, 0.0, 0)
    assert longest(np.array([-1.0, -1.0, 0.0, -1.0])) == 2
    assert losing_run(np.array([1.0, -1.0, -2.0, 0.0, -1.0])) == 2


def test_months_are_those_of_the_close() -> None:
    closes = np.array([instant(day) for day in ("2026-01-31", "2026-02-01", "2026-02-02", "2026-03-01")])
    assert monthly(np.array([110.0, 121.0, 121.0, 242.0]), 100.0, closes) == {"2026-01": pytest.approx(0.21), "2026-02": pytest.approx(1.0)}


def test_buy_and_hold() -> None:
    opens = np.array([[10.0, 20.0], [10.0, 20.0], [np.nan, 30.0]])
    close = np.array([[10.0, 20.0], [12.0, 25.0], [np.nan, 40.0]])
    equity = buy_and_hold(close, opens, np.ones((3, 2), np.bool_), 100.0, 0.0)
    assert equity.tolist() == [100.0, 5 * 12 + 2.5 * 25, 5 * 12 + 2.5 * 40]
    assert buy_and_hold(close, opens, np.zeros((3, 2), np.bool_), 100.0, 0.0).tolist() == [100.0] * 3


# ---- universes


def test_top_by_turnover_is_point_in_time(tmp_path: Path) -> None:
    text = GOOD.replace("[KRW-BTC]", "{top: 1, rebalance: 1d}").replace("1h", "1d")
    early, late = walk(1, 100, frame="1d", value=1e9), walk(2, 100, frame="1d", value=1e8)
    late.value[50:] = 1e11
    past = History.of(timeframe("1d"), {"KRW-A": Past(early), "KRW-B": Past(late)})
    inside, _ = members(recipe(tmp_path, text).usual, past)
    assert inside[:50].tolist() == [[True, False]] * 50
    assert inside[50:].tolist() == [[False, True]] * 50  # from the close at which it was known
    cut, _ = members(recipe(tmp_path, text).usual, past.until(50))
    assert (cut == inside[:50]).all()


def test_turnover_that_is_not_known_is_not_ranked(tmp_path: Path) -> None:
    text = GOOD.replace("[KRW-BTC]", "{top: 2}").replace("1h", "1d")
    late = walk(2, 40, frame="1d")
    past = History.of(timeframe("1d"), {"KRW-A": Past(walk(1, 40, frame="1d")), "KRW-B": Past(late, known_from=START + 20 * DAY)})
    inside, notes = members(recipe(tmp_path, text).usual, past)
    assert inside[:, 0].all()
    assert not inside[:, 1].any()
    assert "KRW-B" in notes[0]


# ---- what cannot be is refused


def test_periods_and_universes_without_data(tmp_path: Path) -> None:
    strategy, past = recipe(tmp_path).usual, history(bars=300)
    with pytest.raises(HistoryError, match=r"the period holds no candle: 1h candles are stored from 2025-01-01T00:00:00Z"):
        backtest(strategy, past, instant("2030-01-01"))
    with pytest.raises(HistoryError, match="the period holds no candle"):
        backtest(strategy, past, instant("2025-01-05"), instant("2025-01-04"))
    with pytest.raises(HistoryError, match="before the indicators of mine are stable"):
        backtest(strategy, past, None, instant("2025-01-01T10:00"))
    with pytest.raises(HistoryError, match="no 1h candles of the universe, which is empty"):
        History.of(timeframe("1h"), {})


# ---- stored


def stored(folder: Path) -> tuple[History, Result]:
    candles = {f"KRW-C{i}": walk(i, 600, holes=0.1) for i in range(4)}
    store = warehouse(folder, candles, "1h", gone=("KRW-C2",))
    strategy = recipe(folder, GOOD.replace("[KRW-BTC]", "all")).usual
    found = history_of(store, strategy)
    result = backtest(strategy, found)
    with store.write() as connection:
        keep(connection, result, START)
        keep(connection, result, START + 1, "run")
    return found, result


def test_a_run_is_kept_once_and_made_again_to_the_bit(tmp_path: Path) -> None:
    found, result = stored(tmp_path)
    assert [symbol for symbol, past in found.past.items() if past.delisted] == ["KRW-C2"]
    store = Warehouse(tmp_path / "mdms.duckdb", "sandbox")
    with store.read() as connection:
        kept = runs(connection)
        record = record_of(connection, result.id)
        counts = [connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0] for table in ("backtest_runs", "trades", "equity")]
    assert counts == [1, len(result.trades), len(result.outcome.equity)]
    assert (kept[0].run, kept[0].trades, kept[0].made_at) == (result.id, result.metrics.trades, START + 1)
    assert record == json.loads(json.dumps(result.record))
    assert record is not None
    mine = recipe(tmp_path, GOOD.replace("[KRW-BTC]", "all"))
    assert replayed(store, mine, record).same
    with store.write() as connection:
        connection.execute(
            "UPDATE candles SET close = close * 1.0000001 WHERE symbol = 'KRW-C1' AND opened_at = (SELECT max(opened_at) FROM candles)"
        )
    again = replayed(store, mine, record)
    assert "data differs" in again.differences


def test_what_is_stored_is_what_is_traded_on(tmp_path: Path) -> None:
    """The edge from an indicator's table to the backtest carries data: other values there, other trades here."""
    past = history(bars=400)
    strategy = recipe(tmp_path).usual
    one = past.past["KRW-BTC"]
    swapped = {"sma_5": -one.candles.close, "sma_20": one.candles.close}
    other = History.of(past.timeframe, {"KRW-BTC": Past(one.candles, swapped)})
    assert len(backtest(strategy, past).trades) > 5
    assert len(backtest(strategy, other).trades) == 0


def test_more_history_at_the_end_changes_nothing_before(tmp_path: Path) -> None:
    past = history(bars=700, symbols=("KRW-A", "KRW-B"), holes=0.1)
    strategy = recipe(tmp_path, GOOD.replace("[KRW-BTC]", "all")).usual
    end = int(past.opened_at[500])
    whole, cut = backtest(strategy, past, None, end), backtest(strategy, past.until(500), None, end)
    assert (whole.id, whole.outcome.equity.tobytes()) == (cut.id, cut.outcome.equity.tobytes())


# ---- the page and the commands


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    text = page(example(tmp_path), Doubts())
    body = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(
        r"""(src|href)\s*=\s*["']?https?:""",
        text[: text.index("<body>")].replace(text[text.index("<script>") : text.index("</script>")], ""),
    )
    assert not re.search(r"""<(script|link|img)[^>]+(src|href)\s*=""", body)
    for words in ("By hand", "Would you believe it?", "KRW-AAA", "stop", "exit rule", "buy and hold", "2 closed trades"):
        assert words in body, words


def call(*arguments: str) -> Called:
    command = next(each for each in commands if each.name == arguments[0])
    return CliRunner().invoke(command, list(arguments[1:]), catch_exceptions=False)


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    own = tmp_path / "own"
    (own / "strategies").mkdir(parents=True)
    (own / "strategies" / "mine.yaml").write_text(dedent(GOOD.replace("[KRW-BTC]", "all")))
    for name, value in {"MDMS_HOME": str(tmp_path), "MDMS_EXCHANGE_URL": "sandbox", "MDMS_EXTENSIONS": str(own)}.items():
        monkeypatch.setenv(name, value)
    warehouse(tmp_path, {f"KRW-C{i}": walk(i, 900, holes=0.05) for i in range(3)}, "1h")
    done = call("backtest", "mine", "--set", "fast=8", "--report", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["record"]["params"] == {"fast": 8.0, "slow": 20.0}
    assert Path(told["report"]).stat().st_size > 1e6
    assert all(not finding["differences"] for finding in told["checks"].values())
    assert "bit for bit" in call("backtest", "--again", told["run"]).output
    assert json.loads(call("backtests", "--json").stdout)[0]["run"] == told["run"]
    swept = json.loads(call("sweep", "mine", "--train", "10", "--test", "5", "--json").stdout)
    assert len(swept["sweep"]["trials"]) == 9
    assert len(swept["walk_forward"]["windows"]) >= 4
    for arguments, said in (
        (("backtest", "mien"), "did you mean mine"),
        (("backtest", "mine", "--set", "fst=8"), "did you mean fast"),
        (("backtest", "mine", "--set", "fast"), "write it like fast=20"),
        (("backtest", "mine", "--from", "2030-01-01"), "the period holds no candle"),
        (("backtest", "mine", "--from", "someday"), "write it like 2026-11-22"),
        (("backtest", "--again", "nothing"), "no run 'nothing' is kept"),
        (("backtest", "pullback"), "no 4h candles"),
    ):
        failed = call(*arguments)
        assert failed.exit_code == 1, arguments
        assert said in failed.output
