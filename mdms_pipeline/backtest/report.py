"""One run as one HTML page that needs no network: is it worth anything, what did it do, what does it stand on."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from mdms_pipeline.backtest.check import Finding
from mdms_pipeline.backtest.decide import Columns
from mdms_pipeline.backtest.doubt import QUANTILES, MonteCarlo, monte_carlo
from mdms_pipeline.backtest.engine import Fill, Side
from mdms_pipeline.backtest.metrics import Metrics, drawdown, measure, returns
from mdms_pipeline.backtest.run import Result, closed, closes_at, profits
from mdms_pipeline.backtest.sweep import Sweep, WalkForward
from mdms_pipeline.calculate.run import calculate
from mdms_pipeline.market import Candles, Floats, utc
from mdms_pipeline.rules import Call
from mdms_pipeline.vocabulary import column_of, indicator_of

INK, BLUE, GREY, RED, GREEN, ORANGE = "#1f2430", "#2f6fbb", "#9aa3af", "#c0392b", "#2e8b57", "#d98c1f"
MOST_POINTS, MOST_BARS, MOST_SYMBOLS, MOST_TRADES = 4_000, 1_000, 4, 300
FEW_TRADES = 30  # below this the mean of trades says little
SEED = 0  # of the Monte Carlo

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1f2430;max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem} h2{font-size:1.15rem;margin:2.2rem 0 .4rem;border-bottom:1px solid #dde1e7;padding-bottom:.2rem}
p.quiet,td.quiet{color:#667} table{border-collapse:collapse;font-size:13px} th,td{padding:.25rem .6rem;text-align:right;white-space:nowrap}
th{color:#667;font-weight:600;border-bottom:1px solid #dde1e7} td:first-child,th:first-child{text-align:left}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:.6rem;margin:1rem 0}
.tile{background:#f4f6f9;border-radius:8px;padding:.6rem .8rem}
.tile b{display:block;font-size:1.25rem} .tile span{color:#667;font-size:12.5px}
.good{color:#2e8b57} .bad{color:#c0392b} .scroll{overflow-x:auto;max-height:520px} li.bad::marker,li.good::marker{color:inherit}
pre{background:#f4f6f9;border-radius:8px;padding:.8rem;overflow-x:auto;font-size:12.5px}
"""


@dataclass(frozen=True)
class Doubts:
    """What was asked beside the run; None where it was not."""

    look_ahead: Finding | None = None
    warm_up: Finding | None = None
    sweep: Sweep | None = None
    walk: WalkForward | None = None


def luck(result: Result) -> MonteCarlo | None:
    """The Monte Carlo of a run."""
    won, _ = profits(result.outcome.fills)
    sales, _ = closed(result.outcome.fills)
    equity = np.concatenate(([result.strategy.capital], result.outcome.equity))
    before = equity[np.maximum(sales[:, Fill.SLOT].astype(np.int64) - result.first, 0)]
    return monte_carlo(returns(result.outcome.equity, result.strategy.capital), won / before, SEED)


def page(result: Result, doubts: Doubts | None = None) -> str:
    """The whole page."""
    doubts = doubts or Doubts()
    chance = luck(result)
    strategy = result.strategy
    head = (
        f"<h1>{_text(strategy.title)}</h1><p class=quiet>{_text(strategy.name)}, {strategy.timeframe}, {_span(result)}; run {result.id}</p>"
    )
    sections = [
        ("", head + f"<p>{_text(strategy.description)}</p>" + _tiles(result) + _judgement(result, doubts, chance)),
        ("Equity", _figure(equity_figure(result))),
        ("Months", _figure(months_figure(result))),
        ("Numbers", _numbers(result)),
        ("Trades on the chart", "".join(_figure(figure) for figure in candle_figures(result)) or "<p>No trade.</p>"),
        ("Every trade", _trades(result)),
        ("Orders that did not fill as wanted", _orders(result)),
        ("Other parameters", _sweep(doubts.sweep)),
        ("Refitted on the past, traded on the unseen", _walk(result, doubts.walk)),
        ("The same trades in another order, the same days again", _chance(chance)),
        ("What it stands on", _assumptions(result)),
    ]
    body = "\n".join((f"<h2>{title}</h2>{content}" if title else content) for title, content in sections if content)
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{_text(strategy.title)}</title><style>{STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body>{body}</body></html>"
    )


# ---- words and numbers


def _text(value: object) -> str:
    return html.escape(str(value))


def percent(value: float | None) -> str:
    return "none" if value is None else f"{value * 100:,.1f} %"


