"""The compiled engine against the slow one, trade by trade, and laws that hold for every run."""

from __future__ import annotations

import numpy as np
import pytest

from mdms_pipeline.backtest.engine import Cause, Fill, Notice, Outcome, Reason, Side, Trouble, on_tick, slipped, trade
from mdms_pipeline.backtest.run import still_open
from mdms_pipeline.market import TICKS
from mdms_pipeline_tests.backtest.oracle import Book, slip
from mdms_pipeline_tests.backtest.worlds import CASH, World, world

SEEDS = range(400)
REASONS = {Reason.ENTRY: "entry", Reason.EXIT: "exit", Reason.STOP: "stop", Reason.TRAILING: "trailing", Reason.TARGET: "target",
           Reason.DELISTED: "delisted"}  # fmt: skip
CAUSES = {Cause.NO_CANDLE: "no candle", Cause.ENDED: "ended", Cause.CASH: "cash", Cause.PARTICIPATION: "participation",
          Cause.MINIMUM: "minimum", Cause.FULL: "full", Cause.UNKNOWN_SIZE: "unknown size", Cause.LEVEL: "level"}  # fmt: skip


def run(it: World) -> Outcome:
    return trade(it.market, it.decisions, it.terms, 0, len(it.market.open), CASH)


def side(number: float) -> str:
    return "buy" if number == Side.BUY else "sell"


def fills_of(outcome: Outcome) -> list[tuple[int, int, str, str]]:
    return [(int(r[Fill.SLOT]), int(r[Fill.SYMBOL]), side(r[Fill.SIDE]), REASONS[Reason(int(r[Fill.REASON]))]) for r in outcome.fills]


def troubles_of(outcome: Outcome) -> list[tuple[int, int, str, str, str]]:
    return [
        (
            int(r[Notice.SLOT]),
            int(r[Notice.SYMBOL]),
            side(r[Notice.SIDE]),
            Trouble(int(r[Notice.TROUBLE])).name.lower(),
            CAUSES[Cause(int(r[Notice.CAUSE]))],
        )
        for r in outcome.notices
    ]


@pytest.mark.parametrize("block", range(8))
def test_both_engines_make_the_same_trades(block: int) -> None:
    for seed in SEEDS[block::8]:
        it = world(seed)
        ours, theirs = run(it), Book(it.rules, CASH).run(len(it.market.open))
        assert fills_of(ours) == [fill[:4] for fill in theirs.fills], f"seed {seed}"
        assert sorted(troubles_of(ours)) == sorted(theirs.troubles), f"seed {seed}"
        np.testing.assert_allclose(
            ours.fills[:, [Fill.PRICE, Fill.UNITS]], [fill[4:] for fill in theirs.fills] or np.empty((0, 2)), rtol=1e-9
        )
        np.testing.assert_allclose(ours.equity, theirs.equity, rtol=1e-9, err_msg=f"seed {seed}")


def test_the_worlds_hold_everything_that_can_happen() -> None:
    reasons, troubles = set(), set()
    for seed in SEEDS:
        outcome = run(world(seed))
        reasons |= {fill[3] for fill in fills_of(outcome)}
        troubles |= {trouble[2:] for trouble in troubles_of(outcome)}
    assert reasons == set(REASONS.values())
    assert troubles >= {("buy", "lapsed", "no candle"), ("sell", "lapsed", "no candle"), ("buy", "lapsed", "ended"),
                        ("buy", "clipped", "cash"),
                        ("buy", "clipped", "participation"), ("sell", "clipped", "participation"), ("buy", "rejected", "cash"),
                        ("buy", "rejected", "minimum"), ("buy", "rejected", "participation"), ("sell", "rejected", "participation"),
                        ("sell", "rejected", "minimum"), ("buy", "rejected", "full"), ("buy", "rejected", "level")}  # fmt: skip


@pytest.mark.parametrize("seed", range(400, 440))
def test_laws_of_every_run(seed: int) -> None:
    it = world(seed)
    outcome, market, terms = run(it), it.market, it.terms
    fills = outcome.fills
    slots, symbols = fills[:, Fill.SLOT].astype(int), fills[:, Fill.SYMBOL].astype(int)
    amounts = fills[:, Fill.UNITS] * fills[:, Fill.PRICE]
    # money is conserved: what was there at the start is cash, fees and what was paid for positions
    assert outcome.cash[-1] + fills[:, Fill.FEE].sum() + (amounts * fills[:, Fill.SIDE]).sum() == pytest.approx(CASH, rel=1e-9)
    # equity is cash and positions at their last close
    worth = sum(units * last_close(market.close[:, int(entry[Fill.SYMBOL])]) for entry, units in still_open(fills))
    assert outcome.equity[-1] == pytest.approx(outcome.cash[-1] + worth, rel=1e-9)
    assert (outcome.cash >= 0).all()
    assert (outcome.held <= terms.places).all()
    # the price before slippage lies within the bar, slippage is against us, no trade is below the minimum or above its part
    base = fills[:, Fill.BASE]
    assert (base <= market.high[slots, symbols]).all()
    assert (base >= market.low[slots, symbols]).all()
    assert ((fills[:, Fill.PRICE] - base) * fills[:, Fill.SIDE] >= -1e-6 * base).all()
    forced = fills[:, Fill.REASON] == Reason.DELISTED
    assert (amounts[~forced] >= terms.minimum).all()
    assert (amounts[~forced] <= terms.participation * market.value[slots, symbols][~forced] * (1 + 1e-9)).all()
    # nothing fills at or before its decision, except stops, targets and delistings, which stand already
    waited = slots - fills[:, Fill.DECIDED]
    ordered = np.isin(fills[:, Fill.REASON], (Reason.ENTRY, Reason.EXIT))
    assert ((waited >= 1) & (waited <= 3))[ordered].all()


def last_close(closes: np.ndarray) -> float:
    return float(closes[~np.isnan(closes)][-1])


def test_the_same_run_again_has_the_same_bits() -> None:
    for seed in range(20):
        first, second = run(world(seed)), run(world(seed))
        assert all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))


def test_ticks() -> None:
    assert [on_tick(price, False) for price in (1_234_567.0, 99_999.0, 15.27, 0.012345)] == [1_234_000.0, 99_950.0, 15.2, 0.0123]
    assert on_tick(15.2, True) == 15.2  # a tick itself stays
    assert slipped(1_000_000.0, 1, 1.0) == 1_001_000.0
    assert slipped(1_000_000.0, -1, 1.0) == 999_000.0  # the tick of the price that it leaves
    assert slipped(123.4, 1, -1.0) == 123.4  # no table at all
    for bound, _ in TICKS[:-1]:
        for price in (bound, bound * 0.999, bound * 1.234567):
            assert slipped(price, 1, 1.0) == slip(price, True, 1.0)
            assert slipped(price, -1, 1.0) == slip(price, False, 1.0)
