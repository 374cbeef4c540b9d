"""A running process answers others: as any other way would, to the bit; and nobody who asks can hold it up."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mdms_pipeline.calculate.run import calculate
from mdms_pipeline.live import ask, serve
from mdms_pipeline.live.ask import BY_LIVE, asked_bars, asked_signal
from mdms_pipeline.live.desk import Answer, Desk
from mdms_pipeline.live.lane import candles_of
from mdms_pipeline.live.parity import bits_of
from mdms_pipeline.live.serve import folder_of, reply, serving
from mdms_pipeline.live_screen import look_heard, wanted
from mdms_pipeline.live_watch import screen_named, watches_of
from mdms_pipeline.market import HOUR, PRICES_AND_AMOUNTS, TIMEFRAMES, Candles, Instant, instant
from mdms_pipeline.screen.judge import Outcome
from mdms_pipeline.vocabulary import indicator_of
from mdms_pipeline_tests.live import rules
from mdms_pipeline_tests.live.stream import Simulation, Steady, Trouble
from mdms_pipeline_tests.live.test_parity import simulation

CALM = Trouble(cut=0.0, late=0.0)


@contextmanager
def answering(monkeypatch: pytest.MonkeyPatch, found: Simulation) -> Iterator[Counter[str]]:
    """Whoever asks is answered by the simulation's process, without a socket; what was answered, counted."""
    counts = Counter[str]()

    def ask_it(home: Path, question: dict[str, Any], seconds: float = 0.0) -> Any:
        assert found.live is not None
        said = reply(found.live.engine, found.clock(), json.loads(json.dumps(question)))
        counts["none" if said is None else "no" if "no" in said else question["ask"]] += 1
        return None if said is None or "no" in said else json.loads(json.dumps(said))

    monkeypatch.setattr(ask, "ask", ask_it)
    yield counts


def rest(found: Simulation) -> Callable[[str, str, Instant], Candles]:
    """What the exchange tells from a bar on."""

    def more(symbol: str, name: str, last: Instant) -> Candles:
        told = found.sandbox.candles(symbol, TIMEFRAMES[name], int(found.clock()) + 1, 1_000)
        return told[told.opened_at >= last]

    return more


def bits(answer: Answer) -> tuple[object, ...]:
    return answer.opened_at, [
        [(said.rule, said.answer, said.before, bits_of(said.values)) for said in told] for told in (answer.said, answer.forming)
    ]


@pytest.mark.parametrize("no_trade", ["skip", "flat"])
def test_a_signal_is_that_of_the_warehouse_and_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_trade: str) -> None:
    found = simulation(tmp_path, "1h,4h", 11, MDMS_NO_TRADE=no_trade)
    found.trouble = CALM
    found.collect()
    strategies = [
        [watch for watch in found.watches if (watch.source, watch.name) == name]
        for name in dict.fromkeys((watch.source, watch.name) for watch in found.watches)
    ]
    desk, compared = Desk(found.warehouse, found.clock), Counter[bool]()

    def compare() -> None:
        mine, symbol = found.random.choice(strategies), found.random.choice(found.settings.symbols)
        assert found.live is not None
        shown = {name: (lane.shown.copy(), set(lane.changed), lane.said.copy()) for name, lane in found.live.engine.lanes.items()}
        told = asked_signal(tmp_path, mine, symbol)
        for name, lane in found.live.engine.lanes.items():  # nothing has changed by being asked
            assert all(np.array_equal(a, b) for a, b in zip(shown[name][::2], (lane.shown, lane.said), strict=True))
            assert shown[name][1] == lane.changed
        if told is not None:
            assert told.way == BY_LIVE
            assert bits(told) == bits(desk.ask(mine, symbol, rest(found)))
            compared[bool(told.forming)] += 1

    with answering(monkeypatch, found) as counts:
        found.look = compare
        found.listen(int(found.clock()) + 16 * HOUR)
    assert compared[True] > 20
    assert counts["no"] == 0