def plain(value: float | None) -> str:
    return "none" if value is None else f"{value:,.2f}"


def _span(result: Result) -> str:
    return f"{utc(int(result.opened_at[0]))} to {utc(int(closes_at(result.history)[result.end - 1]))}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], scroll: bool = False) -> str:
    lines = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    table = f"<table><tr>{''.join(f'<th>{_text(cell)}</th>' for cell in head)}</tr>{lines}</table>"
    return f"<div class=scroll>{table}</div>" if scroll else table


def _tiles(result: Result) -> str:
    m = result.metrics
    held = float(result.reference[-1] / result.strategy.capital - 1)
    tiles = [
        ("total return", percent(m.total_return)), ("buy and hold", percent(held)), ("a year", percent(m.annual_return)),
        ("Sharpe", plain(m.sharpe)),
        ("deepest drawdown", percent(m.max_drawdown)), ("trades closed", f"{m.trades:,}"), ("won", percent(m.win_rate)),
        ("fees paid", f"{m.fees:,.0f} KRW"),
    ]  # fmt: skip
    return "<div class=tiles>" + "".join(f"<div class=tile><span>{name}</span><b>{value}</b></div>" for name, value in tiles) + "</div>"


def judgement(result: Result, doubts: Doubts, chance: MonteCarlo | None) -> Iterator[tuple[bool, str]]:
    """What speaks for (True) and against (False) believing this run."""
    m = result.metrics
    held = float(result.reference[-1] / result.strategy.capital - 1)
    yield m.total_return > held, f"{percent(m.total_return)} against {percent(held)} for buying and holding the same markets"
    yield m.trades >= FEW_TRADES, f"{m.trades} closed trades" + ("" if m.trades >= FEW_TRADES else f": fewer than {FEW_TRADES} say little")
    for name, finding in (("look-ahead", doubts.look_ahead), ("warm-up", doubts.warm_up)):
        if finding:
            said = f"{finding.compared} cuts gave the same decisions" if finding.passed else f"found: {'; '.join(finding.differences[:3])}"
            yield finding.passed, f"{name} check: {said}"
    if doubts.sweep and doubts.sweep.deflated is not None:
        count = len(doubts.sweep.trials)
        yield (
            doubts.sweep.deflated > 0.95,
            f"deflated Sharpe: {percent(doubts.sweep.deflated)} that the best of {count} combinations is not luck",
        )
    if doubts.sweep and doubts.sweep.overfitting is not None:
        share = doubts.sweep.overfitting
        yield share < 0.1, f"in {percent(share)} of all halvings of time the best combination of one half was below the median in the other"
    if doubts.walk:
        walk = doubts.walk
        yield (walk.probability or 0) > 0.95, f"on unseen data Sharpe {plain(walk.sharpe)}, where it was fitted {plain(walk.inside)}"
    if chance:
        yield chance.block_loss < 0.25, f"{percent(chance.block_loss)} of resampled histories lose money"
    if result.decided.refused:
        yield False, f"{result.decided.refused} signals were refused: their indicators were not stable yet"
    if result.near:
        yield False, f"{len(result.near)} decisions lie within 1e-6 of a threshold: they may turn with where history starts"


def _judgement(result: Result, doubts: Doubts, chance: MonteCarlo | None) -> str:
    items = "".join(f"<li class={'good' if good else 'bad'}>{_text(said)}</li>" for good, said in judgement(result, doubts, chance))
    missing = [] if doubts.sweep or len(list(result.strategy.params)) == 0 else ["a sweep"]
    missing += [] if doubts.walk else ["a walk-forward"]
    missing += [] if doubts.look_ahead else ["the look-ahead and warm-up checks"]
    note = f"<p class=quiet>Not asked here: {' and '.join(missing)}.</p>" if missing else ""
    return f"<h2>Would you believe it?</h2><ul>{items}</ul>{note}"


PERCENTS = {"total_return", "annual_return", "volatility", "max_drawdown", "exposure", "in_market", "win_rate", "mean_return"}


def shown(metrics: Metrics) -> dict[str, str]:
    """Every number of a run as people read it."""
    table = {}
    for each in fields(metrics):
        value = getattr(metrics, each.name)
        table[each.name.replace("_", " ")] = (
            percent(value) if each.name in PERCENTS else f"{value:,}" if isinstance(value, int) else plain(value)
        )
    return table


