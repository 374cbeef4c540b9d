"""Strategy files: YAML text to `Recipe`, a recipe with its parameters filled in to `Strategy`.

ValueError
  FileError
    StrategyError    one thing that is wrong in one strategy file; loading returns them beside the strategies that are right
  ParamError         a parameter that the recipe has not, or a value with which its rules cannot be
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from mdms_pipeline.market import DAY, FEE_RATE, MIN_ORDER, Timeframe, check_symbol, timeframe
from mdms_pipeline.marks import NAME, SUFFIXES, FileError, Marks, Place, YamlError, cron, dotted, read_yaml, shown
from mdms_pipeline.rules import Call, Expression, Formula, Rule, RuleError, Vocabulary, did_you_mean, parse, parse_value

BUILT_IN = Path(__file__).parent / "strategies"
POSITION = ("entry_price", "bars_held")  # what an exit rule may read of the position
AFTER_REFRESH = "refresh"  # the schedule of a backtest that is made anew after each refresh of its timeframe
MAX_COMBINATIONS = 10_000  # of one sweep
TURNOVER_WINDOW = 30 * DAY  # seconds over which a universe by turnover looks back
E = TypeVar("E", bound=Expression)
Params = Mapping[str, float]
Fault = tuple[Place, int, str, str]  # place, lines below its first, problem, remedy


class StrategyError(FileError):
    """One thing that is wrong in one strategy file."""


class ParamError(ValueError):
    """A parameter that the recipe has not, or a value with which its rules cannot be."""


# ---- what a strategy is


@dataclass(frozen=True)
class Universe:
    """Which symbols may be entered at a slot: all that are stored, those named, the `top` by turnover of the 30 days before each
    rebalance, or those that pass the `where` rules of a screen at that close."""

    symbols: tuple[str, ...] | None = None
    top: int | None = None
    rebalance: str = "1d"
    screen: str | None = None


@dataclass(frozen=True)
class Level:
    """A distance from a price: a fraction of it, or KRW by a formula."""

    fraction: float = 0.0
    formula: Formula | None = None

    def __str__(self) -> str:
        return str(self.formula) if self.formula else f"{self.fraction:g}"


@dataclass(frozen=True)
class Sizing:
    """How much KRW an entry is worth: `fraction` of equity, fixed `krw`, or so that `risk` of equity is lost if price falls by `per`."""

    by: Literal["fraction", "krw", "risk"]
    amount: float
    per: Formula | None = None

    def __str__(self) -> str:
        return f"{self.by} {self.amount:g}" + (f" per {self.per}" if self.per else "")


@dataclass(frozen=True)
class Costs:
    fee: float = FEE_RATE  # fraction of the amount, both ways
    slippage: float = 1.0  # ticks against us
    participation: float = 0.01  # of the bar's value, at most, per fill
    minimum: float = MIN_ORDER  # KRW


@dataclass(frozen=True)
class Strategy:
    """One strategy, its rules parsed, its parameters filled in."""

    name: str
    title: str
    description: str
    timeframe: Timeframe
    universe: Universe
    screen: tuple[Rule, ...]  # of a universe by screen: all must hold
    entry: Rule
    exit: Rule | None
    stop: Level | None
    target: Level | None
    trailing: Level | None
    size: Sizing
    places: int  # most positions at once
    rank: Formula | None
    descending: bool
    costs: Costs
    capital: float  # KRW at the start
    params: Params
    schedule: str | None = None  # AFTER_REFRESH, or cron, UTC

    @property
    def expressions(self) -> tuple[Rule | Formula, ...]:
        """Everything to evaluate."""
        levels = (level.formula for level in (self.stop, self.target, self.trailing) if level)
        each = (*self.screen, self.entry, self.exit, *levels, self.size.per, self.rank)
        return tuple(expression for expression in each if expression is not None)

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """The distinct indicator columns that it reads."""
        return tuple(dict.fromkeys(call for expression in self.expressions for call in expression.calls))

    @cached_property
    def series(self) -> tuple[str, ...]:
        """The distinct candle columns that it reads."""
        return tuple(dict.fromkeys(name for expression in self.expressions for name in expression.columns))

    @property
    def said(self) -> dict[str, str]:
        """Everything that its trades depend on, as text."""
        by = "none" if self.rank is None else f"{self.rank} {'desc' if self.descending else 'asc'}"
        return {
            "timeframe": self.timeframe.name, "universe": str(self.universe), "screen": str([str(rule) for rule in self.screen]),
            "entry": str(self.entry), "exit": str(self.exit), "stop": str(self.stop), "target": str(self.target),
            "trailing": str(self.trailing), "size": str(self.size), "max_positions": str(self.places), "rank": by,
            "costs": str(self.costs), "capital": repr(self.capital),
        }  # fmt: skip

    @cached_property
    def fingerprint(self) -> str:
        """Changes whenever the same candles may give other trades; title and description do not count."""
        return hashlib.blake2b(repr(sorted(self.said.items())).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Param:
    """One named number of a strategy: its usual value, and the values that a sweep tries."""

    value: float
    sweep: tuple[float, ...]


@dataclass(frozen=True)
class Recipe:
    """A strategy file that was read; `bind` fills in its parameters."""

    file: Path
    written: StrategyFile
    params: Mapping[str, Param]
    screen: tuple[Rule, ...]
    vocabulary: Vocabulary = field(repr=False)

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def usual(self) -> Strategy:
        """The strategy with its usual parameters."""
        return self.bind({})

    def bind(self, values: Params) -> Strategy:
        """The strategy with these parameters, the others as usual. Raises ParamError."""
        if unknown := [name for name in values if name not in self.params]:
            raise ParamError(f"{self.name} has no parameter {unknown[0]!r}: {did_you_mean(unknown[0], self.params)}")
        params = {name: float(values.get(name, param.value)) for name, param in self.params.items()}
        read = _read(self, params)
        if isinstance(read, Strategy):
            return read
        said = ", ".join(f"{name}={value:g}" for name, value in params.items())
        raise ParamError(f"{self.name} with {said}: " + "; ".join(f"{dotted(place)}: {problem}" for place, _, problem, _ in read))

    def combinations(self) -> Iterator[dict[str, float]]:
        """Every combination of the sweep's values, in the file's order; the one of usual values where nothing is swept."""
        for values in itertools.product(*(param.sweep for param in self.params.values())):
            yield dict(zip(self.params, values, strict=True))


@dataclass(frozen=True)
class Loaded:
    """What a set of directories holds: the right recipes by name, and everything that is wrong with the others."""

    recipes: dict[str, Recipe]
    errors: tuple[StrategyError, ...]


# ---- the file as written; the descriptions are the remedies of error messages


def _universe(given: Any) -> Universe:
    match given:
        case "all":
            return Universe()
        case {"top": int(top), **rest} if top >= 1 and not isinstance(top, bool) and set(rest) <= {"rebalance"}:
            if rest.get("rebalance", "1d") not in ("1d", "1w", "1M"):
                raise ValueError(f"rebalance {rest['rebalance']!r} is none of 1d 1w 1M")
            return Universe(top=top, rebalance=str(rest.get("rebalance", "1d")))
        case {"screen": str(name), **rest} if not rest:
            return Universe(screen=name)
        case [_, *_] if all(isinstance(symbol, str) for symbol in given):
            if len(set(given)) < len(given):
                raise ValueError("a symbol stands here twice")
            return Universe(symbols=tuple(map(check_symbol, given)))
        case []:
            raise ValueError("the universe is empty")
    raise ValueError("this names no universe")


def _timeframe(name: str) -> str:
    return timeframe(name).name


def _amount(given: Any) -> float | str:
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise ValueError("this is neither a number nor a formula")
    return given if isinstance(given, str) else float(given)


def _sizing(given: Any) -> dict[str, Any]:
    match given:
        case {"fraction": int() | float() | str() as value, **rest} if not rest:
            return {"by": "fraction", "amount": value}
        case {"krw": int() | float() | str() as value, **rest} if not rest:
            return {"by": "krw", "amount": value}
        case {"risk": int() | float() | str() as value, "per": str(per), **rest} if not rest:
            return {"by": "risk", "amount": value, "per": per}
    raise ValueError("this names no size")


def _param(given: Any) -> Param:
    match given:
        case bool():
            pass
        case int() | float():
            return Param(float(given), (float(given),))
        case {"value": int() | float() as value, "sweep": [_, *_] as sweep, **rest} if not rest:
            if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in sweep):
                raise ValueError("a sweep is a list of numbers")
            return Param(float(value), tuple(map(float, sweep)))
        case {"value": int() | float() as value, "from": first, "to": last, "step": step, **rest} if not rest:
            if not all(isinstance(each, int | float) for each in (first, last, step)):
                raise ValueError("from, to and step are numbers")
            if not (step > 0 and last >= first):
                raise ValueError("a sweep goes upward: from <= to, step above 0")
            count = math.floor((last - first) / step + 1e-9) + 1
            if count > MAX_COMBINATIONS:
                raise ValueError(f"a sweep of {count:,} values is too long: {MAX_COMBINATIONS:,} combinations at most")
            return Param(float(value), tuple(float(first + i * step) for i in range(count)))
    raise ValueError("this is no parameter")


def _params(given: Any) -> dict[str, Param]:
    if not isinstance(given, dict):
        raise ValueError("params are names with values")
    params: dict[str, Param] = {}
    for name, written in given.items():
        try:
            params[str(name)] = _param(written)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    combinations = math.prod(len(param.sweep) for param in params.values())
    if combinations > MAX_COMBINATIONS:
        raise ValueError(f"a sweep of {combinations:,} combinations is too long: {MAX_COMBINATIONS:,} at most; use wider steps")
    return params


def _schedule(text: str) -> str:
    return text if text == AFTER_REFRESH else cron(text)


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", arbitrary_types_allowed=True)


class RankFile(_Strict):
    """Which entry wins when cash or places are short."""

    expression: str = Field(description="write a value, such as rsi(14)")
    direction: Literal["desc", "asc"] = Field("desc", description="write desc (the highest first) or asc (the lowest first)")


class CostsFile(_Strict):
    """What trading costs; the defaults are Upbit's."""

    fee: float = Field(FEE_RATE, ge=0, lt=1, description="write a fraction of the amount, such as 0.0005")
    slippage: float = Field(1.0, ge=0, description="write ticks against us, 0 or more")
    participation: float = Field(0.01, gt=0, le=1, description="write the fraction of a bar's value that one fill may be, such as 0.01")
    minimum: float = Field(MIN_ORDER, ge=0, description="write the smallest order in KRW, such as 5000")