def test_another_rule_is_not_answered_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A strategy that was edited since, a market that is not watched, a question that is none."""
    found = simulation(tmp_path, "1h", 12)
    found.trouble = CALM
    found.collect()
    mine = [watch for watch in found.watches if watch.name == "crossing"]
    with answering(monkeypatch, found) as counts:
        found.listen(int(found.clock()) + 2 * HOUR)
        assert asked_signal(tmp_path, mine, "KRW-BTC") is not None
        assert asked_signal(tmp_path, [replace(watch, stable=watch.stable + 1) for watch in mine], "KRW-BTC") is None
        assert asked_signal(tmp_path, [replace(watch, symbols=frozenset(["KRW-BTC"])) for watch in mine], "KRW-BTC") is None
        assert asked_signal(tmp_path, mine, "KRW-SOL") is None
        assert asked_bars(tmp_path, ["4h", "1h"], ["KRW-BTC", "KRW-SOL"]) is None
        assert asked_bars(tmp_path, ["4h"], ["KRW-BTC"]) is None
        bars = asked_bars(tmp_path, ["4h", "1h"], ["KRW-BTC"])
        assert bars is not None
        assert bars.timeframe == "1h"
        assert found.live is not None
        found.live.engine.lanes["1h"].hold(["KRW-BTC"], True)
        assert asked_bars(tmp_path, ["1h"], ["KRW-BTC"]) is None
        assert asked_signal(tmp_path, mine, "KRW-BTC") is None
    assert counts["no"] == 7


SCREEN = """
    title: Rising
    timeframe: {frame}
    where: [close > ema(5), "volume < 3 * sma(volume, 5)"]
    rank: {{expression: value, direction: desc}}
    columns: [rsi(3), low, high]
"""


WAYS = [("1h", "1h", "skip"), ("1h", "1h", "flat"), ("4h", "1h", "skip"), ("1d", "4h", "flat"), ("1d", "1d", "skip")]


@pytest.mark.parametrize(("frame", "heard", "no_trade"), WAYS)
def test_a_screen_is_that_over_the_exchanges_candles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frame: str, heard: str, no_trade: str
) -> None:
    """Also where its bars are put together of finer ones, and where the last closed bar is not stored yet."""
    given = rules.settings(tmp_path, heard, MDMS_NO_TRADE=no_trade)
    (tmp_path / "own" / "screens" / "mine.yaml").write_text(SCREEN.format(frame=frame).replace("\n    ", "\n").lstrip("\n"))
    given = replace(given, symbols=("KRW-BTC", "KRW-XRP", "KRW-SHIB"), timeframes=tuple({heard, frame}), history=90)
    start, hours = instant("2026-11-05T00:40:20"), 60 if frame == "1d" else 24
    found = Simulation(given, watches_of(given, ["crossing"], []), Steady(start), 13, replace(CALM, step=(hours * 25, hours * 100)))
    found.collect()
    screen, collected_at, seen = screen_named(given, "mine"), [start], Counter[str]()
    calls = [indicator_of(call) for call in screen.calls]

    def compare() -> None:
        if found.clock() > collected_at[0] + hours / 6 * HOUR:
            collected_at[0] = int(found.clock())
            with ThreadPoolExecutor(1) as beside:  # an event loop of its own
                beside.submit(found.collect).result()
        with found.warehouse.read() as connection:
            bars = asked_bars(tmp_path, *wanted(connection, screen))
            if bars is None:
                return
            looked = look_heard(connection, screen, bars)
        assert (bars.timeframe, looked.way, looked.guessed) == (heard, BY_LIVE, {})
        assert set(bars.markets) == set(given.symbols)
        for row in looked.result.rows:
            seen[str(row.outcome)] += 1
            if row.outcome is Outcome.NOT_KNOWN:
                continue
            candles = found.sandbox.candles(row.symbol, screen.timeframe, int(found.clock()) + 1, 5_000)
            candles = candles[candles.opened_at >= first[row.symbol]]
            known = {name: getattr(candles, name) for name in PRICES_AND_AMOUNTS} | calculate(calls, candles)
            shown = {said: value for clause in row.clauses for said, value in clause.values} | dict(row.columns)
            assert candles.opened_at[-1] + (row.age or 0) * (screen.timeframe.seconds or 0) == screen.timeframe.floor(int(found.clock()))
            assert [shown[name] for name in ("close", "low", "high")] == [known[name][-1] for name in ("close", "low", "high")]
            assert row.rank in (None, known["value"][-1])
            if no_trade == "skip":  # else slots without a trade are among the bars
                assert [shown["ema(5)"], shown["rsi(3)"]] == [known["ema_5"][-1], known["rsi_3"][-1]]
            seen["stored" if looked.behind == 0 else "behind"] += 1

    with found.warehouse.read() as connection:
        oldest = connection.execute("SELECT symbol, epoch(min(opened_at))::BIGINT FROM candles WHERE timeframe = ? GROUP BY 1", [frame])
        first = dict(oldest.fetchall())
    with answering(monkeypatch, found) as counts:
        found.look = compare
        found.listen(start + hours * HOUR)
    assert counts["bars"] > 15
    assert seen[Outcome.PASSED] + seen[Outcome.FAILED] > 20


def test_bars_come_back_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = simulation(tmp_path, "1h", 14)
    found.trouble = CALM
    found.collect()
    compared = Counter[bool]()

    def compare() -> None:
        assert found.live is not None
        lane = found.live.engine.lanes["1h"]
        bars = asked_bars(tmp_path, ["1h"], lane.symbols)
        for symbol, market in bars.markets.items() if bars is not None else ():
            held, last = lane.forming[lane.tape.row[symbol]], lane.last[lane.tape.row[symbol]]
            for ours, theirs in ((market.forming, held), (market.last, last)):
                assert (ours is None) == (theirs is None)
                if ours is not None and theirs is not None:
                    assert candles_of([ours]).close.tobytes() == candles_of([theirs]).close.tobytes()
                    assert (ours.opened_at, ours.candle, ours.traded) == (theirs.opened_at, theirs.candle, theirs.traded)
                    compared[True] += 1

    with answering(monkeypatch, found):
        found.look = compare
        found.listen(int(found.clock()) + 8 * HOUR)
    assert compared[True] > 50


# ---- the socket


class Standing(SimpleNamespace):
    """As much of a process as the socket needs; it answers `{"ask": "bars"}` on an engine without lanes by a no, and `echo` by an echo."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**{
            "engine": SimpleNamespace(lanes={}), "clock": time.time, "quiet": True, "health": SimpleNamespace(state="live"), **given
        })  # fmt: skip