def _numbers(result: Result) -> str:
    """Beside buy and hold, which has no trades of its own."""
    held = shown(held_metrics(result))
    about_equity = list(held)[: list(held).index("exposure")]
    rows = [(name, value, held[name] if name in about_equity else "") for name, value in shown(result.metrics).items()]
    return _table(["", result.strategy.name, "buy and hold"], rows)


def held_metrics(result: Result) -> Metrics:
    """Buy and hold measured as the strategy is; only the numbers of equity mean anything."""
    nothing, start = np.empty(0), result.strategy.capital
    none = np.zeros(len(result.reference))
    return measure(result.reference, none, none, start, result.strategy.timeframe, nothing, nothing, nothing, 0.0, 0.0)


def _trades(result: Result) -> str:
    head = [
        "market",
        "bought",
        "sold",
        "bars",
        "profit",
        "",
        "why sold",
        "price in",
        "price out",
        "units",
        "fees",
        "decided at the close of",
    ]
    rows = [
        (t.symbol, utc(t.entered_at), utc(t.exited_at), t.bars, f"{t.profit:,.0f}", percent(t.profit_rate), t.closed,
         f"{t.entry_price:,.10g}",
         f"{t.exit_price:,.10g}", f"{t.units:,.6g}", f"{t.fees:,.0f}", utc(t.decided_at))
        for t in result.trades[-MOST_TRADES:]
    ]  # fmt: skip
    more = len(result.trades) - len(rows)
    note = f"<p class=quiet>The last {MOST_TRADES}; {more} earlier ones are in the table trades.</p>" if more else ""
    return note + _table(head, rows, scroll=True)


def _orders(result: Result) -> str:
    if not result.orders:
        return "<p>None.</p>"
    recent = [
        (o.symbol, utc(o.decided_at), utc(o.at), o.side, o.trouble, o.cause, _krw(o.wanted), _krw(o.filled)) for o in result.orders[-50:]
    ]
    counts = _table(["what", "how often"], result.counts.items())
    note = f"<p class=quiet>The last {len(recent)} of {len(result.orders)}:</p>"
    return counts + note + _table(["market", "decided", "at", "side", "what", "why", "wanted KRW", "filled KRW"], recent, scroll=True)


def _krw(value: float) -> str:
    return "not known" if np.isnan(value) else f"{value:,.0f}"


def _chance(chance: MonteCarlo | None) -> str:
    if chance is None:
        return ""
    head = [f"of {chance.runs:,}", *(f"{q:.0%}" for q in QUANTILES)]
    return _table(head, [(name, *map(percent, values)) for name, values in chance.rows().items()])


def _assumptions(result: Result) -> str:
    costs = result.strategy.costs
    notes = [
        "decided at a close, filled at the market's next open, at most 3 slots later",
        "exits before entries; one pot of cash over all symbols",
        f"fee {costs.fee:.4%} both ways, {costs.slippage:g} tick(s) of slippage against us",
        f"at most {costs.participation:.1%} of a bar's value per fill",
        "the tick table of 2025-07-31 holds for the whole past; earlier ones are not known",
        "a stop fills at the worse of its level and the open; stop and target inside one bar: the stop",
        "returns per slot, annualised by the slots of 365 days; risk-free 0",
        *result.history.notes, *result.decided.notes,
    ]  # fmt: skip
    notes += [
        f"{name} was calculated in memory for {count} market(s): it is not stored up to their newest candle"
        for name, count in result.calculated.items()
    ]
    listed = "".join(f"<li>{_text(note)}</li>" for note in notes)
    return f"<ul>{listed}</ul><pre>{_text(json.dumps(result.record, indent=1, ensure_ascii=False)[:6000])}</pre>"


# ---- pictures


def _figure(figure: go.Figure) -> str:
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True}))


def _styled(figure: go.Figure, height: int) -> go.Figure:
    figure.update_layout(
        height=height, template="plotly_white", margin={"l": 60, "r": 20, "t": 30, "b": 40}, legend={"orientation": "h", "y": 1.08}
    )
    return figure


def _times(opened_at: np.ndarray) -> np.ndarray:
    return opened_at.astype("datetime64[s]")


