"""The view of `mdms live`: it fits every terminal, shows what is nearest first, and says what is wrong."""

from __future__ import annotations

import asyncio
import io
import math
import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from mdms_pipeline import cli_live, show
from mdms_pipeline.live.deliver import Delivery, Standing
from mdms_pipeline.live.journal import Journal
from mdms_pipeline.live.run import Live
from mdms_pipeline.live.watch import Watch
from mdms_pipeline.live_view import Answer, Market, Picture, View, drawn, holding, nearest_first
from mdms_pipeline.market import DAY, HOUR
from mdms_pipeline.rules import FALSE, TRUE, UNKNOWN, Rule, parse
from mdms_pipeline.store import Warehouse
from mdms_pipeline.vocabulary import vocabulary
from mdms_pipeline_tests.live.made import PATIENCE, signal
from mdms_pipeline_tests.support import NOW, Clock, candles, page, put, settings

NAMES = {"KRW-BTC": "비트코인", "KRW-BASIC123": "아주긴이름을가진어떤토큰입니다", "KRW-A": ""}
RULES = ("breakout entry 4h", "trend_following exit 1d", "volatility_squeeze where 1h")


def market(symbol: str, *answers: Answer | None, price: float = 1234.5, change: float = 0.01) -> Market:
    return Market(symbol, NAMES.get(symbol, ""), price, change, answers)


def picture(markets: int = 3, rules: int = 3, seed: int = 0, **changes: object) -> Picture:
    """Any picture at all."""
    dice = random.Random(seed)

    def answer() -> Answer | None:
        of = dice.randint(1, 12)
        return dice.choice([None, Answer(dice.randint(0, of), of, dice.choice([-1, 0, 1]), dice.choice([-1, 0, 1]))])

    symbols = [*NAMES, *(f"KRW-C{i}" for i in range(markets))][:markets]
    prices = [math.nan, 1e-8, 0.0123, 1.5, 99.99, 1e9]
    made = Picture(
        NOW, "live", "", 0.4, 10**6, 12, 0.0031, tuple((RULES * rules)[:rules]), markets,
        tuple(market(s, *(answer() for _ in range(rules)), price=dice.choice(prices), change=dice.gauss(0, 1)) for s in symbols),
        tuple(signal(i, dice.choice(symbols or ["KRW-BTC"]), provisional=i % 2 == 0, revision=i % 3) for i in range(20)), NAMES,
        (Standing("table", sent=12, waiting=3), Standing("webhook a.example 1f2e3d", error="answered 503 " * 20, dropped=2)),
        ("x" * 300,) * 4,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def lines(shown: Picture, width: int, height: int) -> list[str]:
    """What a terminal of that size shows."""
    out = io.StringIO()
    Console(file=out, width=width, height=height, color_system=None, force_terminal=True).print(drawn(shown, width, height))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [20, 50, 80, 100, 160, 400])
@pytest.mark.parametrize("height", [5, 24, 50])
def test_it_fits_every_terminal(width: int, height: int) -> None:
    for seed, (markets, rules) in enumerate([(0, 0), (1, 1), (3, 3), (40, 9), (300, 50)]):
        found = lines(picture(markets, rules, seed), width, height)
        assert len(found) == height
        assert all(cell_len(line) <= width for line in found)


def test_columns_stay_in_line_beside_korean_names() -> None:
    found = lines(picture(3, 3), 120, 24)
    rows = [line for line in found if line.startswith("KRW-")][:3]
    ends = {cell_len(line[: line.index("%") + 1]) for line in rows}
    assert len(ends) == 1
    assert "비트코인" in rows[0]


def test_80_by_24_has_room_for_markets_signals_and_what_is_wrong() -> None:
    found = lines(picture(120, 3), 80, 24)
    assert sum(line.startswith("KRW-") for line in found) >= 8
    assert sum(" > " in line for line in found) >= 3
    assert any("and 1" in line and "more" in line for line in found)
    assert any("webhook a.example 1f2e3d: answered 503" in line for line in found)
    assert all(any(rule in line for line in found) for rule in RULES)