_LEVEL = Annotated[float | str | None, PlainValidator(_amount)]


class StrategyFile(_Strict):
    """A strategy as its file says it."""

    name: str | None = Field(None, description="leave it out, or write the file's name without its ending")
    title: str = Field(min_length=1, description="write a few words that name the strategy")
    description: str = Field("", description="write a sentence or two on what it bets on")
    timeframe: Annotated[str, AfterValidator(_timeframe)] = Field(description="write one of 1m 3m 5m 10m 15m 30m 1h 4h 1d 1w 1M")
    universe: Annotated[Universe, PlainValidator(_universe)] = Field(
        description="write all, a list such as [KRW-BTC, KRW-ETH], {top: 30, rebalance: 1w}, or {screen: pullback_in_uptrend}"
    )
    entry: str = Field(description="write a condition, such as crosses_above(sma(10), sma(50))")
    exit: str | None = Field(None, description="write a condition, such as close < entry_price or bars_held >= 10")
    stop: _LEVEL = Field(None, description="write a fraction of the entry price between 0 and 1, such as 0.08, or KRW, such as 3 * atr(14)")
    target: _LEVEL = Field(None, description="write a fraction of the entry price above 0, such as 0.2, or KRW, such as 5 * atr(14)")
    trailing: _LEVEL = Field(None, description="write a fraction of the highest price between 0 and 1, or KRW, such as 3 * atr(14)")
    size: Annotated[dict[str, Any], PlainValidator(_sizing)] = Field(
        description="write {fraction: 0.1} of equity, {krw: 100000}, or {risk: 0.01, per: 2 * atr(14)}"
    )
    max_positions: int = Field(10, ge=1, description="write how many positions may be open at once, 1 or more")
    rank: RankFile | None = Field(None, description="write {expression: rsi(14), direction: asc}")
    costs: CostsFile = Field(
        default_factory=lambda: CostsFile.model_validate({}), description="write {fee: 0.0005, slippage: 1, participation: 0.01}"
    )
    capital: float = Field(10_000_000.0, gt=0, description="write the KRW at the start, such as 10000000")
    params: Annotated[dict[str, Param], PlainValidator(_params)] = Field(
        {}, description="write names with values: {fast: 10, slow: {value: 50, sweep: [20, 50]}, k: {value: 3, from: 1, to: 5, step: 1}}"
    )
    schedule: Annotated[str, AfterValidator(_schedule)] | None = Field(
        None, description="write 'refresh' (after each refresh of its timeframe) or five cron fields, UTC, such as '5 0 * * *'"
    )


