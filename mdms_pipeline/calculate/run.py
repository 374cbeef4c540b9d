"""Run a kernel over arrays in RAM: `run` one indicator over new bars, `calculate` several over whole candles, `carry` several onward."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mdms_pipeline.calculate.catalog import closure
from mdms_pipeline.calculate.indicator import SOURCES, Indicator
from mdms_pipeline.calculate.kernels import movement
from mdms_pipeline.market import Candles, Floats

MOST_KEPT = 4 * 2**20 - 2**10  # values of 8 bytes: just under 32 MB, with what the allocator adds


def run(indicator: Indicator, memory: Floats, columns: Sequence[Floats]) -> tuple[Floats, Floats]:
    """The memory after these bars, and the outputs: float64 of shape (outputs, bars), NaN where unknown.

    `memory` is that before the first of these bars (`indicator.memory` at a symbol's first), `columns` the arrays of
    `indicator.reads`, in that order. Neither is written to. Arrays of another shape, length or type are refused.
    """
    if len(columns) != len(indicator.reads):
        raise ValueError(f"{indicator}: reads {len(indicator.reads)} column(s), got {len(columns)}")
    bars = len(columns[0])
    for column in columns:
        if column.dtype != np.float64 or column.ndim != 1 or len(column) != bars:
            raise ValueError(f"{indicator}: columns must be float64 of shape ({bars},), got {column.dtype} of shape {column.shape}")
    if memory.dtype != np.float64 or memory.shape != indicator.memory_shape:
        raise ValueError(
            f"{indicator}: memory must be float64 of shape {indicator.memory_shape}, got {memory.dtype} of shape {memory.shape}"
        )
    if bars == 0:
        return memory.copy(), np.empty((len(indicator.kind.writes), 0))
    return indicator.kind.kernel(_plain(memory), *map(_plain, columns), *indicator.params)


def calculate(indicators: Iterable[Indicator], candles: Candles) -> dict[str, Floats]:
    """Every output of `indicators` over whole candles, by column name; whatever they share is calculated once."""
    wanted = tuple(indicators)
    _, known = carry(closure(wanted), {}, candles)
    return {name: known[name] for indicator in wanted for name in indicator.columns}


def carry(
    needed: Sequence[Indicator], memories: Mapping[Indicator, Floats], candles: Candles, previous_close: float = np.nan
) -> tuple[dict[Indicator, Floats], dict[str, Floats]]:
    """The memories after these candles, and every column calculated on the way, by name.

    `needed` has whatever it reads, upstream first; one without a memory starts at these candles, which are then a symbol's first.
    """
    known = columns(candles, {read for indicator in needed for read in indicator.reads if isinstance(read, str)}, previous_close)
    after = {}
    for indicator in needed:
        memory = memories.get(indicator, indicator.memory)
        after[indicator], outputs = run(indicator, memory, inputs(indicator, known))
        known.update(zip(indicator.columns, outputs, strict=True))
    return after, known


def inputs(indicator: Indicator, known: Mapping[str, Floats]) -> list[Floats]:
    """The arrays of `indicator.reads` among known columns, by name."""
    return [known[read if isinstance(read, str) else read.name] for read in indicator.reads]


def columns(candles: Candles, names: Iterable[str], previous_close: float = np.nan) -> dict[str, Floats]:
    """The columns of SOURCES that are named. `previous_close` is that of the bar before the first, NaN if there is none."""
    return {name: _column(candles, name, previous_close) for name in names}


def _column(candles: Candles, name: str, previous_close: float) -> Floats:
    if name not in SOURCES:
        raise ValueError(f"column {name!r} is not known: use one of {', '.join(SOURCES)}")
    if name not in ("rise", "fall"):
        column: Floats = getattr(candles, name)
        return column
    return movement(_plain(candles.close), previous_close, 1.0 if name == "rise" else -1.0)


def _plain(array: Floats) -> Floats:
    """`array` as kernels are compiled for: contiguous and writable. A copy if it is not; another layout would compile anew."""
    return array if array.flags.carray else array.copy()


def _keep_freed_memory() -> None:
    """Have the allocator keep what kernels free instead of giving it back and fetching it again, page by page, for the next symbol.

    glibc keeps twice the largest block that was ever mapped and freed, if that was no more than 32 MB: one block, never touched, is
    enough; elsewhere it does nothing. All defaults of 100,000 bars are 29 MB: 280 ns per bar without, 60 with (TA-Lib 260 and 70).
    """
    np.empty(MOST_KEPT)


_keep_freed_memory()