def equity_figure(result: Result) -> go.Figure:
    step = max(1, len(result.outcome.equity) // MOST_POINTS)
    chosen = np.unique(np.append(np.arange(0, len(result.outcome.equity), step), len(result.outcome.equity) - 1))
    at, equity = _times(result.opened_at)[chosen], result.outcome.equity
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.7, 0.3], vertical_spacing=0.04)
    figure.add_scatter(x=at, y=equity[chosen], name=result.strategy.name, line={"color": BLUE}, row=1, col=1)
    figure.add_scatter(x=at, y=result.reference[chosen], name="buy and hold", line={"color": GREY}, row=1, col=1)
    below = drawdown(equity, result.strategy.capital)[chosen] * 100
    figure.add_scatter(x=at, y=below, name="drawdown", line={"color": RED}, fill="tozeroy", row=2, col=1)
    figure.update_yaxes(title_text="KRW", row=1, col=1)
    figure.update_yaxes(title_text="below high, %", row=2, col=1)
    return _styled(figure, 460)


def months_figure(result: Result) -> go.Figure:
    years = sorted({month[:4] for month in result.monthly})
    grid = [[result.monthly.get(f"{year}-{month:02}", np.nan) * 100 for month in range(1, 13)] for year in years]
    words = [["" if np.isnan(value) else f"{value:.1f}" for value in row] for row in grid]
    names = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
    colours = [[0, RED], [0.5, "#ffffff"], [1, GREEN]]
    figure = go.Figure(
        go.Heatmap(z=grid, x=names, y=years, text=words, texttemplate="%{text}", colorscale=colours, zmid=0, colorbar={"title": "%"})
    )
    figure.update_yaxes(type="category", autorange="reversed")
    return _styled(figure, 120 + 40 * len(years))


def candle_figures(result: Result) -> Iterator[go.Figure]:
    """The markets that were traded most, the last MOST_BARS candles of each, with fills and the indicators that the rules read."""
    counts = Counter(int(symbol) for symbol in result.outcome.fills[:, Fill.SYMBOL])
    columns = Columns(result.history)
    for symbol, _ in counts.most_common(MOST_SYMBOLS):
        yield _candle_figure(result, symbol, columns)


def _candle_figure(result: Result, index: int, columns: Columns) -> go.Figure:
    symbol = result.history.symbols[index]
    candles = result.history.past[symbol].candles[-MOST_BARS:]
    at = _times(candles.opened_at)
    read = columns.series(symbol, result.strategy.calls, ())
    lines = {call: read[call][-MOST_BARS:] for call in result.strategy.calls}
    over = {str(call): values for call, values in lines.items() if _is_price(call, candles, values)}
    under = {str(call): values for call, values in lines.items() if str(call) not in over}
    heights = [0.6, *(0.4 / len(under) for _ in under)] if under else [1.0]
    figure = make_subplots(rows=len(heights), cols=1, shared_xaxes=True, row_heights=heights, vertical_spacing=0.03)
    figure.add_candlestick(
        x=at, open=candles.open, high=candles.high, low=candles.low, close=candles.close, name=symbol, row=1, col=1,
        increasing_line_color=GREEN, decreasing_line_color=RED,
    )  # fmt: skip
    for row, name in [*((1, name) for name in over), *enumerate(under, start=2)]:
        figure.add_scatter(x=at, y={**over, **under}[name], name=name, line={"width": 1}, row=row, col=1)
    fills = result.outcome.fills[result.outcome.fills[:, Fill.SYMBOL] == index]
    moments = _times(result.history.opened_at[fills[:, Fill.SLOT].astype(np.int64)])
    for side, name, sign, colour in ((Side.BUY, "bought", "triangle-up", BLUE), (Side.SELL, "sold", "triangle-down", ORANGE)):
        mine = (fills[:, Fill.SIDE] == side) & (moments >= at[0])
        marker = {"symbol": sign, "size": 11, "color": colour, "line": {"width": 1, "color": INK}}
        figure.add_scatter(x=moments[mine], y=fills[mine, Fill.PRICE], name=name, mode="markers", marker=marker, row=1, col=1)
    title = {"text": f"{symbol}, the last {len(candles):,} candles", "x": 0, "y": 0.995, "yanchor": "top"}
    legend = {"y": 1.0, "yanchor": "bottom"}  # between the title and the picture
    figure.update_layout(title=title, xaxis_rangeslider_visible=False)
    return _styled(figure, 420 + 90 * len(under)).update_layout(margin={"t": 70}, legend=legend)


def _is_price(call: Call, candles: Candles, values: Floats) -> bool:
    """Whether an indicator can be drawn over the price: it is near it, and doubles where prices double."""
    near = float(np.nanmedian(values / candles.close)) if not np.isnan(values).all() else 0.0
    if not 0.3 < near < 3:
        return False
    doubled = replace(candles, open=2 * candles.open, high=2 * candles.high, low=2 * candles.low, close=2 * candles.close)
    once, twice = (calculate([indicator_of(call)], each)[column_of(call)] for each in (candles, doubled))
    return not np.isnan(once).all() and bool(abs(np.nanmedian(twice) / np.nanmedian(once) - 2) < 1e-6)


