"""What was told live against what the stored candles give: one for one, value for value, to the bit. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from mdms_pipeline.market import Instant, iso

Key = tuple[str, str, str, str, str, Instant]  # source, name, rule, symbol, timeframe, opened_at
MISSING, TOO_MUCH, OTHERWISE = "missing", "too much", "otherwise"


class Told(Protocol):
    """A signal, as it was emitted or as a table has it."""

    @property
    def source(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def rule(self) -> str: ...
    @property
    def symbol(self) -> str: ...
    @property
    def timeframe(self) -> str: ...
    @property
    def opened_at(self) -> Instant: ...
    @property
    def answer(self) -> bool | None: ...
    @property
    def before(self) -> bool | None: ...
    @property
    def values(self) -> Mapping[str, float | None]: ...
    @property
    def revision(self) -> int: ...


@dataclass(frozen=True)
class Difference:
    """One bar at which what was told is not what is stored."""

    what: str  # MISSING: never told; TOO_MUCH: told of a bar at which nothing changed; OTHERWISE: told with another content
    key: Key
    detail: str

    def __str__(self) -> str:
        source, name, rule, symbol, timeframe, opened_at = self.key
        return f"{self.what}: {source} {name} {rule}, {symbol} {timeframe} {iso(opened_at)}: {self.detail}"


def differences(expected: Iterable[Told], told: Iterable[Told]) -> list[Difference]:
    """Everything that differs; none is parity. Of several tellings of one bar the highest revision counts (`standing`)."""
    wanted, held = {key_of(one): one for one in expected}, standing(told)
    found = []
    for key in sorted(wanted.keys() | held.keys(), key=lambda key: (key[-1], *key[:-1])):
        if key not in held:
            found.append(Difference(MISSING, key, _said(wanted[key])))
        elif key not in wanted:
            found.append(Difference(TOO_MUCH, key, _said(held[key])))
        elif content(wanted[key]) != content(held[key]):
            found.append(Difference(OTHERWISE, key, f"told {_said(held[key])}; stored {_said(wanted[key])}"))
    return found


def standing(told: Iterable[Told]) -> dict[Key, Told]:
    """What stands after all revisions: of each bar the last telling, none where that says that nothing changed after all."""
    last: dict[Key, Told] = {}
    for one in told:
        held = last.get(key_of(one))
        if held is None or one.revision >= held.revision:
            last[key_of(one)] = one
    return {key: one for key, one in last.items() if one.answer != one.before}


def key_of(signal: Told) -> Key:
    return signal.source, signal.name, signal.rule, signal.symbol, signal.timeframe, signal.opened_at


def content(signal: Told) -> tuple[object, ...]:
    """All that the candles decide, numbers as their bits; -0.0 is not 0.0."""
    return signal.answer, signal.before, bits_of(signal.values)


def bits_of(values: Mapping[str, float | None]) -> list[tuple[str, bytes | None]]:
    """Values by name as their bits."""
    return [(name, None if value is None else struct.pack("<d", value)) for name, value in sorted(values.items())]


def _said(signal: Told) -> str:
    values = ", ".join(f"{name} = {value!r}" for name, value in signal.values.items())
    return f"{signal.before} -> {signal.answer} ({values})"