@pytest.fixture(autouse=True)
def echoing(monkeypatch: pytest.MonkeyPatch) -> None:
    true = serve.reply

    def with_echo(engine: Any, now: float, question: Any) -> Any:
        return question if question["ask"] == "echo" else true(engine, now, question)

    monkeypatch.setattr(serve, "reply", with_echo)


def served(home: Path, work: Callable[[], Coroutine[Any, Any, None]], live: Any = None, notices: list[str] | None = None) -> None:
    """Do `work` while a process answers."""

    async def main() -> None:
        async with serving(home, live or Standing(), (notices if notices is not None else []).append), asyncio.timeout(30):
            await work()

    asyncio.run(main())


async def asked(home: Path, **question: Any) -> Any:
    return await asyncio.to_thread(ask.ask, home, {"ask": "echo", **question})


def sockets(home: Path) -> list[Path]:
    return sorted(folder_of(home).glob("*.sock"))


def test_a_question_and_an_answer(tmp_path: Path) -> None:
    async def work() -> None:
        assert await asked(tmp_path, x=0.1 + 0.2, name="비트코인") == {"ask": "echo", "x": 0.1 + 0.2, "name": "비트코인"}
        assert await asyncio.to_thread(asked_bars, tmp_path, ["1h"], ["KRW-BTC"]) is None
        (path,) = sockets(tmp_path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    served(tmp_path, work)
    assert sockets(tmp_path) == []
    assert ask.ask(tmp_path, {"ask": "echo"}) is None


def test_a_home_whose_path_is_too_long_for_a_socket(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 50)

    async def work() -> None:
        assert await asked(home, x=1) == {"ask": "echo", "x": 1}

    served(home, work)


def test_where_no_socket_can_be_made_that_is_told(tmp_path: Path) -> None:
    (tmp_path / "live").write_text("a file")
    notices = list[str]()

    async def work() -> None:
        assert await asked(tmp_path) is None

    served(tmp_path, work, notices=notices)
    assert "others are not answered from RAM" in notices[0]


def test_what_a_killed_process_left_behind_does_no_harm(tmp_path: Path) -> None:
    folder_of(tmp_path).mkdir()
    left = folder_of(tmp_path) / "1.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(left))
    assert ask.ask(tmp_path, {"ask": "echo"}) is None

    async def work() -> None:
        assert await asked(tmp_path) == {"ask": "echo"}
        assert left not in sockets(tmp_path)

    served(tmp_path, work)


def test_one_that_hangs_leaves_the_others_their_time(tmp_path: Path) -> None:
    folder_of(tmp_path).mkdir()
    with socket.socket(socket.AF_UNIX) as hangs:
        hangs.bind(str(folder_of(tmp_path) / "0.sock"))
        hangs.listen()

        async def work() -> None:
            assert len(sockets(tmp_path)) == 2
            assert await asked(tmp_path) == {"ask": "echo"}

        served(tmp_path, work)
        assert [path.name for path in sockets(tmp_path)] == ["0.sock"]  # it may come to itself
        assert ask.ask(tmp_path, {"ask": "echo"}, 0.2) is None


def test_two_processes_of_one_home(tmp_path: Path) -> None:
    """The one that can say answers, whichever that is; the end of one leaves the other."""

    async def work() -> None:
        async with serving(tmp_path, Standing(quiet=False, health=SimpleNamespace(state="closing the gap")), print):  # type: ignore[arg-type]
            assert len(sockets(tmp_path)) == 2
            assert await asked(tmp_path) == {"ask": "echo"}
        assert await asked(tmp_path) == {"ask": "echo"}

    served(tmp_path, work)


def test_a_process_that_is_busy_says_so_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "PATIENCE", 0.05)

    async def work() -> None:
        (path,) = sockets(tmp_path)
        said = await asyncio.to_thread(ask._asked, path, b'{"ask": "echo"}\n', 5.0)
        assert json.loads(said) == {"no": "closing the gap"}
        assert await asked(tmp_path) is None

    served(tmp_path, work, Standing(quiet=False, health=SimpleNamespace(state="closing the gap")))