def _sweep(found: Sweep | None) -> str:
    if found is None:
        return ""
    names = [name for name in found.trials[0].params if len({trial.params[name] for trial in found.trials}) > 1]
    picture = _figure(sweep_figure(found, names)) if names else ""
    head = [*found.trials[0].params, "Sharpe", "a year", "drawdown", "trades"]
    rows = [
        (*(f"{v:g}" for v in t.params.values()), plain(t.sharpe), percent(t.annual_return), percent(t.max_drawdown), t.trades)
        for t in found.trials[:20]
    ]
    luck = f"probability of backtest overfitting {percent(found.overfitting)}, deflated Sharpe {percent(found.deflated)}"
    said = f"{len(found.trials)} combinations; {luck}"
    refused = f"; {len(found.refused)} refused" if found.refused else ""
    return f"<p>{said}{refused}.</p>" + picture + _table(head, rows)


def sweep_figure(found: Sweep, names: Sequence[str]) -> go.Figure:
    """Annual Sharpe over the first two swept parameters, the best over the others; a line where only one was swept."""
    best: dict[tuple[float, ...], float] = {}
    for trial in found.trials:
        key = tuple(trial.params[name] for name in names[:2])
        best[key] = max(best.get(key, -np.inf), np.nan_to_num(trial.sharpe if trial.sharpe is not None else 0.0))
    xs = sorted({key[0] for key in best})
    if len(names) == 1:
        figure = go.Figure(go.Scatter(x=xs, y=[best[(x,)] for x in xs], mode="lines+markers", line={"color": BLUE}))
        figure.update_layout(xaxis_title=names[0], yaxis_title="Sharpe")
        return _styled(figure, 320)
    ys = sorted({key[1] for key in best})
    grid = [[best.get((x, y), np.nan) for x in xs] for y in ys]
    heat = go.Heatmap(
        z=grid,
        x=[f"{x:g}" for x in xs],
        y=[f"{y:g}" for y in ys],
        colorscale="RdYlGn",
        zmid=0,
        texttemplate="%{z:.2f}",
        colorbar={"title": "Sharpe"},
    )
    figure = go.Figure(heat)
    figure.update_layout(xaxis_title=names[0], yaxis_title=names[1], xaxis_type="category", yaxis_type="category")
    return _styled(figure, 380)


def _walk(result: Result, found: WalkForward | None) -> str:
    if found is None:
        return ""
    at = result.history.opened_at
    starts = [utc(int(at[window.test])) for window in found.windows]
    bars = [("fitted", GREY, [w.inside for w in found.windows]), ("unseen", BLUE, [w.outside for w in found.windows])]
    figure = go.Figure([go.Bar(x=starts, y=values, name=name, marker_color=colour) for name, colour, values in bars])
    figure.update_layout(yaxis_title="Sharpe", barmode="group")
    rows = [
        (start, ", ".join(f"{k}={v:g}" for k, v in w.params.items()), plain(w.inside), plain(w.outside))
        for start, w in zip(starts, found.windows, strict=True)
    ]
    said = f"{len(found.windows)} refits: total return {percent(found.total_return)}; "
    said += f"Sharpe {plain(found.sharpe)} on the unseen, {plain(found.inside)} where fitted; "
    return (
        f"<p>{said}probability of a true Sharpe above 0: {percent(found.probability)}.</p>"
        + _figure(_styled(figure, 320))
        + _table(["traded from", "with", "Sharpe fitted", "Sharpe unseen"], rows)
    )


def compare(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of runs, as Markdown."""
    if not rows:
        return ""
    head = list(rows[0])
    return "\n".join(
        "| " + " | ".join(str(cell) for cell in line) + " |" for line in (head, ["-"] * len(head), *(row.values() for row in rows))
    )


def compared(run: Any) -> Mapping[str, str]:
    """One row of the table of runs."""
    return {
        "run": run.run, "strategy": run.strategy, "with": ", ".join(f"{name}={value:g}" for name, value in run.params.items()),
        "from": utc(run.starts_at)[:10], "to": utc(run.ends_at)[:10],
        "return": percent(run.total_return), "held": percent(run.reference_return),
        "Sharpe": plain(run.sharpe), "drawdown": percent(run.max_drawdown), "trades": str(run.trades), "made": utc(run.made_at),
    }  # fmt: skip
