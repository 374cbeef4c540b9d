"""What `mdms live` shows on a terminal: a picture that a person can leave open.

1. `picture` takes what is to be shown from the live process: prices, how much of each rule holds, the last signals, how everybody stands
2. `drawn` makes lines of it that fit any terminal. Pure

Only characters whose width every terminal agrees on, besides Korean names, which are two columns a syllable.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.console import Group
from rich.text import Text

from mdms_pipeline.live.deliver import Standing
from mdms_pipeline.live.lane import CLOSE, Lane
from mdms_pipeline.live.room import MB
from mdms_pipeline.live.run import Live
from mdms_pipeline.live.signal import Signal
from mdms_pipeline.live.watch import Watch
from mdms_pipeline.market import DAY, KST, MINUTE, Floats, Instants
from mdms_pipeline.rules import TRUE, UNKNOWN
from mdms_pipeline.rules.evaluate import collect, verdict
from mdms_pipeline.rules.nodes import Condition, Logic

MARKET, PRICE, CHANGE = 13, 13, 8  # columns that these take
LEAST_NAME, MOST_NAME = 9, 16  # columns of a Korean name: four syllables at the least
LEAST_RULE, MOST_RULE = 5, 12  # columns of one rule: its number, or `3/4+`
LEAST_WORDS = 30  # columns of rules in words
MOST_SIGNALS = 12  # lines
SILENT = 10.0  # s without a message from which that is said in red


# ---- what is shown


@dataclass(frozen=True)
class Answer:
    """How a rule stands at a symbol."""

    holds: int  # clauses, at the last closed bar
    of: int
    closed: int  # verdict at the last closed bar: TRUE, UNKNOWN, FALSE
    forming: int  # and at the bar that forms

    @property
    def nearness(self) -> float:
        return float(nearness(self.holds, self.of, self.closed, self.forming))


@dataclass(frozen=True)
class Market:
    """One line of the table."""

    symbol: str
    name: str
    price: float  # KRW, NaN where nothing is known
    change: float  # fraction since the UTC day began (09:00 KST); NaN where what it began with is not stored
    answers: tuple[Answer | None, ...]  # by rule; None where the rule does not watch it


def nearness(holds: Any, of: int, closed: Any, forming: Any) -> Any:
    """What markets are sorted by, of one answer or of an array of them: 1 where the rule holds."""
    return np.where(closed == TRUE, 1.0, 0.99 * holds / of + 0.005 * np.equal(forming, TRUE))


def nearest_first(near: Floats) -> Instants:
    """The order of markets by `near` (rules, markets; -inf where a rule does not watch): more rules that hold first, then the nearest."""
    top = np.sort(np.vstack([near, np.full((3, near.shape[1]), -np.inf)]), axis=0)[::-1][:3]
    return np.lexsort((-top[2], -top[1], -top[0], -(near == 1.0).sum(axis=0)))


@dataclass(frozen=True)
class Picture:
    """All that is shown, at one moment."""

    now: float  # s UTC
    state: str
    reason: str
    silence: float  # s since the last message, NaN before the first
    messages: int
    signals: int
    slowest: float  # s
    rules: tuple[str, ...]  # "breakout entry 4h"
    count: int  # of markets
    markets: tuple[Market, ...]  # the nearest of them, first
    recent: tuple[Signal, ...] = ()  # newest first
    names: Mapping[str, str] = field(default_factory=dict)  # symbol -> Korean name
    standings: tuple[Standing, ...] = ()
    troubles: tuple[str, ...] = ()  # what a person should know
    held: int = 0  # bytes in RAM
    allowed: int = 0  # bytes


class View:
    """Makes pictures of one live process. What changes with closed bars only is calculated once a bar."""

    def __init__(self, live: Live, names: Mapping[str, str]) -> None:
        self.live, self.names = live, names
        self.notices: deque[str] = deque(maxlen=3)
        self._closed: dict[str, Signal] = {}  # the last ones of closed bars, by id: those of forming bars come too often to be kept beside
        self._begin()

    def _begin(self) -> None:
        """Give every market its place: anew where others are watched."""
        self._engine, self.names = self.live.engine, {**self.names, **self.live.names}
        self._held: dict[str, tuple[int, list[tuple[Floats, int]]]] = {}
        lanes = self._engine.lanes
        self._symbols = list(dict.fromkeys(symbol for lane in lanes.values() for symbol in lane.symbols))
        places = {symbol: i for i, symbol in enumerate(self._symbols)}
        self._places = {name: np.array([places[symbol] for symbol in lane.symbols], dtype=np.int64) for name, lane in lanes.items()}

    def picture(self, now: float, most: int) -> Picture:
        """What there is to show now, with at most so many markets."""
        if self._engine is not self.live.engine:
            self._begin()
        lanes, health, delivery = self.live.engine.lanes, self.live.health, self.live.delivery
        watches = [(lane, i) for lane in lanes.values() for i in range(len(lane.watches))]
        dropped = [f"{len(health.dropped)} not watched: {next(iter(health.dropped))}"] if health.dropped else []
        trouble = [] if delivery.journal.trouble is None else [f"journal {delivery.journal.trouble}"]
        return Picture(
            now, health.state, health.reason, now - health.heard_at, health.messages, health.signals, health.slowest,
            tuple(_label(lane.watches[i]) for lane, i in watches), len(self._symbols), tuple(self._markets(now, watches, most)),
            self._recent(), self.names, tuple(delivery.standings()), (*trouble, *self.notices, *dropped),
            health.held, self.live.room.allowed,
        )  # fmt: skip

    def _recent(self) -> tuple[Signal, ...]:
        """The last signals, newest first; of closed bars also those after which many others came."""
        self._closed |= {signal.id: signal for signal in self.live.recent if not signal.provisional}
        self._closed = dict(list(self._closed.items())[-MOST_SIGNALS:])
        forming = [signal for signal in self.live.recent if signal.provisional]
        return tuple(sorted([*self._closed.values(), *forming], key=lambda signal: -signal.emitted_at))

    def _markets(self, now: float, watches: Sequence[tuple[Lane, int]], most: int) -> Iterable[Market]:
        lanes, today = list(self.live.engine.lanes.values()), self.live.yesterday
        began = today.of if today.midnight == int(now) // DAY * DAY else {}
        clauses = {lane.frame.name: self._clauses(lane) for lane in lanes}
        near = np.full((len(watches), len(self._symbols)), -np.inf)
        for k, (lane, i) in enumerate(watches):
            holds, of = clauses[lane.frame.name][i]
            mine = lane.watched[i]
            near[k, self._places[lane.frame.name][mine]] = nearness(holds, of, lane.said[i], lane.shown[i])[mine]
        for place in nearest_first(near)[:most].tolist():
            symbol = self._symbols[place]
            finest = next(lane for lane in lanes if symbol in lane.tape.row)
            price = price_of(finest, finest.tape.row[symbol])
            answers = tuple(_answer(lane, i, symbol, clauses[lane.frame.name][i]) for lane, i in watches)
            yield Market(symbol, self.names.get(symbol, ""), price, price / began.get(symbol, math.nan) - 1, answers)

    def _clauses(self, lane: Lane) -> list[tuple[Floats, int]]:
        """Of each rule: how many of its clauses hold at each symbol's last closed bar, and how many there are."""
        closed, found = self._held.get(lane.frame.name, (-1, []))
        if closed != lane.closed:
            rows = np.arange(len(lane.symbols))
            found = [holding(watch, (lane.tape.trades if watch.trades else lane.tape.bars).columns(rows)) for watch in lane.watches]
            self._held[lane.frame.name] = lane.closed, found
        return found


