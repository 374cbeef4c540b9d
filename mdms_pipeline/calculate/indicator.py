"""What an indicator is. Its asset, table, docs, batch run and live run are all read from one declaration.

A `Kind` is what one decorated kernel declares: `sma`. An `Indicator` is a kind with its arguments filled in:
`sma("volume", 20)`. A kind has one table and one Dagster asset, an indicator one or more columns of that table.

Bars are counted from a symbol's first candle, index 0. Whatever cannot be declared or asked for is refused with a ValueError.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

import numpy as np

from mdms_pipeline.market import PRICES_AND_AMOUNTS, Floats

# What a kernel may read without an upstream indicator, and the index of its first value: candle columns, and how far the
# close rose or fell since the bar before (the other of the two is 0).
SOURCES: dict[str, int] = {**dict.fromkeys(PRICES_AND_AMOUNTS, 0), "rise": 1, "fall": 1}

MAX_BARS = 10_000  # bars a parameter may count: far beyond any window in use, and a memory of 80 kB
FORGOTTEN = 1e-6  # weight below which a seed no longer counts


@dataclass(frozen=True)
class Output:
    """One column of another indicator: an edge of the graph."""

    indicator: Indicator
    column: str  # as in `Kind.writes`

    @property
    def name(self) -> str:
        """The column's name in the indicator's table: `macd_12_26_9_signal`."""
        return self.indicator.column(self.column)


Read = str | Output  # a name of SOURCES, or a column of another indicator
Kernel = Callable[..., tuple[Floats, Floats]]


@dataclass(frozen=True, eq=False)
class Kind:
    """A family of indicators, declared once (by `@indicator`).

    `kernel(memory, *columns, *params) -> (memory, outputs)` is pure: `memory` a 1-D float64 array, never written to;
    `columns` the arrays of `reads`, all of one length n; `outputs` float64 of shape (len(writes), n), NaN where unknown.
    """

    name: str
    kernel: Kernel
    version: int  # raise it when a change of the kernel may change bits: everything downstream is then calculated from the start
    source: str | None  # the candle column read when the call names none (`sma(20)` is of close); None where there is no choice
    params: dict[str, int | float]  # names and usual values; whole numbers count bars
    inputs: Callable[..., Sequence[str | Indicator | Output]]  # (source, *params) where there is a source, else (*params)
    writes: tuple[str, ...]
    before: Callable[..., Sequence[float]]  # (*params) -> memory before the first bar
    lag: Callable[..., int | tuple[int, ...]]  # (*params) -> bars this kind itself adds before the first value (of each of `writes`)
    settles: Callable[..., int]  # (*params) -> further bars until its own seed weighs less than FORGOTTEN; 0 if it has none
    check: Callable[..., str | None]  # (*params) -> what is wrong with them together, or None
    doc: str

    def __call__(self, *arguments: str | float) -> Indicator:
        """The indicator with these arguments: an optional source column, then all parameters or none (the usual ones)."""
        source, values = self.source, list(arguments)
        if values and isinstance(values[0], str):
            source = self._checked_source(values.pop(0))
        if values and len(values) != len(self.params):
            wanted = ", ".join(self.params) or "no parameters"
            raise ValueError(f"{self.name}: takes {wanted}, got {len(values)} value(s): write it like {self.usual.call}")
        values = values or list(self.params.values())
        params = tuple(
            _checked_param(self.name, name, usual, value) for (name, usual), value in zip(self.params.items(), values, strict=True)
        )
        if complaint := self.check(*params):
            raise ValueError(f"{self.name}: {complaint}")
        return Indicator(self, source, params)

    @property
    def usual(self) -> Indicator:
        """The indicator with the usual values."""
        return Indicator(self, self.source, tuple(self.params.values()))

    def __repr__(self) -> str:
        return f"<kind {self.name}>"

    def _checked_source(self, source: Any) -> str:
        if self.source is None:
            raise ValueError(f"{self.name}: takes no source column, got {source!r}: write it like {self.usual.call}")
        if source not in SOURCES:
            raise ValueError(f"{self.name}: source {source!r} is not known: use one of {', '.join(SOURCES)}")
        return str(source)


@dataclass(frozen=True)
class Indicator:
    """A kind with its arguments: one vertex of the graph at variant level. Made by calling a kind, which checks the arguments."""

    kind: Kind
    source: str | None
    params: tuple[int | float, ...]

    @cached_property
    def name(self) -> str:
        """`sma_20`, `sma_volume_20`, `bollinger_20_2_5`: the usual source is left out."""
        return "_".join((self.kind.name, *self._arguments)).replace(".", "_")

    @cached_property
    def call(self) -> str:
        """`sma(20)`, `sma(volume, 20)`, `bollinger(20, 2.5)`: as it is written in a rule."""
        return f"{self.kind.name}({', '.join(self._arguments)})"

    def column(self, output: str | None = None) -> str:
        """The name of an output in the table: `sma_20`, `macd_12_26_9_signal`. A single output needs no naming."""
        writes = self.kind.writes
        if output is None and len(writes) == 1:
            return self.name
        if output not in writes:
            raise ValueError(f"{self.call}: output {output!r} is not known: use one of {', '.join(writes)}, like {self.call}.{writes[0]}")
        return self.name if len(writes) == 1 else f"{self.name}_{output}"

    def output(self, output: str | None = None) -> Output:
        """An edge that carries this output."""
        self.column(output)
        return Output(self, output or self.kind.writes[0])

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of all outputs in the table, in the order of the kernel's rows."""
        return tuple(self.column(output) for output in self.kind.writes)

    @cached_property
    def reads(self) -> tuple[Read, ...]:
        """What the kernel is given, in its order: the only way by which anything reaches it."""
        given = self.params if self.kind.source is None else (self.source, *self.params)
        return tuple(read.output() if isinstance(read, Indicator) else read for read in self.kind.inputs(*given))

    @cached_property
    def upstream(self) -> tuple[Indicator, ...]:
        """The indicators that it reads, each once, in the order of `reads`."""
        return tuple(dict.fromkeys(read.indicator for read in self.reads if isinstance(read, Output)))

    @property
    def memory(self) -> Floats:
        """What is remembered before the first bar; a new array at each asking, of a length that never changes."""
        return np.array(self.kind.before(*self.params), dtype=np.float64).reshape(-1)

    @cached_property
    def memory_shape(self) -> tuple[int]:
        """The shape of `memory`, without making one."""
        return (len(self.kind.before(*self.params)),)

    @cached_property
    def first(self) -> tuple[int, ...]:
        """Of each output, the index of the first bar that has a value, if no candle is unknown."""
        lag = self.kind.lag(*self.params)
        lags = (lag,) * len(self.kind.writes) if isinstance(lag, int) else lag
        return tuple(self._inputs_from(_first) + lag for lag in lags)

    @cached_property
    def stable_after(self) -> int:
        """The index of the first bar at which the seeds of its whole chain weigh less than FORGOTTEN; adds along the chain."""
        own = max(self.first) - self._inputs_from(_first)
        return self._inputs_from(_stable_after) + own + self.kind.settles(*self.params)

    @cached_property
    def fingerprint(self) -> str:
        """Changes whenever the same candles may give other bits: kernel, arguments, or anything upstream."""
        reads = [read if isinstance(read, str) else (read.indicator.fingerprint, read.column) for read in self.reads]
        declared = json.dumps([self.kind.name, self.kind.version, self.source, self.params, reads])
        return hashlib.blake2b(declared.encode(), digest_size=16).hexdigest()

    def __str__(self) -> str:
        return self.call

    @property
    def _arguments(self) -> Iterator[str]:
        if self.source is not None and self.source != self.kind.source:
            yield self.source
        yield from map(_text, self.params)

    def _inputs_from(self, index: Callable[[Read], int]) -> int:
        return max(map(index, self.reads), default=0)


