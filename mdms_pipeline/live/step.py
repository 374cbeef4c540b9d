"""One bar of many symbols at once, by the very kernels that the batch runs: `run` per symbol would spend its time on the way in and out.

A bar of 120 symbols: 3 to 7 us per symbol and indicator by `run`, 0.4 to 1.1 by `each`, of which the kernel is most
(benchmarks/live.py). The loop is compiled once per form of kernel (how many columns, which parameters), not once per kernel, so numba
keeps it on disk: the kernel comes in as an address. The bits are those of `run`, which a test holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core.types.function_type import CompileResultWAP

from mdms_pipeline.calculate.indicator import Indicator
from mdms_pipeline.calculate.kernels import movement
from mdms_pipeline.calculate.run import run
from mdms_pipeline.market import Floats

FEW = 8  # symbols below which `run` is quick enough
VECTOR, MATRIX = types.float64[::1], types.float64[:, ::1]
TUPLE: Any = types.Tuple
PAIR = TUPLE((VECTOR, MATRIX))  # what a kernel returns


def step(
    needed: Sequence[Indicator], memories: Mapping[Indicator, Floats], bar: Mapping[str, Floats], previous_close: Floats
) -> tuple[dict[Indicator, Floats], dict[str, Floats]]:
    """One more bar: the memories after it, (symbols, length) each, and every column, (symbols,) each, by name.

    `needed` is upstream first, `memories` those before the bar, `bar` the candle columns, `previous_close` NaN where there was no bar.
    """
    known = dict(bar)
    for name, sign in (("rise", 1.0), ("fall", -1.0)):
        if any(name in indicator.reads for indicator in needed):
            known[name] = moved(bar["close"], previous_close, sign)
    after = {}
    for indicator in needed:
        columns = np.array([known[read if isinstance(read, str) else read.name] for read in indicator.reads])
        after[indicator], outputs = each(indicator, memories[indicator], columns)
        known.update(zip(indicator.columns, outputs, strict=True))
    return after, known


def each(indicator: Indicator, memories: Floats, columns: Floats) -> tuple[Floats, Floats]:
    """The indicator's kernel over one bar of each symbol: (symbols, length) and (columns, symbols) in, (outputs, symbols) out."""
    loop = _loop(indicator) if memories.shape[0] >= FEW else None
    if loop is None:
        return _one_by_one(indicator, memories, columns)
    assert all(given.flags.c_contiguous for given in (memories, columns))  # the entry point believes what it is given
    after, outputs = loop(memories, columns, indicator.params, len(indicator.kind.writes))
    return after, outputs


def moved(close: Floats, previous_close: Floats, sign: float) -> Floats:
    """How far each symbol's close rose (sign 1) or fell (sign -1) since its bar before."""
    return _moved(np.ascontiguousarray(close), np.ascontiguousarray(previous_close), sign)


def _one_by_one(indicator: Indicator, memories: Floats, columns: Floats) -> tuple[Floats, Floats]:
    after, outputs = np.empty_like(memories), np.empty((len(indicator.kind.writes), len(memories)))
    for i in range(len(memories)):
        after[i], found = run(indicator, memories[i], [column[i : i + 1] for column in columns])
        outputs[:, i] = found[:, 0]
    return after, outputs


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _moved(close: Floats, previous_close: Floats, sign: float) -> Floats:
    out = np.empty(close.size)
    for i in range(close.size):
        out[i] = movement(close[i : i + 1], previous_close[i], sign)[0]
    return out


def _one(kernel: Any, memories: Floats, columns: Floats, params: Any, writes: int) -> Any:
    after, out = np.empty_like(memories), np.empty((writes, memories.shape[0]))
    for i in range(memories.shape[0]):
        memory, found = kernel(memories[i], columns[0, i : i + 1], *params)
        after[i] = memory
        for j in range(writes):
            out[j, i] = found[j, 0]
    return after, out


def _two(kernel: Any, memories: Floats, columns: Floats, params: Any, writes: int) -> Any:
    after, out = np.empty_like(memories), np.empty((writes, memories.shape[0]))
    for i in range(memories.shape[0]):
        memory, found = kernel(memories[i], columns[0, i : i + 1], columns[1, i : i + 1], *params)
        after[i] = memory
        for j in range(writes):
            out[j, i] = found[j, 0]
    return after, out


def _three(kernel: Any, memories: Floats, columns: Floats, params: Any, writes: int) -> Any:
    after, out = np.empty_like(memories), np.empty((writes, memories.shape[0]))
    for i in range(memories.shape[0]):
        memory, found = kernel(memories[i], columns[0, i : i + 1], columns[1, i : i + 1], columns[2, i : i + 1], *params)
        after[i] = memory
        for j in range(writes):
            out[j, i] = found[j, 0]
    return after, out


def _four(kernel: Any, memories: Floats, columns: Floats, params: Any, writes: int) -> Any:
    after, out = np.empty_like(memories), np.empty((writes, memories.shape[0]))
    for i in range(memories.shape[0]):
        memory, found = kernel(
            memories[i], columns[0, i : i + 1], columns[1, i : i + 1], columns[2, i : i + 1], columns[3, i : i + 1], *params
        )
        after[i] = memory
        for j in range(writes):
            out[j, i] = found[j, 0]
    return after, out


# By how many columns the kernel reads: numba unpacks a tuple of numbers into arguments, not one of arrays.
LOOPS: dict[int, Callable[..., Any]] = {1: _one, 2: _two, 3: _three, 4: _four}


@cache
def _loop(indicator: Indicator) -> Callable[..., Any] | None:
    """The compiled loop for kernels of this form, with this kernel; None for one that is not compiled, reads more columns, or returns other
    arrays. It is the loop's entry point, with the kernel's address: a call by numba's dispatch finds out again of what types all is, which
    takes longer than the work itself."""
    kernel, columns = indicator.kind.kernel, len(indicator.reads)
    if columns not in LOOPS or not hasattr(kernel, "compile"):
        return None
    params = tuple(types.float64 if isinstance(value, float) else types.int64 for value in indicator.params)
    given = (VECTOR, *(VECTOR,) * columns, *params)
    kernel.compile(given)
    compiled: Any = kernel.overloads[given]  # type: ignore[attr-defined]
    if compiled.signature.return_type != PAIR:
        return None
    (loop,) = _compiled(columns, params).overloads.values()  # type: ignore[attr-defined]
    return partial(loop.entry_point, CompileResultWAP(compiled))


@cache
def _compiled(columns: int, params: tuple[Any, ...]) -> Callable[..., Any]:
    kernel = types.FunctionType(PAIR(VECTOR, *(VECTOR,) * columns, *params))
    signature = TUPLE((MATRIX, MATRIX))(kernel, MATRIX, MATRIX, TUPLE(params), types.int64)
    loop: Callable[..., Any] = numba.njit(signature, cache=True, nogil=True, error_model="numpy")(LOOPS[columns])
    return loop
