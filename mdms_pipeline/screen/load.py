"""Screen files: YAML text to `Screen`, every fault with its file, line, field, value and remedy.

ValueError
  ScreenError    one thing that is wrong in one file; loading returns them beside the screens that are right
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError

from mdms_pipeline.market import Timeframe, check_symbol, timeframe
from mdms_pipeline.marks import NAME, SUFFIXES, FileError, Marks, Place, YamlError, cron, dotted, read_yaml, shown
from mdms_pipeline.rules import Call, Expression, Formula, Rule, RuleError, Vocabulary, did_you_mean, parse, parse_value

BUILT_IN = Path(__file__).parent / "screens"
E = TypeVar("E", bound=Expression)


class ScreenError(FileError):
    """One thing that is wrong in one screen file."""


@dataclass(frozen=True)
class Universe:
    """Which symbols a screen looks at: all that are collected, those named, or the `top` by turnover."""

    symbols: tuple[str, ...] | None = None
    top: int | None = None


@dataclass(frozen=True)
class Screen:
    """One screen, its rules parsed."""

    name: str
    title: str
    description: str
    timeframe: Timeframe
    universe: Universe
    where: tuple[Rule, ...]  # all must hold
    rank: Formula
    descending: bool  # the highest rank first
    limit: int  # places in the ranking
    max_age: int  # slots that a symbol's last trade may lie back
    columns: tuple[Formula, ...]  # further values to show
    file: Path = field(compare=False)
    schedule: str | None = field(default=None, compare=False)  # cron, UTC; None: after each refresh of its timeframe

    @property
    def expressions(self) -> tuple[Rule | Formula, ...]:
        """Everything to evaluate."""
        return (*self.where, self.rank, *self.columns)

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """The distinct indicator columns that it reads."""
        return tuple(dict.fromkeys(call for expression in self.expressions for call in expression.calls))

    @cached_property
    def series(self) -> tuple[str, ...]:
        """The distinct candle columns that it reads."""
        return tuple(dict.fromkeys(name for expression in self.expressions for name in expression.columns))

    @cached_property
    def lookback(self) -> int:
        """Bars before the last one that it needs."""
        return max(expression.lookback for expression in self.expressions)

    @cached_property
    def fingerprint(self) -> str:
        """Changes whenever the same numbers may give another result; title and description do not count."""
        said = (*map(str, self.expressions), len(self.where), self.timeframe, self.universe, self.descending, self.limit, self.max_age)
        return hashlib.blake2b(repr([str(part) for part in said]).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Loaded:
    """What a set of directories holds: the right screens by name, and everything that is wrong with the others."""

    screens: dict[str, Screen]
    errors: tuple[ScreenError, ...]


# ---- the file as written; the descriptions are the remedies of error messages


def _universe(given: Any) -> Universe:
    match given:
        case "all":
            return Universe()
        case {"top": int(top), **rest} if top >= 1 and not isinstance(top, bool) and not rest:
            return Universe(top=top)
        case [_, *_] if all(isinstance(symbol, str) for symbol in given):
            if len(set(given)) < len(given):
                raise ValueError("a symbol stands here twice")
            return Universe(symbols=tuple(map(check_symbol, given)))
    raise ValueError("this names no universe")


def _timeframe(name: str) -> str:
    return timeframe(name).name


def _clauses(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class RankFile(_Strict):
    """How a screen's ranking is ordered."""

    expression: str = Field(description="write a value, such as rsi(14)")
    direction: Literal["desc", "asc"] = Field(description="write desc (the highest first) or asc (the lowest first)")


class ScreenFile(_Strict):
    """A screen as its file says it."""

    name: str | None = Field(None, description="leave it out, or write the file's name without its ending")
    title: str = Field(min_length=1, description="write a few words that name the screen")
    description: str = Field("", description="write a sentence or two on what it finds")
    timeframe: Annotated[str, AfterValidator(_timeframe)] = Field(description="write one of 1m 3m 5m 10m 15m 30m 1h 4h 1d 1w 1M")
    universe: Annotated[Universe, PlainValidator(_universe)] = Field(
        Universe(), description="write all, a list such as [KRW-BTC, KRW-ETH], or {top: 30} for the 30 of the highest turnover"
    )
    where: Annotated[list[str], BeforeValidator(_clauses)] = Field(
        min_length=1, description="write one condition or a list of them, such as close > sma(200)"
    )
    rank: RankFile = Field(description="write {expression: rsi(14), direction: asc}")
    limit: int = Field(20, ge=1, description="write the number of places in the ranking, 1 or more")
    max_age: int = Field(1, ge=0, description="write how many slots the last trade may lie back, 0 or more")
    columns: list[str] = Field([], description="write a list of values to show as well, such as [rsi(14)]")
    schedule: Annotated[str, AfterValidator(cron)] | None = Field(
        None, description="write a time of cron's in UTC, such as '5 0 * * *', or leave it out to screen after each refresh"
    )


# ---- files to screens


