"""The indicators that exist, in topological order: whatever a kind reads stands before it.

One line here and one function in kernels.py add an indicator; `register` adds one from outside of the package.
"""

from __future__ import annotations

from collections.abc import Iterable

from mdms_pipeline.calculate.indicator import Indicator, Kind
from mdms_pipeline.calculate.kernels import atr, bollinger, ema, highest, lowest, macd, rsi, sma, stddev, stoch, tr

KINDS: dict[str, Kind] = {kind.name: kind for kind in (tr, sma, ema, stddev, highest, lowest, rsi, atr, macd, bollinger, stoch)}

# What is calculated and stored without being asked for.
DEFAULTS: tuple[Indicator, ...] = (
    tr(),
    *map(sma, (5, 10, 20, 60, 120, 200)),
    sma("volume", 20),
    sma("rise", 14),
    sma("fall", 14),
    *map(ema, (12, 26, 50, 200)),
    stddev(20),
    *map(highest, (14, 20, 55)),
    *map(lowest, (14, 20, 55)),
    rsi(14),
    atr(14),
    macd(12, 26, 9),
    bollinger(20, 2),
    stoch(14, 3, 3),
)

_registered: list[Indicator] = []


def register(kind: Kind, *variants: Indicator) -> Kind:
    """Add a kind from outside of the package, and its variants to be stored (none named: the usual one). Returns it: a decorator."""
    for name in KINDS:
        if name == kind.name:
            raise ValueError(f"kind {name!r} is registered already: choose another name")
        if name.startswith(f"{kind.name}_") or kind.name.startswith(f"{name}_"):
            raise ValueError(f"kind {kind.name!r} could be mistaken for a column of kind {name!r}: choose another name")
    for upstream in closure(variants or (kind.usual,)):
        if upstream.kind is not kind and KINDS.get(upstream.kind.name) is not upstream.kind:
            raise ValueError(
                f"kind {kind.name!r} reads {upstream.call}, whose kind is not registered: register {upstream.kind.name!r} first"
            )
    KINDS[kind.name] = kind
    _registered.extend(variants or (kind.usual,))
    return kind


def defaults() -> tuple[Indicator, ...]:
    """DEFAULTS and the variants that extensions registered."""
    return (*DEFAULTS, *_registered)


def closure(indicators: Iterable[Indicator]) -> tuple[Indicator, ...]:
    """`indicators` and all that they read, each once, upstream first."""
    found: dict[Indicator, None] = {}
    for indicator in indicators:
        if indicator not in found:
            found.update(dict.fromkeys((*closure(indicator.upstream), indicator)))
    return tuple(found)


def kind_edges() -> dict[str, set[str]]:
    """Of each kind, the kinds that it reads, and "candles" where it reads a candle column: the asset lineage."""
    return {
        name: {"candles" if isinstance(read, str) else read.indicator.kind.name for read in kind.usual.reads}
        for name, kind in KINDS.items()
    }


def ordered(names: Iterable[str]) -> list[str]:
    """Kind names in topological order."""
    wanted = set(names)
    return [name for name in KINDS if name in wanted]