def holding(watch: Watch, columns: Mapping[str, Floats]) -> tuple[Floats, int]:
    """How many clauses of a rule hold at the last bar of each symbol, and how many there are; `columns` are (bars, symbols)."""
    series = {name: columns[column] for name, column in watch.columns.items()}
    held = [verdict(clause, collect(rule, series))[-1] == TRUE for rule in watch.rules for clause in clauses_of(rule.root)]
    return np.sum(held, axis=0, dtype=np.float64), len(held)


def clauses_of(root: Condition) -> tuple[Condition, ...]:
    """What must all hold."""
    return root.parts if isinstance(root, Logic) and root.word == "and" else (root,)


def price_of(lane: Lane, row: int) -> float:
    """The newest price of a symbol (KRW)."""
    past, forming = lane.tape.bars, lane.forming[row]
    return float(past.values[past.names["close"], -1, row]) if forming is None else forming.candle[CLOSE]


def _answer(lane: Lane, i: int, symbol: str, clauses: tuple[Floats, int]) -> Answer | None:
    row = lane.tape.row.get(symbol)
    if row is None or not lane.watched[i, row]:
        return None
    return Answer(int(clauses[0][row]), clauses[1], int(lane.said[i, row]), int(lane.shown[i, row]))


def _label(watch: Watch) -> str:
    return f"{watch.name} {watch.rule} {watch.timeframe}"


# ---- how it is drawn