# ---- files to recipes


def load_strategies(directories: Iterable[Path], vocabulary: Vocabulary, screens: Iterable[Path] = ()) -> Loaded:
    """All recipes of `directories`. A bad file hides no good one; of two with one name the first stays, the other is an error.

    `screens` are the folders of the screen files that a universe may name.
    """
    recipes: dict[str, Recipe] = {}
    errors: list[StrategyError] = []
    for directory in directories:
        for file in sorted(directory.iterdir()) if directory.is_dir() else [directory]:
            if file.suffix not in SUFFIXES and file is not directory:
                continue
            found = load_strategy(file, vocabulary, screens)
            if isinstance(found, Recipe) and found.name in recipes:
                first = recipes[found.name].file
                found = [StrategyError(file, 1, "name", found.name, f"this name is taken by {first}", "give the file another name")]
            if isinstance(found, Recipe):
                recipes[found.name] = found
            else:
                errors.extend(found)
    return Loaded(recipes, tuple(errors))


def load_strategy(file: Path, vocabulary: Vocabulary, screens: Iterable[Path] = ()) -> Recipe | list[StrategyError]:
    """The recipe that `file` holds, or everything that is wrong with it."""
    try:
        data, marks = read_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        return [StrategyError(file, 1, "", "", f"the file cannot be read: {error}", "check that it is a text file in UTF-8")]
    except YamlError as error:
        return [StrategyError(file, error.line, "", "", f"this is not YAML: {error.problem}", "check indentation, quotes and colons")]
    if not isinstance(data, dict):
        return [StrategyError(file, 1, "", "", "this is not a strategy", "write keys and values: title, timeframe, universe, entry, size")]
    try:
        written = StrategyFile.model_validate(data)
    except ValidationError as error:
        return [_schema_error(file, marks, fault) for fault in error.errors()]
    if fault := _misnamed(file, written, marks, vocabulary):
        return [fault]
    screen = _screen(file, written, marks, vocabulary, screens)
    if isinstance(screen, StrategyError):
        return [screen]
    recipe = Recipe(file, written, written.params, screen, vocabulary)
    read = _read(recipe, {name: param.value for name, param in written.params.items()})
    if isinstance(read, Strategy):
        return recipe
    return [_rule_error(file, marks, fault) for fault in read]