def indicator(
    *,
    reads: Callable[..., Sequence[str | Indicator | Output]],
    memory: Callable[..., Sequence[float]] = lambda *params: (),
    source: str | None = None,
    writes: tuple[str, ...] = (),
    lag: Callable[..., int | tuple[int, ...]] = lambda *params: 0,
    settles: Callable[..., int] = lambda *params: 0,
    check: Callable[..., str | None] = lambda *params: None,
    version: int = 1,
) -> Callable[[Kernel], Kind]:
    """Declare the kernel below as a kind of its name: its docstring describes it, its arguments with a default are its parameters."""

    def declare(kernel: Kernel) -> Kind:
        function: Any = getattr(kernel, "py_func", kernel)
        name, doc, signature = function.__name__, inspect.getdoc(function), inspect.signature(function)
        params = {key: value.default for key, value in signature.parameters.items() if value.default is not value.empty}
        if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
            raise ValueError(f"kind {name!r}: its name is a table's: use lower case letters, digits and single underscores")
        if not doc:
            raise ValueError(f"{name}: has no docstring: say what it is, its formula and its odd case")
        kind = Kind(name, kernel, version, source, params, reads, writes or (name,), memory, lag, settles, check, doc)
        columns = len(signature.parameters) - len(params) - 1
        if columns != len(kind().reads):
            raise ValueError(f"{name}: its kernel takes {columns} column(s) after memory, but reads declares {len(kind().reads)}")
        if unknown := [read for read in kind().reads if isinstance(read, str) and read not in SOURCES]:
            raise ValueError(f"{name}: reads {unknown[0]!r}, which is not known: use one of {', '.join(SOURCES)}, or an indicator")
        if len(kind().first) != len(kind.writes):
            raise ValueError(f"{name}: writes {len(kind.writes)} column(s), but lag gives {len(kind().first)}")
        return kind

    return declare


def forgets(rate: float) -> int:
    """Bars until a mean that moves by `rate` (a fraction) towards each value has forgotten its seed: it then weighs less than FORGOTTEN."""
    return 0 if rate >= 1 else math.floor(math.log(FORGOTTEN) / math.log1p(-rate)) + 1


def _first(read: Read) -> int:
    return SOURCES[read] if isinstance(read, str) else read.indicator.first[read.indicator.kind.writes.index(read.column)]


def _stable_after(read: Read) -> int:
    return SOURCES[read] if isinstance(read, str) else read.indicator.stable_after


def _checked_param(kind: str, name: str, usual: int | float, value: Any) -> int | float:
    """`value` in the type of `usual`: a whole number counts bars, another is a positive factor."""
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool) and math.isfinite(value)
    if isinstance(usual, int):
        if not number or value != int(value) or value < 1:
            raise ValueError(f"{kind}: {name} must be a whole number >= 1, got {value!r}")
        if value > MAX_BARS:
            raise ValueError(f"{kind}: {name} must be at most {MAX_BARS} bars, got {value!r}")
        return int(value)
    if not number or value <= 0:
        raise ValueError(f"{kind}: {name} must be a number > 0, got {value!r}")
    return float(value)


def _text(value: int | float) -> str:
    """`20`, `2`, `2.5`: no trailing zeros, no exponent."""
    return str(int(value)) if value == int(value) else f"{Decimal(repr(value)):f}"
