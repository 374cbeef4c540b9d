"""What our client waits for, what it tells of it, and that processes which ask one exchange wait for each other."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from mdms_pipeline.collect import wire
from mdms_pipeline.collect.budget import MemoryBudget
from mdms_pipeline.collect.client import Exchange, connect
from mdms_pipeline.sandbox import Sandbox
from mdms_pipeline.sandbox import served as served_at
from mdms_pipeline_tests.support import NOW, virtually

GOOD, EMPTY = (200, "[]"), (429, "Too many API requests.")


def blocked(seconds: int) -> tuple[int, str]:
    return 418, f'{{"error":{{"message":"Your IP is blocked for {seconds} seconds."}}}}'


def ask(answers: Sequence[tuple[int, str]], readers: int = 1) -> tuple[list[str], list[float], BaseException | None]:
    """What is told, when requests leave (s from the start), and the error, if these are the answers; the last one for ever after."""
    told: list[str] = []
    left: list[float] = []
    rest = list(answers)

    async def main(passed: Callable[[], float]) -> BaseException | None:
        def answer(_: httpx.Request) -> httpx.Response:
            left.append(passed())
            status, body = rest.pop(0) if len(rest) > 1 else rest[0]
            return httpx.Response(status, text=body)

        http = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://exchange")
        budget = MemoryBudget(lambda: NOW + passed())
        async with Exchange(http, lambda: NOW + passed(), budget=budget, notice=told.append) as exchange:
            done = await asyncio.gather(*(exchange.candles("KRW-BTC", "1h", NOW, 1) for _ in range(readers)), return_exceptions=True)
        return next((result for result in done if isinstance(result, BaseException)), None)

    return told, left, virtually(main)


# ---- told


def test_short_waits_for_the_pace_are_not_told() -> None:
    told, left, error = ask([GOOD], readers=30)
    assert (told, error, len(left)) == ([], None, 30)
    assert left[-1] > 2.5


def test_a_429_is_told_once_and_waited_out() -> None:
    told, left, error = ask([EMPTY, GOOD])
    assert told == ["429, too many candles requests: waiting for the exchange's next second, then 4.5 requests/s"]
    assert error is None
    assert left[1] - left[0] == pytest.approx(1.0, abs=0.01)


def test_a_429_without_end_is_an_error_in_the_end() -> None:
    told, left, error = ask([EMPTY])
    assert isinstance(error, wire.TooMany)
    assert len(left) == 6
    assert len(told) == 1  # the same is told again after some time only


def test_a_short_block_is_waited_out_by_all_and_told_once() -> None:
    told, left, error = ask([blocked(12), GOOD], readers=8)
    assert told == ["blocked (418) until 2026-11-20 09:30:32 UTC = 2026-11-20 18:30:32 KST: waiting 12 s"]
    assert error is None
    assert left[1] == pytest.approx(12.0, abs=0.01)
    assert len(left) == 9


def test_a_long_block_ends_it_and_says_until_when() -> None:
    told, left, error = ask([blocked(600), GOOD], readers=8)
    assert isinstance(error, wire.Blocked)
    assert str(error) == (
        "http://exchange has blocked this address until 2026-11-20 09:40:20 UTC = 2026-11-20 18:40:20 KST, nothing is asked before: "
        "answered 418, blocked: Your IP is blocked for 600 seconds."
    )
    assert error.seconds == 600
    assert len(left) == 1
    assert told == []


def test_a_block_that_does_not_say_how_long_is_taken_for_a_minute() -> None:
    _, left, error = ask([(418, "I'm a teapot"), GOOD])
    assert isinstance(error, wire.Blocked)
    assert (error.seconds, len(left)) == (60, 1)


def test_a_long_pause_before_another_try_is_told() -> None:
    told, left, error = ask([(503, "<html>maintenance</html>")])
    assert isinstance(error, wire.ServerDown)
    assert len(left) == 6
    assert [text.split(" in ")[0] for text in told] == ["answered 503: <html>maintenance</html>: try 5 of 6"]


# ---- shared


@pytest.fixture
def served() -> Iterator[tuple[Sandbox, str]]:
    """A sandbox with the real limits on a loopback port, and its address."""
    sandbox = Sandbox(limits=True)
    with served_at(sandbox) as url:
        yield sandbox, url


ASK = """
import asyncio, sys, time
from pathlib import Path
from mdms_pipeline.collect import wire
from mdms_pipeline.collect.client import connect

async def main(url, folder, seconds):
    async with connect(url, budget_dir=Path(folder)) as exchange:
        print("ready", flush=True)
        sys.stdin.readline()
        until = time.monotonic() + float(seconds)

        async def reader():
            while time.monotonic() < until:
                await exchange.candles("KRW-BTC", "1d", int(time.time()), 1)

        try:
            await asyncio.gather(*(reader() for _ in range(6)))
        except wire.Blocked as error:
            print(error)

asyncio.run(main(*sys.argv[1:]))
"""


def asking(url: str, folder: Path, seconds: float) -> subprocess.Popen[str]:
    """A process that asks as much as it may for so many seconds, once it reads a line."""
    command = [sys.executable, "-c", ASK, url, str(folder), str(seconds)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_together_stay_under_the_limit(served: tuple[Sandbox, str], tmp_path: Path) -> None:
    sandbox, url = served
    processes = [asking(url, tmp_path, 3.0) for _ in range(2)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate()[0] for process in processes] == ["", ""]
    statuses = Counter(entry.status for entry in sandbox.log)
    took = sandbox.log[-1].at - sandbox.log[0].at
    assert statuses[418] == 0
    assert statuses[429] <= 1  # each for itself would have been refused every second request
    assert 15 <= statuses[200] <= 10 * (took + 2)


def test_a_block_holds_for_processes_that_start_later(served: tuple[Sandbox, str], tmp_path: Path) -> None:
    sandbox, url = served
    sandbox.limits.blocked_until = time.time() + 3_600

    async def first() -> None:
        async with connect(url, budget_dir=tmp_path) as exchange:
            await exchange.markets()

    with pytest.raises(wire.Blocked, match="nothing is asked before") as error:
        asyncio.run(first())
    assert [entry.status for entry in sandbox.log] == [418]
    later = asking(url, tmp_path, 1.0)
    assert later.communicate("go\n")[0].strip() == str(error.value)
    assert [entry.status for entry in sandbox.log] == [418]  # it did not ask