def _rule_error(file: Path, marks: Marks, fault: Fault) -> StrategyError:
    place, down, problem, remedy = fault
    return StrategyError(file, marks.texts.get(place, marks.line(place)) + down, dotted(place), "", problem, remedy)


def _misnamed(file: Path, written: StrategyFile, marks: Marks, vocabulary: Vocabulary) -> StrategyError | None:
    """What is wrong with the strategy's name or those of its parameters."""
    if not NAME.fullmatch(file.stem):
        return StrategyError(file, 1, "", "", "the file's name cannot name a strategy", "use small letters, digits and single underscores")
    if written.name not in (None, file.stem):
        problem, remedy = f"this is not the file's name, {file.stem}", "leave name out, or rename the file"
        return StrategyError(file, marks.line(("name",)), "name", written.name or "''", problem, remedy)
    for name in written.params:
        if name in (*vocabulary.names, *POSITION) or not name.isidentifier():
            problem = "this is the name of something that rules know already" if name.isidentifier() else "this cannot be a name"
            return StrategyError(file, marks.line(("params", name)), f"params.{name}", "", problem, "choose another, such as fast or slow")
    return None


def _schema_error(file: Path, marks: Marks, fault: Any) -> StrategyError:
    """One finding of pydantic in our words."""
    place: Place = fault["loc"]
    nested: dict[str, type[BaseModel]] = {"rank": RankFile, "costs": CostsFile}
    model = nested.get(str(place[0]), StrategyFile) if len(place) > 1 else StrategyFile
    key = str(place[1] if model is not StrategyFile else place[0])
    line, value = marks.line(place), shown(fault["input"])
    if fault["type"] == "extra_forbidden":
        return StrategyError(file, line, dotted(place), value, "unknown key", did_you_mean(key, model.model_fields))
    remedy = model.model_fields[key].description if key in model.model_fields else None
    if fault["type"] == "missing":
        return StrategyError(file, line, dotted(place), "", "is missing", remedy or "")
    problem = fault["msg"].removeprefix("Value error, ")
    return StrategyError(file, line, dotted(place), value, problem[0].lower() + problem[1:], remedy or "")


