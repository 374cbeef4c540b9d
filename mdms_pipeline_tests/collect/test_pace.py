"""The pace against simulated exchanges that count in different ways: as much as is allowed, and no 429. Nothing sleeps."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from mdms_pipeline.collect.pace import ALLOWED, FIRST_BLOCK, LONGEST_BLOCK, Block, Ledger, Pace
from mdms_pipeline_tests.collect.simulated import GROUP, START, Bucket, Counter, Fixed, Sliding, World

Draw = Callable[[random.Random], float]  # seconds

KINDS = pytest.mark.parametrize("kind", [Fixed, Sliding, Bucket])
SKEWS = pytest.mark.parametrize("skew", [0.0, 0.3, -0.3, 0.77])  # s by which the exchange's clock is ahead of ours
PROCESSES = pytest.mark.parametrize("processes", [1, 3])
STEADY, END = 5.0, 125.0  # s from the start


def near(dice: random.Random) -> float:
    """The way from Korea."""
    return 0.01 + dice.uniform(0.0, 0.01)


def far(dice: random.Random) -> float:
    """The way from Europe."""
    return 0.12 + dice.uniform(0.0, 0.03)


def calm(dice: random.Random) -> float:
    return dice.uniform(0.0, 0.004)


def busy(dice: random.Random) -> float:
    """A machine that now and then wakes a sleeper up far too late."""
    return dice.uniform(0.0, 0.004) + (dice.random() < 0.02) * dice.uniform(0.03, 0.12)


WAYS = pytest.mark.parametrize("way", [near, far])
LATE = pytest.mark.parametrize("late", [calm, busy])


# ---- the steady state


@SKEWS
@PROCESSES
@WAYS
@LATE
def test_whole_seconds_of_another_clock(skew: float, processes: int, way: Draw, late: Draw) -> None:
    world = World(Fixed(10, skew), processes, way=way, late=late).run(END)
    assert world.refusals(STEADY) == 0
    assert world.share(STEADY, END) >= 0.97


@KINDS
@SKEWS
@PROCESSES
@LATE
@pytest.mark.parametrize("header", [True, False])
def test_whatever_the_exchange_counts_by(kind: type[Counter], skew: float, processes: int, late: Draw, header: bool) -> None:
    world = World(kind(10, skew), processes, way=near, late=late, header=lambda left: left if header else None).run(END)
    assert world.refusals() == 0
    assert world.share(STEADY, END) >= 0.95


@SKEWS
@PROCESSES
def test_ways_of_very_unequal_length(skew: float, processes: int) -> None:
    """12 ms more on average, and 150 ms now and then, both ways; the machine is busy."""

    def way(dice: random.Random) -> float:
        return 0.03 + dice.expovariate(1 / 0.012) + (dice.random() < 0.01) * dice.uniform(0.03, 0.15)

    world = World(Fixed(10, skew), processes, way=way, late=busy).run(END)
    assert world.refusals(STEADY) <= 1
    assert world.share(STEADY, END) >= 0.95


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8, 15, 30])
@SKEWS
def test_the_header_tells_another_limit(limit: int, skew: float) -> None:
    world = World(Fixed(limit, skew), way=near).run(END)
    assert world.refusals(STEADY) == 0
    assert world.share(STEADY, END, limit) >= (0.95 if limit > 1 else 0.9)


def test_a_limit_that_nobody_means_is_none() -> None:
    world = World(Fixed(999, 0.0), workers=12, way=near).run(20)
    assert world.share(10, 20, 1) > 200  # as fast as 12 requests in flight are


# ---- what changes


@SKEWS
@PROCESSES
@WAYS
def test_a_limit_that_drops_and_rises_again(skew: float, processes: int, way: Draw) -> None:
    world = World(Fixed(10, skew), processes, way=way, changes={START + 30.3: 5, START + 60.7: 10}).run(END)
    assert world.refusals() <= 3  # those under way when it dropped
    assert world.refusals(33) == 0
    assert world.share(36, 60, 5) >= 0.95
    assert world.share(66, END) >= 0.95


@KINDS
def test_a_limit_that_drops_without_a_header_costs_little(kind: type[Counter]) -> None:
    world = World(kind(10, 0.3), 2, header=lambda left: None, changes={START + 30: 5, START + 60: 10}).run(END)
    assert world.most_refusals(10) <= 10  # within 10 s; the sandbox blocks at 20
    assert world.share(35, 60, 5) >= 0.6
    assert world.share(90, END) >= 0.85


@KINDS
@pytest.mark.parametrize(
    "header",
    [
        pytest.param(lambda left: 999, id="says 999"),
        pytest.param(lambda left: 9, id="says 9"),
        pytest.param(lambda left: 0, id="says 0"),
        pytest.param(lambda left: max(0, left - 1), id="one too few"),
        pytest.param(lambda left: left + 1, id="one too many"),
        pytest.param(lambda left: left if left % 3 else None, id="now and then"),
        pytest.param(lambda left: random.Random(left).randrange(20), id="nonsense"),
    ],
)
def test_a_header_that_lies(kind: type[Counter], header: Callable[[int], int | None]) -> None:
    world = World(kind(10, 0.3), 2, way=near, header=header).run(END)
    assert world.most_refusals(10) <= 10
    assert world.share(STEADY, END) >= 0.09  # at worst one a second


def test_another_program_at_this_address_is_left_its_part() -> None:
    """It sends 4/s, whatever it is answered."""
    world = World(Fixed(10, 0.3), way=near, others=4.0).run(END)
    assert world.share(STEADY, END) >= 0.5
    assert world.most_refusals(10) <= 10


# ---- after a 429


def test_nothing_leaves_before_the_next_second_after_a_429() -> None:
    pace = Pace().departed(10.0).departed(10.1)
    refused = pace.refused(10.1, 10.15)
    assert refused.due(10.15) == pytest.approx(11.15)
    assert refused.rate(10.15) < pace.rate(10.15) == ALLOWED


def test_many_429_within_a_second_are_one() -> None:
    sent = [10.0 + 0.09 * n for n in range(10)]
    pace = Pace(sent=tuple(sent))
    once = pace.refused(sent[9], 11.0)
    again = once.refused(sent[8], 11.01)
    assert again.rate(11.01) >= 0.75 * once.rate(11.0)
    assert again.slack == once.slack


def test_the_rate_comes_back() -> None:
    pace = Pace(sent=(10.0,)).refused(10.0, 10.1)
    rates = [pace.rate(at) for at in (10.1, 15.0, 20.0, 30.0, 60.0)]
    assert rates == sorted(rates)
    assert rates[0] == 4.5
    assert rates[-1] == ALLOWED


# ---- a clock that is set back


@pytest.mark.parametrize("back", [2.0, 60.0, 86_400.0])
def test_a_clock_that_is_set_back_holds_nothing_up(back: float) -> None:
    ledger = World(Fixed(10, 0.3)).run(20).ledger
    now = START + 20 - back
    after, turn = ledger.take(GROUP, now)
    assert turn.wait == 0
    assert after.take(GROUP, now + 0.2)[1].wait == 0


def test_a_block_from_the_future_begins_now() -> None:
    ledger = Ledger(block=Block(at=5_000.0, seconds=60.0))
    ledger, turn = ledger.take(GROUP, 1_000.0)
    assert turn.wait == 60
    assert ledger.take(GROUP, 1_059.0)[1].wait == 1
    assert ledger.take(GROUP, 1_060.0)[1].wait == 0


# ---- 418


def test_a_block_shuts_out_every_group_until_it_ends() -> None:
    ledger = Ledger().departed("candles", 99.0).shut_out(100.0, 30.0, "go away")
    for group in ("candles", "market", "ticker"):
        turn = ledger.take(group, 110.0)[1]
        assert (turn.wait, turn.block) == (20.0, Block(100.0, 30.0, "go away"))
        assert ledger.take(group, 130.0)[1].wait == 0


def test_of_two_blocks_the_later_end_counts() -> None:
    ledger = Ledger().shut_out(100.0, 60.0).shut_out(101.0, 10.0)
    assert ledger.take(GROUP, 102.0)[1].wait == 58
    assert ledger.shut_out(102.0, 100.0).take(GROUP, 103.0)[1].wait == 99


def test_a_block_that_does_not_say_how_long_doubles() -> None:
    ledger, now = Ledger(), 100.0
    for seconds in (FIRST_BLOCK, 2 * FIRST_BLOCK, 4 * FIRST_BLOCK):
        ledger = ledger.shut_out(now, None).shut_out(now + 0.1, None)  # the second was under way already
        assert ledger.take(GROUP, now)[1].wait <= seconds + 0.2
        now += seconds + 1
    assert ledger.shut_out(now + 1_000, None).take(GROUP, now + 1_000)[1].wait == FIRST_BLOCK
    assert Ledger().shut_out(now, 1e9).take(GROUP, now)[1].wait == LONGEST_BLOCK


# ---- laws


def test_no_way_of_answering_makes_it_wait_for_long() -> None:
    """Whatever comes, in whatever order: without a block the next request may leave within seconds, and time brings the rate back."""
    dice = random.Random(5)
    for _ in range(300):
        pace, now, sent = Pace(), 1_000.0, [0.0]
        for _ in range(60):
            now += dice.choice([0.0, 0.001, 0.05, 0.3, 1.0, 20.0])
            act = dice.randrange(4)
            if act == 0:
                pace = pace.believed(now).departed(now)
                sent.append(now)
            elif act == 1:
                pace = pace.refused(dice.choice(sent), now)
            else:
                pace = pace.answered(dice.choice(sent), dice.choice([None, 0, 1, 5, 9, 999]))
            pace = pace.believed(now)
            assert pace.due(now) - now <= 3.0
            assert pace.rate(now) >= 1.0
            assert replace(pace, allowed=ALLOWED).rate(now + 60) == ALLOWED