RUBBISH = [b"", b"\n", b"x\n", b"[]\n", b"null\n", b"{}\n", b'{"ask": "bars"}\n', b'{"ask": ["signal"]}\n', b"\xff\xfe\n", b"no line's end",
           b'{"ask": "signal", "symbol": 1, "timeframe": [], "watches": 3}\n', b"y" * 200_000 + b"\n", b"[" * 50_000 + b"\n"]  # fmt: skip


@pytest.mark.parametrize("sent", RUBBISH)
def test_rubbish_is_answered_by_a_no_or_by_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(serve, "SECONDS", 0.1)

    async def work() -> None:
        (path,) = sockets(tmp_path)
        try:
            said = await asyncio.to_thread(ask._asked, path, sent, 5.0)
        except OSError:
            said = b""
        assert said == b"" or "no" in json.loads(said)
        assert await asked(tmp_path) == {"ask": "echo"}

    served(tmp_path, work)


@pytest.mark.parametrize("who", [(True, False), (True,), (False,)], ids=["both", "silent", "greedy"])
def test_whoever_says_nothing_or_takes_nothing_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: tuple[bool, ...]) -> None:
    """As many as may come at a time come and hang; meanwhile nobody waits for them, and afterwards there is room again."""
    monkeypatch.setattr(serve, "SECONDS", 0.2)

    async def work() -> None:
        (path,) = sockets(tmp_path)
        loop, turns = asyncio.get_running_loop(), 0

        def connected(sends: bytes) -> socket.socket:
            line = socket.socket(socket.AF_UNIX)
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            line.connect(str(path))
            line.sendall(sends)
            return line

        greedy = json.dumps({"ask": "echo", "x": "y" * 60_000}).encode() + b"\n"
        lines = [connected(b"" if who[i % len(who)] else greedy) for i in range(3 * serve.MOST)]
        until = loop.time() + 1.0
        while loop.time() < until:
            await asyncio.sleep(0)
            turns += 1
        assert turns > 100  # the loop goes on
        assert await asked(tmp_path) == {"ask": "echo"}
        for line in lines:
            line.close()

    served(tmp_path, work)


def test_no_handle_stays_open(tmp_path: Path) -> None:
    async def work() -> None:
        await asked(tmp_path)
        before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
        for _ in range(20):
            assert await asked(tmp_path) == {"ask": "echo"}
        await asyncio.sleep(0.05)
        assert (len(os.listdir("/proc/self/fd")) if before else 0) <= before

    served(tmp_path, work)


def test_answers_take_a_small_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks without a pause waits for its turn: what an answer took is waited for many times over."""
    slept = list[float]()
    true = asyncio.sleep

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await true(0)

    monkeypatch.setattr(serve.asyncio, "sleep", sleep)
    took = [0.0]

    def slow(engine: Any, now: float, question: Any) -> Any:
        began = time.perf_counter()
        while time.perf_counter() < began + 0.005:
            pass
        took[0] += time.perf_counter() - began
        return question

    monkeypatch.setattr(serve, "reply", slow)

    async def work() -> None:
        for _ in range(5):
            assert await asked(tmp_path) == {"ask": "echo"}

    served(tmp_path, work)
    assert sum(slept) >= serve.SHARE * took[0] > 0
