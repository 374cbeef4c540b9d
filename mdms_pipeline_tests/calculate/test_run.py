"""`run`, `calculate`, extensions, and the bits that each version of a kernel stands for."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from mdms_pipeline.calculate import catalog
from mdms_pipeline.calculate import run as running
from mdms_pipeline.calculate.catalog import DEFAULTS, KINDS, closure, defaults, register
from mdms_pipeline.calculate.kernels import macd, rsi, sma, tr
from mdms_pipeline.calculate.run import calculate, columns, run
from mdms_pipeline.market import Candles
from mdms_pipeline_tests.laws.markets import known, market, same_bits


@pytest.mark.parametrize(
    ("indicator", "memory", "given_columns", "message"),
    [
        (sma(3), np.zeros(3), [np.ones(4)], r"sma\(3\): memory must be float64 of shape \(2,\), got float64 of shape \(3,\)"),
        (sma(3), np.zeros(2, np.float32), [np.ones(4)], "memory must be float64"),
        (sma(3), np.zeros(2), [np.ones(4), np.ones(4)], r"sma\(3\): reads 1 column\(s\), got 2"),
        (sma(3), np.zeros(2), [np.ones(4, np.int64)], r"sma\(3\): columns must be float64 of shape \(4,\), got int64"),
        (sma(3), np.zeros(2), [np.ones((4, 1))], r"columns must be float64 of shape \(4,\)"),
        (tr(), tr().memory, [np.ones(4), np.ones(4), np.ones(5)], r"columns must be float64 of shape \(4,\), got float64 of shape \(5,\)"),
    ],
)
def test_what_a_kernel_cannot_take_is_refused(indicator, memory, given_columns, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(indicator, memory, given_columns)


def test_sources() -> None:
    candles = market(1, 5)
    made = columns(candles, ("close", "rise", "fall"))
    assert made["close"] is candles.close
    assert np.isnan(made["rise"][0])
    assert np.isnan(made["fall"][0])
    np.testing.assert_array_equal(made["rise"][1:] - made["fall"][1:], np.diff(candles.close))
    assert (made["rise"][1:] * made["fall"][1:] == 0).all()
    assert columns(candles, ("fall",), candles.close[0] + 7)["fall"][0] == pytest.approx(7)
    assert columns(Candles.empty(), ("rise",))["rise"].size == 0
    with pytest.raises(ValueError, match="column 'price' is not known: use one of open"):
        columns(candles, ("price",))


def test_calculate_gives_what_was_asked_for_and_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calculated = []
    monkeypatch.setattr(running, "run", lambda indicator, *rest: calculated.append(indicator) or run(indicator, *rest))
    candles = market(1, 300)
    values = calculate((*DEFAULTS, rsi(14), macd(12, 27, 9)), candles)
    assert len(calculated) == len(set(calculated)) == len(closure((*DEFAULTS, macd(12, 27, 9))))
    assert set(values) == {name for i in (*DEFAULTS, macd(12, 27, 9)) for name in i.columns}
    everything = known(candles)
    assert all(same_bits(values[name], everything[name]) for name in values if name in everything)


EXTENSION = '''
"""A kind from outside of the package."""
import numpy as np

from mdms_pipeline.calculate.catalog import register
from mdms_pipeline.calculate.indicator import indicator
from mdms_pipeline.calculate.kernels import jit, sma


@register
@indicator(source="close", reads=lambda source, n: (source, sma(source, n)))
@jit
def distance(memory, x, mean, n=20):
    """Distance of `x` from its mean of `n` bars, as a fraction of the mean. A mean of 0: unknown."""
    out = np.empty((1, x.size))
    for i in range(x.size):
        out[0, i] = x[i] / mean[i] - 1 if mean[i] != 0 else np.nan
    return memory.copy(), out
'''


@pytest.fixture
def _clean_catalog(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(catalog, "_registered", [])
    before = dict(KINDS)
    yield
    KINDS.clear()
    KINDS.update(before)


@pytest.mark.usefixtures("_clean_catalog")
def test_a_file_outside_of_the_package_declares_a_kind(tmp_path: Path) -> None:
    file = tmp_path / "distance.py"
    file.write_text(EXTENSION)
    spec = importlib.util.spec_from_file_location("distance", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    candles = market(1, 100)
    distance = KINDS["distance"]
    assert distance is module.distance
    assert catalog.kind_edges()["distance"] == {"candles", "sma"}
    assert (distance(20).first, distance(20).stable_after, distance(20).columns) == ((19,), 19, ("distance_20",))
    assert defaults() == (*DEFAULTS, distance(20))
    values = calculate((distance(20), sma(20)), candles)
    np.testing.assert_allclose(values["distance_20"], candles.close / values["sma_20"] - 1, rtol=1e-12)
    with pytest.raises(ValueError, match="kind 'distance' is registered already"):
        register(distance)


@pytest.mark.usefixtures("_clean_catalog")
def test_a_kind_that_reads_an_unregistered_one_is_refused() -> None:
    del KINDS["rsi"], KINDS["sma"]
    with pytest.raises(ValueError, match=r"kind 'rsi' reads sma\(rise, 14\), whose kind is not registered: register 'sma' first"):
        register(rsi)


# Of each kind, its version and a digest of what it makes. A digest that changes alone means: raise the kind's version, as stored rows
# were made by other bits; then note the new pair here.
BITS: dict[str, tuple[int, str]] = {
    "tr": (1, "a5367c3da5ad9f66"),
    "sma": (2, "48d4431721d9b918"),
    "ema": (1, "50c24839e51ab02a"),
    "stddev": (2, "aa7fe87aeec13478"),
    "highest": (1, "c44f0e4a2a154090"),
    "lowest": (1, "2e9dbea824af9a5a"),
    "rsi": (2, "ba444050f8c755c1"),
    "atr": (1, "1b796ee0817a1437"),
    "macd": (1, "631dfcbee0f1329a"),
    "bollinger": (1, "aef9a35487492985"),
    "stoch": (2, "be47ced1b0dde38d"),
}


def made_of(kind) -> str:
    """Input without a transcendental function, whose bits differ from machine to machine."""
    state, x = 12_345, np.empty((6, 3_000))
    for row in x:
        for i in range(row.size):
            state = (1_103_515_245 * state + 12_345) % 2**31
            row[i] = 1_000 + state % 997 / 8
    candles = Candles(np.arange(3_000), x[0], x[:3].max(axis=0), x[:3].min(axis=0), x[1], x[4], x[5])
    values = calculate((kind(),), candles)
    return hashlib.sha256(b"".join(np.nan_to_num(column, nan=-1.0).tobytes() for column in values.values())).hexdigest()[:16]


def test_bits_stand_for_versions() -> None:
    assert {name: (kind.version, made_of(kind)) for name, kind in KINDS.items()} == BITS