def drawn(picture: Picture, width: int, height: int) -> Group:
    """Exactly `height` lines of at most `width` columns."""
    head, foot = _head(picture, width), _foot(picture, width)
    legend = _legend(picture.rules, width)
    room = height - len(head) - len(foot) - len(legend) - 3  # a line of titles for each of both lists, and one between them
    signals = _signals(picture, width, max(1, min(MOST_SIGNALS, room // 3)))
    markets = max(1, room - len(signals))
    shown = picture.markets[:markets]
    left = picture.count - len(shown)
    body = [_titles(picture, width), *(_line(market, picture.rules, width) for market in shown)]
    body += [Text("")] * (markets - len(shown))
    between = Text(f"and {left} more" if left > 0 else "", style="dim")
    lines = [*head, *body, between, Text("Signals, newest first, KST", style="bold"), *signals, *legend]
    lines += [Text("")] * (height - len(lines) - len(foot))
    return Group(*(_fit(line, width) for line in [*lines[: max(0, height - len(foot))], *foot][:height]))


def _fit(line: Text, width: int) -> Text:
    """The line, cut to the width; no wrapping, no character that is cut in half."""
    line.truncate(width, overflow="crop")
    line.no_wrap, line.overflow = True, "crop"
    return line


def _head(picture: Picture, width: int) -> list[Text]:
    live = picture.state == "live"
    line = Text.assemble(
        ("mdms live ", "bold"), ("listening" if live else picture.state, "bold green" if live else "bold yellow"),
        f"  {_clock(picture.now)} KST  {picture.count} markets  {len(picture.rules)} rules  {picture.signals} signals",
    )  # fmt: skip
    silent = picture.silence > SILENT
    heard = "no message yet" if math.isnan(picture.silence) else f"last message {_seconds(picture.silence)} ago"
    said = Text.assemble((heard, "red" if silent and live else "dim"), (f", {picture.messages:,} in all", "dim"))
    if picture.slowest:
        said.append(f"; slowest emission {picture.slowest * 1000:.0f} ms after its message", style="dim")
    if picture.held:
        said.append(f"; {math.ceil(picture.held / MB)} of {picture.allowed / MB:.0f} MB held", style="dim")
    return [line, said, *([Text(picture.reason, style="yellow")] if picture.reason else [])]


def _columns(rules: Sequence[str], width: int) -> tuple[int, int]:
    """Columns of the name, and of one rule; 0 for a name: no room; 0 for a rule: they are too many, and are said in words."""
    left = width - MARKET - PRICE - CHANGE
    if left < LEAST_RULE * len(rules):
        return (MOST_NAME if left >= MOST_NAME + LEAST_WORDS else 0), 0
    room = min(MOST_NAME, left - LEAST_RULE * len(rules))
    name = room if room >= LEAST_NAME else 0
    return name, max(LEAST_RULE, min(MOST_RULE, (left - name) // max(1, len(rules))))


def _titles(picture: Picture, width: int) -> Text:
    name, each = _columns(picture.rules, width)
    line = set_cell_size("market", MARKET) + set_cell_size("name", name) + f"{'price':>{PRICE}}{'today':>{CHANGE}}"
    rules = "".join(f"{i:>{each}}" for i in range(1, len(picture.rules) + 1)) if each else "  rules, the nearest first"
    return Text(line + rules, style="bold")


def _line(market: Market, rules: Sequence[str], width: int) -> Text:
    name, each = _columns(rules, width)
    line = Text(set_cell_size(market.symbol, MARKET))
    line.append(set_cell_size(market.name, name), style="dim")
    line.append(f"{_price(market.price):>{PRICE}}")
    line.append(f"{_change(market.change):>{CHANGE}}", style="green" if market.change > 0 else "red" if market.change < 0 else "dim")
    if not each:
        return line.append_text(_words(market, rules))
    for answer in market.answers:
        said, style = _said(answer)
        line.append(f"{said:>{each}}", style=style)
    return line


def _words(market: Market, rules: Sequence[str]) -> Text:
    """The rules that are nearest to holding, by name."""
    there = [(answer, rule) for answer, rule in zip(market.answers, rules, strict=True) if answer is not None and answer.nearness]
    line = Text("  ")
    for answer, rule in sorted(there, key=lambda pair: -pair[0].nearness)[:8]:
        said, style = _said(answer)
        line.append(f"{said} ", style=style).append(f"{rule}  ", style="" if answer.closed == TRUE else "dim")
    return line


def _said(answer: Answer | None) -> tuple[str, str]:
    """`yes`, or how many clauses hold; `+` and `-` where the bar that forms would change the answer."""
    if answer is None:
        return "", ""
    if answer.closed == TRUE:
        return ("yes", "bold green") if answer.forming == TRUE else ("yes-", "green")
    if answer.forming == TRUE:
        return f"{answer.holds}/{answer.of}+", "bold yellow"
    if answer.closed == UNKNOWN:
        return "?", "dim"
    return f"{answer.holds}/{answer.of}", "" if 2 * answer.holds >= answer.of and answer.of > 1 else "dim"


def _signals(picture: Picture, width: int, lines: int) -> list[Text]:
    """So many of the last signals, newest first; half of the lines are for those of closed bars, as far as there are any."""
    if not picture.recent:
        return [Text("none yet", style="dim")]
    closed = [signal for signal in picture.recent if not signal.provisional][: (lines + 1) // 2]
    others = [signal for signal in picture.recent if signal not in closed][: lines - len(closed)]
    shown = [signal for signal in picture.recent if signal in closed or signal in others]
    return [_signal(signal, picture.names.get(signal.symbol, ""), width) for signal in shown]


def _signal(signal: Signal, name: str, width: int) -> Text:
    late = signal.emitted_at - signal.received_at
    bar = datetime.fromtimestamp(signal.opened_at, KST).strftime("%m-%d %H:%M")
    styles = {True: "bold green", False: "red", None: "dim"}
    words = {True: "yes", False: "no", None: "?"}
    before = "" if signal.provisional else words[signal.before]
    line = Text.assemble(
        (_clock(signal.emitted_at) + " ", "dim"), set_cell_size(signal.symbol, MARKET), (f"{before:>3} > ", "dim"),
        (f"{words[signal.answer]:<4}", styles[signal.answer]), f"{signal.name} {signal.rule} {signal.timeframe}", (f"  bar {bar}", "dim"),
    )  # fmt: skip
    if signal.revision:
        line.append(f"  revision {signal.revision}", style="yellow")
    if signal.provisional:
        line.append("  forming", style="yellow")
        line.stylize("italic")
    elif late >= MINUTE:
        line.append("  told late", style="yellow")
    values = ", ".join(f"{leaf} {'?' if value is None else f'{value:.6g}'}" for leaf, value in signal.values.items())
    for more in (f"  {name}" if name else "", f"  {values}"):
        if line.cell_len + cell_len(more) <= width:
            line.append(more, style="dim")
    return line


def _legend(rules: Sequence[str], width: int) -> list[Text]:
    """The rules by their numbers, on as few lines as they fit; then what the marks mean."""
    marks = Text("3/4: clauses that hold; yes: all; + -: the forming bar changes it; ?: not known", style="dim italic")
    if not _columns(rules, width)[1]:
        return [marks]
    lines, line = [], ""
    for i, rule in enumerate(rules, 1):
        said = f"{i} {rule}"
        if line and cell_len(line) + 2 + len(said) > width:
            lines.append(line)
            line = ""
        line += ("  " if line else "") + said
    return [*(Text(one, style="dim") for one in (*lines, line)), marks]


def _foot(picture: Picture, width: int) -> list[Text]:
    """How everybody stands to whom signals go, on one line where all is well; then what is wrong."""
    line, wrong = Text("to ", style="dim"), list[Text]()
    for i, one in enumerate(picture.standings):
        line.append(f"{'  ' if i else ''}{one.name}: {one.sent} taken", style="dim")
        if one.waiting:
            line.append(f", {one.waiting} wait", style="yellow")
        if one.dropped or one.aside:
            line.append(f", {len(one.aside)} refused, {one.dropped} lost", style="red")
        if one.error:
            wrong.append(Text(f"{one.name}: {one.error}", style="red"))
    return [line, *wrong[:2], *(Text(said, style="yellow") for said in picture.troubles[:2])]


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, KST).strftime("%H:%M:%S")


def _seconds(seconds: float) -> str:
    """`0.4 s`, `3 min`, `2 h`."""
    if seconds < MINUTE:
        return f"{max(0.0, seconds):.1f} s"
    return f"{seconds / MINUTE:.0f} min" if seconds < 60 * MINUTE else f"{seconds / 60 / MINUTE:.0f} h"


def _price(price: float) -> str:
    """KRW with as many digits as its tick needs."""
    if math.isnan(price):
        return "?"
    return f"{price:,.0f}" if price >= 100 else f"{price:.4g}" if price >= 1 else f"{price:.3g}"


def _change(change: float) -> str:
    return "?" if math.isnan(change) else f"{100 * change:+.2f}%"