def test_what_holds_and_what_is_near_comes_first() -> None:
    yes, near, far, unknown = (
        Answer(4, 4, TRUE, TRUE),
        Answer(3, 4, FALSE, FALSE),
        Answer(0, 4, FALSE, FALSE),
        Answer(0, 4, UNKNOWN, UNKNOWN),
    )
    rising = Answer(3, 4, FALSE, TRUE)
    ordered = [(yes, yes), (far, yes), (rising, far), (near, unknown), (far, None)]
    values = np.array([[-np.inf if answer is None else answer.nearness for answer in pair] for pair in ordered]).T
    for seed in range(20):
        shuffled = np.random.default_rng(seed).permutation(len(ordered))
        assert shuffled[nearest_first(values[:, shuffled])].tolist() == list(range(len(ordered)))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(4, 4, TRUE, TRUE), "yes"),
        (Answer(4, 4, TRUE, FALSE), "yes-"),
        (Answer(3, 4, FALSE, FALSE), "3/4"),
        (Answer(3, 4, FALSE, TRUE), "3/4+"),
        (Answer(3, 4, UNKNOWN, UNKNOWN), "?"),
        (None, ""),
    ],
)
def test_how_a_rule_is_said(answer: Answer | None, said: str) -> None:
    found = lines(replace(picture(1, 1), markets=(market("KRW-BTC", answer),)), 80, 24)
    row = next(line for line in found if line.startswith("KRW-BTC"))
    assert row.split("%")[1].strip() == said


def test_signals_of_closed_bars_are_not_pushed_out_by_those_of_forming_ones() -> None:
    forming = tuple(signal(i, provisional=True, emitted_at=NOW - i) for i in range(50))
    closed = tuple(signal(i, "KRW-ETH", emitted_at=NOW - 100 - i) for i in range(50))
    found = [line for line in lines(replace(picture(120, 3), recent=(*forming, *closed)), 80, 24) if " > " in line]
    assert sum("forming" in line for line in found) == len(found) // 2
    assert ["KRW-ETH" in line for line in found] == sorted("KRW-ETH" in line for line in found)  # newest first
    assert len([line for line in lines(replace(picture(120, 3), recent=forming), 80, 24) if " > " in line]) == len(found)


def test_it_says_what_is_wrong() -> None:
    shown = "\n".join(lines(picture(1, 1, state="waiting for the stream", reason="cut: no PONG", silence=500.0), 100, 24))
    for words in ("waiting for the stream", "cut: no PONG", "last message 8 min ago", "3 wait", "2 lost"):
        assert words in shown
    assert "; 12 of 200 MB held" in "\n".join(lines(picture(1, 1, held=12 * 2**20, allowed=200 * 2**20), 120, 24))
    assert "; 1 of 200 MB held" in "\n".join(lines(picture(1, 1, held=2**18, allowed=200 * 2**20), 120, 24))
    assert "no message yet" in "\n".join(lines(picture(1, 1, silence=math.nan), 100, 24))


def test_no_more_than_the_last_close_is_needed_to_say_how_near_a_rule_is() -> None:
    rule = parse("close > 10 and volume > 5 and (close < 3 or volume < 100)", vocabulary())
    assert isinstance(rule, Rule)
    watch = Watch("screen", "mine", "where", "1h", (rule, rule))
    columns = {"close": np.array([[0.0, 0, 0], [11, 9, np.nan]]), "volume": np.array([[0.0, 0, 0], [6, 200, 50]])}
    held, of = holding(watch, columns)
    assert (held.tolist(), of) == ([6.0, 2.0, 4.0], 6)


