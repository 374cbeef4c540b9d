"""As fast as is allowed, and never refused: our client against a counting exchange, in virtual time."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import pytest

from mdms_pipeline.collect import wire
from mdms_pipeline.collect.client import Exchange
from mdms_pipeline.sandbox.limits import Limits, remaining_req
from mdms_pipeline_tests.support import virtually

STEADY = (5.0, 35.0)  # s: after what is learnt at the beginning
Header = Callable[[str, int], str | None]


@dataclass
class Counting:
    """An exchange that counts: so many requests in each of its seconds, which begin `phase` later than ours."""

    allowed: int = 10
    phase: float = 0.0
    header: Header = remaining_req
    way: float = 0.02  # s, to the exchange and back again
    jitter: float = 0.0  # s more on the way there, at most
    change: tuple[float, int] | None = None  # from then on so many are allowed
    answers: list[tuple[float, int]] = field(default_factory=list)  # when, status

    def __post_init__(self) -> None:
        self.limits = Limits({"candles": self.allowed})
        self.random = random.Random(7)

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        time = asyncio.get_running_loop().time
        await asyncio.sleep(self.way + self.random.random() * self.jitter)
        if self.change and time() >= self.change[0]:
            self.limits.per_second["candles"] = self.change[1]
        verdict = self.limits.ask("candles", 1_000 + time() + self.phase)
        self.answers.append((time(), verdict.status))
        await asyncio.sleep(self.way)
        if verdict.status == 200:
            header = self.header("candles", verdict.left)
            return httpx.Response(200, json=[], headers={} if header is None else {"Remaining-Req": header})
        return httpx.Response(verdict.status, text=f"Too many requests, {math.ceil(verdict.wait)} seconds")

    def count(self, status: int, start: float = STEADY[0], end: float = STEADY[1]) -> int:
        return sum(answer == status and start <= at < end for at, answer in self.answers)

    def use(self, start: float = STEADY[0], end: float = STEADY[1]) -> float:
        """Good answers, as a fraction of what was allowed."""
        return self.count(200, start, end) / (end - start) / self.limits.per_second["candles"]  # type: ignore[operator]


def ask_for(counting: Counting, seconds: float = STEADY[1], late: float = 0.003, readers: int = 12) -> None:
    """Readers that ask again and again; each sleep lasts up to `late` too long, as on a busy machine."""
    dice = random.Random(3)

    async def main(time: Callable[[], float]) -> None:
        async def sleep(wanted: float) -> None:
            await asyncio.sleep(wanted + dice.random() * late)

        async def reader(exchange: Exchange) -> None:
            while time() < seconds:
                await exchange.candles("KRW-BTC", "1h", 0, 1)

        http = httpx.AsyncClient(transport=httpx.MockTransport(counting), base_url="http://counting")
        async with Exchange(http, sleep=sleep, timer=time) as exchange:
            await asyncio.gather(*(reader(exchange) for _ in range(readers)))

    virtually(main)


@pytest.mark.parametrize("phase", [0.0, 0.3, 0.55, 0.8])
@pytest.mark.parametrize("way", [0.002, 0.02, 0.15])
def test_the_allowed_rate_is_used_and_nothing_is_refused(phase: float, way: float) -> None:
    counting = Counting(phase=phase, way=way)
    ask_for(counting)
    assert counting.use() >= 0.95
    assert counting.count(429, 0) == 0


@pytest.mark.parametrize("phase", [0.1, 0.6])
def test_a_way_of_changing_length_and_a_busy_machine(phase: float) -> None:
    counting = Counting(phase=phase, jitter=0.01)
    ask_for(counting, late=0.02)
    assert counting.use() >= 0.95
    assert counting.count(429, 0) == 0


ODD: list[Header] = [
    lambda group, left: None,
    lambda group, left: "",
    lambda group, left: f"group={group}; min=600",
    lambda group, left: f"group={group}; min=600; sec=soon",
    lambda group, left: f"sec={left}",
    lambda group, left: remaining_req(group, left) if left % 2 else None,
    lambda group, left: remaining_req("candle", left),
]


@pytest.mark.parametrize("header", ODD)
def test_it_works_without_the_header_and_with_odd_ones(header: Header) -> None:
    counting = Counting(header=header, phase=0.4)
    ask_for(counting)
    assert counting.use() >= 0.95
    assert counting.count(429, 0) == 0


@pytest.mark.parametrize("allowed", [5, 30])
def test_the_header_tells_another_rate(allowed: int) -> None:
    counting = Counting(allowed=allowed, phase=0.2)
    ask_for(counting, readers=3 * allowed)
    assert counting.use() >= 0.9
    assert counting.count(429, *STEADY) == 0


def test_a_drop_to_half_is_learnt_without_a_block() -> None:
    counting = Counting(phase=0.7, change=(10.0, 5))
    ask_for(counting)
    assert counting.use(15.0) >= 0.95
    assert counting.count(429, 15.0) == 0
    assert counting.count(429, 0) <= 2
    assert counting.count(418, 0) == 0


def test_a_lower_rate_without_a_header_is_survived() -> None:
    counting = Counting(allowed=5, header=lambda group, left: None)
    ask_for(counting)
    assert counting.use() >= 0.6
    assert counting.count(418, 0) == 0


def test_after_a_refusal_nothing_leaves_before_the_next_second() -> None:
    """About one a second: who goes on is blocked."""
    counting = Counting(phase=0.4, change=(3.0, 0))
    with pytest.raises(wire.TooMany):
        ask_for(counting)
    refused = Counter(math.floor(at + counting.phase) for at, status in counting.answers if status == 429)
    assert len(refused) >= 2
    assert refused.total() <= 2 * len(refused)
    assert counting.count(418, 0) == 0
