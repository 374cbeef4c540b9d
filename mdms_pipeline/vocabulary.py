"""Rules in the words of the catalog: which indicators a rule may name, which it asks for, and which columns they stand in.

The one place where `rules` and `calculate` meet, so that neither knows the other.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

from mdms_pipeline.calculate.catalog import KINDS, closure, defaults
from mdms_pipeline.calculate.indicator import Indicator
from mdms_pipeline.rules import Call, Expression, Key, Signature, Vocabulary, parse_value
from mdms_pipeline.rules.nodes import Series as SeriesName


class ExtensionError(ValueError):
    """A file of MDMS_EXTENSIONS that does not load."""


def vocabulary() -> Vocabulary:
    """Every indicator of the catalog as a rule may call it."""
    return Vocabulary(
        tuple(Signature(kind.name, kind.source, tuple(kind.params.items()), kind.writes, kind.check) for kind in KINDS.values())
    )


def indicator_of(call: Call) -> Indicator:
    """The indicator that a rule's call means. Raises ValueError where its arguments cannot be."""
    kind = KINDS[call.name]
    return kind(call.source, *call.params) if call.source else kind(*call.params)


def column_of(call: Call) -> str:
    """The column of the indicator's table that a rule's call means."""
    return indicator_of(call).column(call.output)


def parse_indicator(text: str) -> Indicator:
    """`rsi(14)`, `macd(12, 26, 9)` or a bare kind, `macd`, with its usual values. Raises RuleError or ValueError."""
    if text in KINDS:
        return KINDS[text].usual
    name = text.split("(")[0].strip()
    several = name in KINDS and len(KINDS[name].writes) > 1 and text.rstrip().endswith(")")
    root = parse_value(f"{text}.{KINDS[name].writes[0]}" if several else text, vocabulary()).root
    if not isinstance(root, Call):
        what = f"{root} is a candle column" if isinstance(root, SeriesName) else f"{root} is not an indicator"
        raise ValueError(f"{text!r}: {what}: write an indicator such as rsi(14)")
    return indicator_of(root)


def needed(expressions: Iterable[Expression]) -> tuple[Indicator, ...]:
    """The indicators that these rules read and all that those read, upstream first."""
    return closure(indicator_of(call) for expression in expressions for call in expression.calls)


def stored(expressions: Iterable[Expression] = ()) -> tuple[Indicator, ...]:
    """All indicators that are kept in the warehouse: the usual ones, and those that saved rules ask for."""
    return closure((*defaults(), *needed(expressions)))


def tables(keys: Iterable[Key]) -> dict[str, list[str]]:
    """Table -> its columns that are meant by these names."""
    wanted: dict[str, dict[str, None]] = {"candles": {}}
    for key in keys:
        table, column = ("candles", key) if isinstance(key, str) else (key.name, column_of(key))
        wanted.setdefault(table, {})[column] = None
    return {table: list(columns) for table, columns in wanted.items()}


def load_extensions(folder: Path | None) -> None:
    """Run each `indicators/*.py` of the folder once: it registers its kinds. Raises ExtensionError naming the file."""
    for file in sorted((folder / "indicators").glob("*.py")) if folder else []:
        name = f"mdms_extensions.{file.stem}"
        if file in _loaded:
            continue
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise ExtensionError(f"extension {file} does not load: {type(error).__name__}: {error}") from error
        _loaded.add(file)


_loaded: set[Path] = set()