@pytest.fixture
def starting(warehouse: Warehouse, tmp_path: Path) -> Iterator[Live]:
    """A process before it has loaded its two markets; it will know nothing of a third."""
    made = candles(NOW // 3600 * 3600 - 40 * 3600, 40)
    put(warehouse, page("KRW-BTC", made), page("KRW-ETH", made))
    rule = parse("close > 1 and close > 1e12", vocabulary())
    assert isinstance(rule, Rule)
    watches = [
        Watch("screen", "mine", "where", "1h", (rule,)),
        Watch("screen", "btc", "where", "1h", (rule,), symbols=frozenset(["KRW-BTC"])),
    ]
    with closing(Delivery(Journal(tmp_path / "signals"))) as delivery:
        found = Live(watches, warehouse, ["KRW-BTC", "KRW-ETH", "KRW-GONE"], lambda *_: None, Clock(), delivery)  # type: ignore[arg-type]
        yield found


@pytest.fixture
def live(starting: Live) -> Live:
    starting.begin()
    return starting


def test_a_picture_of_a_process(live: Live) -> None:
    view = View(live, NAMES)
    view.notices.append("the socket was slow")
    found = view.picture(NOW, 24)
    near = Answer(1, 2, FALSE, FALSE)
    assert found.rules == ("mine where 1h", "btc where 1h")
    shown = {one.symbol: (one.price, one.answers) for one in found.markets}
    assert shown["KRW-BTC"] == (candles(NOW // 3600 * 3600 - 40 * 3600, 40).close[-1], (near, near))
    assert shown["KRW-ETH"][1] == (near, None)
    assert (found.count, [one.symbol for one in view.picture(NOW, 1).markets]) == (3, ["KRW-BTC"])
    assert found.troubles[0] == "the socket was slow"
    assert "KRW-GONE" in found.troubles[1]
    assert len(lines(found, 80, 24)) == 24


def test_today_is_since_the_close_of_the_utc_day_before_once_that_is_stored(live: Live, warehouse: Warehouse) -> None:
    """From nine o'clock in Korea on, as the exchange counts: a day that is not stored to its end is not compared with."""
    made, midnight = candles(NOW // 3600 * 3600 - 40 * 3600, 40), NOW // DAY * DAY
    before = made.close[made.opened_at < midnight][-1]
    view = View(live, NAMES)
    assert before != made.close[-1]
    today = {one.symbol: one.change for one in view.picture(NOW, 24).markets}
    assert today["KRW-BTC"] == today["KRW-ETH"] == made.close[-1] / before - 1
    assert math.isnan(today["KRW-GONE"])
    tomorrow = midnight + DAY + 60
    live.clock.now = tomorrow  # type: ignore[attr-defined]
    assert math.isnan(view.picture(tomorrow, 24).markets[0].change)
    asyncio.run(live._follow())
    assert math.isnan(view.picture(tomorrow, 24).markets[0].change)
    rest = candles(int(made.opened_at[-1]) + HOUR, (midnight + DAY - int(made.opened_at[-1])) // HOUR - 1)
    put(warehouse, page("KRW-BTC", rest))
    asyncio.run(live._follow())
    after = {one.symbol: one.change for one in view.picture(tomorrow, 24).markets}
    assert after["KRW-BTC"] == made.close[-1] / rest.close[-1] - 1
    assert math.isnan(after["KRW-ETH"])


def test_what_was_drawn_before_anything_was_loaded_does_not_stay(starting: Live) -> None:
    view = View(starting, NAMES)
    before = {one.symbol: one.answers[0] for one in view.picture(NOW, 24).markets}
    assert before["KRW-BTC"] == Answer(0, 2, UNKNOWN, UNKNOWN)
    starting.begin()
    assert {one.symbol: one.answers[0] for one in view.picture(NOW, 24).markets}["KRW-BTC"] == Answer(1, 2, FALSE, FALSE)


def test_other_markets_are_shown_once_they_are_watched(live: Live) -> None:
    view = View(live, {})
    assert view.picture(NOW, 24).count == 3
    live.engine, live.names = live.engine.of(["KRW-ETH"]), {"KRW-ETH": "이더리움"}
    found = view.picture(NOW, 24)
    assert [(one.symbol, one.name) for one in found.markets] == [("KRW-ETH", "이더리움")]
    assert found.markets[0].price == candles(NOW // 3600 * 3600 - 40 * 3600, 40).close[-1]


def test_it_is_drawn_on_a_screen_of_its_own_which_is_left_behind(
    live: Live, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(show, "OUT", Console(file=out, width=80, height=24, force_terminal=True))
    monkeypatch.setattr(cli_live, "LOOKS", 100)

    async def watch() -> None:
        with cli_live._shown(live, warehouse, settings(warehouse.path.parent)) as notice:
            notice("the socket was slow")
            async with asyncio.timeout(PATIENCE):
                while "the socket was slow" not in out.getvalue():
                    await asyncio.sleep(0.01)

    asyncio.run(watch())
    begun, left = "\x1b[?1049h", "\x1b[?1049l"  # of the alternate screen
    assert out.getvalue().index(begun) < out.getvalue().index("KRW-BTC") < out.getvalue().rindex(left)
    assert "\x1b[2J" not in out.getvalue().split(begun)[1].split("KRW-BTC", 1)[1]  # never cleared between two pictures: no flicker
    assert "0 signals, 0 provisional ones, from 0 messages" in capsys.readouterr().out
