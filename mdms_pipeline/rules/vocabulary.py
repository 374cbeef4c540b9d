"""Which names a rule may use. Handed in by the caller: rules know no indicator by themselves."""

from __future__ import annotations

import keyword
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from mdms_pipeline.market import PRICES_AND_AMOUNTS

FUNCTIONS = ("abs", "max", "min")
CROSSES = ("crosses_above", "crosses_below")


@dataclass(frozen=True)
class Signature:
    """How one indicator is called.

    `params` are names with usual values, which error messages use as examples; one whose usual value is an `int` is a count
    of bars and must be whole. `source` is the candle column read when the call names none, None where there is no choice.
    `check(*params)` says what is wrong with the numbers together (`fast must be below slow`), None if nothing is.
    """

    name: str
    source: str | None
    params: tuple[tuple[str, float], ...]
    outputs: tuple[str, ...]
    check: Callable[..., str | None] = lambda *_: None

    @property
    def example(self) -> str:
        """`macd(12, 26, 9).line`: a call as it is usually written."""
        return f"{self.name}({', '.join(f'{usual:g}' for _, usual in self.params)})" + (f".{self.outputs[0]}" if self.several else "")

    @property
    def several(self) -> bool:
        """Whether a call must say which output it means."""
        return len(self.outputs) > 1


@dataclass(frozen=True)
class Vocabulary:
    """The names a rule may use. `given` are further plain names, such as a backtest's `entry_price`; ValueError on a clash."""

    indicators: tuple[Signature, ...]
    series: tuple[str, ...] = PRICES_AND_AMOUNTS
    given: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, times in Counter(self.names).items():
            if times > 1:
                raise ValueError(f"vocabulary: {name!r} names two things: rename one")
            if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name):
                raise ValueError(f"vocabulary: {name!r} cannot be a name: use letters, digits and _")

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that may begin an expression."""
        return (*self.series, *self.given, *(signature.name for signature in self.indicators), *FUNCTIONS, *CROSSES)

    def signature(self, name: str) -> Signature | None:
        """The indicator of that name, None where there is none."""
        return next((signature for signature in self.indicators if signature.name == name), None)