def _screen(
    file: Path, written: StrategyFile, marks: Marks, vocabulary: Vocabulary, screens: Iterable[Path]
) -> tuple[Rule, ...] | StrategyError:
    """The `where` rules of the screen that the universe names; its rank and limit do not count here."""
    name = written.universe.screen
    if name is None:
        return ()
    line = marks.line(("universe",))
    found = {entry.stem: entry for folder in screens if folder.is_dir() for entry in sorted(folder.iterdir()) if entry.suffix in SUFFIXES}
    if name not in found:
        return StrategyError(file, line, "universe", name, "there is no such screen", did_you_mean(name, found))
    try:
        data, _ = read_yaml(found[name].read_text(encoding="utf-8"))
        if data["timeframe"] != written.timeframe:
            problem = f"the screen is of {data['timeframe']}, the strategy of {written.timeframe}"
            return StrategyError(file, line, "universe", name, problem, "use one timeframe for both")
        where = data["where"] if isinstance(data["where"], list) else [data["where"]]
        return tuple(parse(text, vocabulary) for text in where)
    except (ValueError, KeyError, TypeError) as error:
        return StrategyError(file, line, "universe", name, f"the screen cannot be read: {error}", f"mend {found[name]}")


# ---- recipe and parameters to strategy


def _read(recipe: Recipe, params: Params) -> Strategy | list[Fault]:
    """The strategy, or everything that is wrong with its rules under these parameters."""
    written, faults = recipe.written, list[Fault]()
    open_rules = replace(recipe.vocabulary, given=())
    position = replace(recipe.vocabulary, given=POSITION)

    def rule(parser: Callable[[str, Vocabulary, Params], E], place: Place, text: str | None, vocabulary: Vocabulary = open_rules) -> Any:
        if text is None:
            return None
        try:
            return parser(text, vocabulary, params)
        except RuleError as error:
            problem, _, remedy = str(error).rpartition("\n")
            faults.append((place, error.line - 1, problem, remedy))
            return None

    def number(place: Place, given: float | str, least: float, most: float) -> float:
        value = params.get(given) if isinstance(given, str) else given
        if value is None:
            faults.append((place, 0, f"{given!r} is no number and no parameter", did_you_mean(str(given), params)))
            return math.nan
        if not least < value <= most:
            faults.append((place, 0, f"{value:g} is not above {least:g} and at most {most:g}", _remedy(place)))
        return value

    def level(key: str, given: float | str | None, most: float) -> Level | None:
        if given is None:
            return None
        if isinstance(given, str) and given not in params:
            return Level(formula=rule(parse_value, (key,), given))
        return Level(fraction=number((key,), given, 0.0, most))

    entry = rule(parse, ("entry",), written.entry)
    leave = rule(parse, ("exit",), written.exit, position)
    if leave is not None and (complaint := _moved(leave)):
        faults.append((("exit",), 0, complaint, "compare entry_price and bars_held as they are, without [k] or crosses"))
    stop, trailing = (level(key, given, math.nextafter(1.0, 0)) for key, given in (("stop", written.stop), ("trailing", written.trailing)))
    target = level("target", written.target, math.inf)
    if leave is None and written.exit is None and not (stop or target or trailing):
        faults.append((("entry",), 0, "nothing ever closes a position", "add exit, stop, target or trailing"))
    by, amount, per = written.size["by"], written.size["amount"], written.size.get("per")
    size = Sizing(by, number(("size", by), amount, 0.0, math.inf if by == "krw" else 1.0), rule(parse_value, ("size", "per"), per))
    rank = rule(parse_value, ("rank", "expression"), written.rank.expression if written.rank else None)
    if faults:
        return faults
    return Strategy(
        recipe.name, written.title, written.description.strip(), timeframe(written.timeframe), written.universe, recipe.screen,
        entry, leave, stop, target, trailing, size, written.max_positions, rank, written.rank is None or written.rank.direction == "desc",
        Costs(**written.costs.model_dump()), written.capital, params, written.schedule,
    )  # fmt: skip


def _moved(rule: Rule) -> str | None:
    """Whether the rule asks for the position as it was at an earlier bar."""
    back = [name for name in POSITION for leaf, bars in rule.reads.items() if bars and str(leaf) == name]
    return f"{back[0]} belongs to the position: it has no earlier bar" if back else None


def _remedy(place: Place) -> str:
    return str(StrategyFile.model_fields[str(place[0])].description)
