"""Calls, names, refusals and fingerprints."""

from __future__ import annotations

import re

import numpy as np
import pytest

from mdms_pipeline.calculate import indicator as declaration
from mdms_pipeline.calculate.catalog import KINDS
from mdms_pipeline.calculate.indicator import FORGOTTEN, Indicator, Output, forgets
from mdms_pipeline.calculate.kernels import bollinger, ema, highest, lowest, macd, rsi, sma, stoch, tr


@pytest.mark.parametrize(
    ("indicator", "name", "call"),
    [
        (sma(20), "sma_20", "sma(20)"),
        (sma("close", 20), "sma_20", "sma(20)"),
        (sma("volume", 20), "sma_volume_20", "sma(volume, 20)"),
        (sma("rise", 14), "sma_rise_14", "sma(rise, 14)"),
        (highest(14), "highest_14", "highest(14)"),
        (highest("low", 14), "highest_low_14", "highest(low, 14)"),
        (tr(), "tr", "tr()"),
        (macd(12, 26, 9), "macd_12_26_9", "macd(12, 26, 9)"),
        (bollinger(20, 2), "bollinger_20_2", "bollinger(20, 2)"),
        (bollinger(20, 2.5), "bollinger_20_2_5", "bollinger(20, 2.5)"),
        (bollinger(20, 0.00001), "bollinger_20_0_00001", "bollinger(20, 0.00001)"),
    ],
)
def test_names(indicator: Indicator, name: str, call: str) -> None:
    assert (indicator.name, indicator.call, str(indicator)) == (name, call, call)


def test_columns() -> None:
    assert sma(20).columns == ("sma_20",)
    assert macd().columns == ("macd_12_26_9_line", "macd_12_26_9_signal", "macd_12_26_9_histogram")
    assert stoch(14, 3, 3).column("k") == "stoch_14_3_3_k"
    assert bollinger(20, 2).column("percent_b") == "bollinger_20_2_percent_b"
    assert sma(20).column() == sma(20).column("sma") == "sma_20"
    assert macd().output("signal") == Output(macd(12, 26, 9), "signal")


def test_missing_arguments_take_the_usual_values_all_or_none() -> None:
    assert rsi() == rsi(14)
    assert macd() == macd(12, 26, 9)
    assert sma("volume") == sma("volume", 20)
    assert lowest().source == "low"


def test_equal_calls_are_equal_and_hash_alike() -> None:
    assert bollinger(20, 2) == bollinger(20.0, 2.0) == bollinger(np.int64(20), np.float64(2))
    assert len({sma(20), sma("close", 20), sma(np.int32(20)), sma(21), ema(20)}) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sma(0), "sma: n must be a whole number >= 1, got 0"),
        (lambda: sma(-3), "sma: n must be a whole number >= 1, got -3"),
        (lambda: sma(2.5), "sma: n must be a whole number >= 1, got 2.5"),
        (lambda: sma(True), "sma: n must be a whole number >= 1, got True"),
        (lambda: sma(float("nan")), "sma: n must be a whole number >= 1, got nan"),
        (lambda: sma(10_001), "sma: n must be at most 10000 bars, got 10001"),
        (lambda: sma("price", 20), "sma: source 'price' is not known: use one of open, high, low, close, volume, value, rise, fall"),
        (lambda: sma(20, "volume"), "sma: takes n, got 2 value(s): write it like sma(20)"),
        (lambda: sma(1, 2), "sma: takes n, got 2 value(s): write it like sma(20)"),
        (lambda: rsi("volume", 14), "rsi: takes no source column, got 'volume': write it like rsi(14)"),
        (lambda: tr(1), "tr: takes no parameters, got 1 value(s): write it like tr()"),
        (lambda: macd(12), "macd: takes fast, slow, signal, got 1 value(s): write it like macd(12, 26, 9)"),
        (lambda: macd(26, 12, 9), "macd: fast must be less than slow, got 26 and 12: swap or part them"),
        (lambda: macd(12, 12, 9), "macd: fast must be less than slow, got 12 and 12: swap or part them"),
        (lambda: bollinger(20, 0), "bollinger: k must be a number > 0, got 0"),
        (lambda: bollinger(20, float("inf")), "bollinger: k must be a number > 0, got inf"),
        (
            lambda: macd().column(),
            "macd(12, 26, 9): output None is not known: use one of line, signal, histogram, like macd(12, 26, 9).line",
        ),
        (lambda: sma(20).column("k"), "sma(20): output 'k' is not known: use one of sma, like sma(20).sma"),
    ],
)
def test_refusals_name_the_thing_the_value_and_the_remedy(call, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()


def test_fingerprints_follow_everything_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    before = rsi(14).fingerprint
    assert rsi(14).fingerprint == before != rsi(15).fingerprint
    assert sma(20).fingerprint != sma("volume", 20).fingerprint
    object.__setattr__(sma, "version", sma.version + 1)
    try:
        assert rsi(14).fingerprint != before
        assert tr().fingerprint == KINDS["tr"]().fingerprint
    finally:
        object.__setattr__(sma, "version", sma.version - 1)
    assert rsi(14).fingerprint == before


def test_a_mean_of_one_value_has_no_seed_to_forget() -> None:
    assert forgets(1.0) == 0


@pytest.mark.parametrize("rate", [0.5, 2 / 13, 2 / 27, 1 / 14, 2 / 201])
def test_forgets_counts_the_bars_and_not_one_more(rate: float) -> None:
    bars = forgets(rate)
    assert (1 - rate) ** bars < FORGOTTEN
    assert (1 - rate) ** (bars - 1) >= FORGOTTEN * (1 - 1e-9)


def test_every_kind_describes_itself() -> None:
    for kind in KINDS.values():
        assert kind.doc.splitlines()[0].endswith("."), kind
        assert len(kind.doc) > 60, kind
        assert "known" in kind.doc or kind is KINDS["macd"], f"{kind}: what is its odd case?"


def bad(**changes):
    """A declaration with something wrong in it."""

    def declare():
        def kernel(memory, x, n=3):
            """Something."""
            return memory, np.empty((1, x.size))

        kernel.__name__ = changes.pop("name", "something")
        kernel.__doc__ = changes.pop("doc", "Something.")
        return declaration.indicator(**{"reads": lambda n: ("close",), **changes})(kernel)

    return declare


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (bad(name="Bad-Name"), "use lower case letters"),
        (bad(doc=None), "has no docstring"),
        (bad(reads=lambda n: ("close", "high")), "takes 1 column"),
        (bad(reads=lambda n: ("price",)), "reads 'price', which is not known"),
        (bad(writes=("a", "b"), lag=lambda n: (0,)), "writes 2 column"),
    ],
)
def test_a_wrong_declaration_is_refused(declare, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        declare()