def load_screens(directories: Iterable[Path], vocabulary: Vocabulary) -> Loaded:
    """All screens of `directories`. A bad file hides no good one; of two screens with one name the first stays, the other is an error."""
    screens: dict[str, Screen] = {}
    errors: list[ScreenError] = []
    for file, fault in _files(directories):
        found = fault or load_screen(file, vocabulary)
        if isinstance(found, Screen) and found.name in screens:
            found = _twice(found, screens[found.name])
        if isinstance(found, Screen):
            screens[found.name] = found
        else:
            errors.extend(found)
    return Loaded(screens, tuple(errors))


def load_screen(file: Path, vocabulary: Vocabulary) -> Screen | list[ScreenError]:
    """The screen that `file` holds, or everything that is wrong with it."""
    try:
        text = file.read_text(encoding="utf-8")
        data, marks = read_yaml(text)
    except (OSError, UnicodeDecodeError) as error:
        return [ScreenError(file, 1, "", "", f"the file cannot be read: {error}", "check that it is a text file in UTF-8")]
    except YamlError as error:
        return [ScreenError(file, error.line, "", "", f"this is not YAML: {error.problem}", "check indentation, quotes and colons")]
    if not isinstance(data, dict):
        return [ScreenError(file, 1, "", "", "this is not a screen", "write keys and values: title, timeframe, where, rank")]
    try:
        written = ScreenFile.model_validate(data)
    except ValidationError as error:
        return [_schema_error(file, marks, fault) for fault in error.errors()]
    return _named(file, written, marks) or _ScreenReader(file, marks, vocabulary).screen(written)


def _files(directories: Iterable[Path]) -> Iterator[tuple[Path, list[ScreenError] | None]]:
    """Every screen file in order; a directory that is not there comes with its error."""
    for directory in directories:
        if not directory.is_dir():
            yield directory, [ScreenError(directory, 1, "", "", "there is no such folder", "make it, or mend the setting that names it")]
            continue
        yield from ((file, None) for file in sorted(directory.iterdir()) if file.suffix in SUFFIXES)


def _twice(screen: Screen, first: Screen) -> list[ScreenError]:
    return [ScreenError(screen.file, 1, "name", screen.name, f"this name is taken by {first.file}", "give the file another name")]


def _named(file: Path, written: ScreenFile, marks: Marks) -> list[ScreenError]:
    """What is wrong with the screen's name: empty if nothing is."""
    if not NAME.fullmatch(file.stem):
        remedy = "use small letters, digits and single underscores, such as pullback_in_uptrend.yaml"
        return [ScreenError(file, 1, "", "", "the file's name cannot name a screen", remedy)]
    if written.name not in (None, file.stem):
        problem, remedy = f"this is not the file's name, {file.stem}", "leave name out, or rename the file"
        return [ScreenError(file, marks.line(("name",)), "name", written.name or "''", problem, remedy)]
    return []


def _schema_error(file: Path, marks: Marks, fault: Any) -> ScreenError:
    """One finding of pydantic in our words."""
    place: Place = fault["loc"]
    model = RankFile if place[0] == "rank" and len(place) > 1 else ScreenFile
    key = str(place[1] if model is RankFile else place[0])
    line, value = marks.line(place), shown(fault["input"])
    if fault["type"] == "extra_forbidden":
        return ScreenError(file, line, dotted(place), value, "unknown key", did_you_mean(key, model.model_fields))
    remedy = model.model_fields[key].description if key in model.model_fields else None
    if fault["type"] == "missing":
        return ScreenError(file, line, dotted(place), "", "is missing", remedy or "")
    problem = fault["msg"].removeprefix("Value error, ")
    return ScreenError(file, line, dotted(place), value, problem[0].lower() + problem[1:], remedy or "")


class _ScreenReader:
    """Parses the rules of one file and keeps count of what is wrong."""

    def __init__(self, file: Path, marks: Marks, vocabulary: Vocabulary) -> None:
        self.file, self.marks, self.vocabulary = file, marks, vocabulary
        self.errors: list[ScreenError] = []

    def screen(self, written: ScreenFile) -> Screen | list[ScreenError]:
        where = self.all(parse, ("where",), written.where)
        rank = self.one(parse_value, ("rank", "expression"), written.rank.expression)
        columns = self.all(parse_value, ("columns",), written.columns)
        if self.errors or rank is None:
            return self.errors
        return Screen(
            name=self.file.stem,
            title=written.title,
            description=written.description.strip(),
            timeframe=timeframe(written.timeframe),
            universe=written.universe,
            where=where,
            rank=rank,
            descending=written.rank.direction == "desc",
            limit=written.limit,
            max_age=written.max_age,
            columns=columns,
            file=self.file,
            schedule=written.schedule,
        )

    def all(self, parser: Callable[[str, Vocabulary], E], place: Place, texts: list[str]) -> tuple[E, ...]:
        parsed = [self.one(parser, (*place, i), text) for i, text in enumerate(texts)]
        return tuple(expression for expression in parsed if expression is not None)

    def one(self, parser: Callable[[str, Vocabulary], E], place: Place, text: str) -> E | None:
        try:
            return parser(text, self.vocabulary)
        except RuleError as error:
            at = place if place in self.marks.lines else place[:-1]  # a single clause needs no list
            line = self.marks.texts.get(at, 1) + error.line - 1
            problem, _, remedy = str(error).rpartition("\n")
            self.errors.append(ScreenError(self.file, line, dotted(at), "", problem, remedy))
            return None
