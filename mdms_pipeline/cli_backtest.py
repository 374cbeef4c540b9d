"""The commands `mdms backtest`, `mdms sweep` and `mdms backtests`. Exit codes: 0 all is well, 1 an error, 4 done, but a check failed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mdms_pipeline.market import Instant, instant, utc
from mdms_pipeline.settings import Settings

UNBELIEVABLE = 4  # exit code: done, but a check failed
OUT, ERR = Console(), Console(stderr=True)

set_option = click.option("--set", "values", multiple=True, metavar="NAME=NUMBER", help="Another value for a parameter; may be repeated.")
from_option = click.option("--from", "since", metavar="TIME", help="Trade from here, UTC; like 2026-01-01.")
to_option = click.option("--to", "until", metavar="TIME", help="Trade up to here, UTC.")
report_option = click.option("--report", is_flag=True, help="Write the HTML page and say where it is.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


@contextmanager
def explained() -> Iterator[None]:
    """Errors that explain themselves are one message and exit code 1."""
    from mdms_pipeline.backtest.history import HistoryError
    from mdms_pipeline.backtest.strategy import ParamError

    try:
        yield
    except (HistoryError, ParamError) as error:
        raise click.ClickException(str(error)) from None


def _warehouse(settings: Settings) -> Any:
    from mdms_pipeline.store import Warehouse

    return Warehouse(settings.warehouse, settings.exchange_url, settings.memory_mb)


def _values(values: Sequence[str]) -> dict[str, float]:
    found = {}
    for text in values:
        name, sign, number = text.partition("=")
        try:
            found[name.strip()] = float(number)
        except ValueError:
            raise click.ClickException(f"--set {text}: write it like fast=20") from None
        if not sign:
            raise click.ClickException(f"--set {text}: write it like fast=20")
    return found


def _instant(text: str | None) -> Instant | None:
    try:
        return None if text is None else instant(text)
    except ValueError as error:
        raise click.ClickException(str(error)) from None


def _write(settings: Settings, name: str, text: str) -> Path:
    folder = settings.home / "backtests"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.html"
    file.write_text(text, encoding="utf-8")
    return file


@click.command()
@click.argument("name", required=False)
@set_option
@from_option
@to_option
@report_option
@click.option("--again", metavar="RUN", help="Make a kept run again from its record, and say whether the bits are the same.")
@click.option("--check/--no-check", default=True, help="Look for look-ahead and for indicators that are not stable yet.")
@as_json
def backtest(
    name: str | None,
    values: Sequence[str],
    since: str | None,
    until: str | None,
    report: bool,
    again: str | None,
    check: bool,
    as_json: bool,
) -> None:
    """Trade the strategy NAME over the stored past, check it, keep the run."""
    from mdms_pipeline.backtest.check import look_ahead, warm_up
    from mdms_pipeline.backtest.find import history_of, recipe_of
    from mdms_pipeline.backtest.keep import keep
    from mdms_pipeline.backtest.report import Doubts, page
    from mdms_pipeline.backtest.run import backtest as run

    settings = Settings.load()
    warehouse = _warehouse(settings)
    if again is not None:
        _again(settings, warehouse, again)
        return
    if name is None:
        raise click.UsageError("name a strategy, or a kept run with --again; `mdms backtests` lists runs")
    with explained():
        strategy = recipe_of(settings, name).bind(_values(values))
        result = run(strategy, history_of(warehouse, strategy), _instant(since), _instant(until))
        doubts = Doubts(look_ahead(strategy, result.history), warm_up(strategy, result.history)) if check else Doubts()
    with warehouse.write() as connection:
        keep(connection, result, int(time.time()))
    file = _write(settings, f"{name}_{result.id}", page(result, doubts)) if report else None
    failed = [finding for finding in (doubts.look_ahead, doubts.warm_up) if finding and not finding.passed]
    if as_json:
        found = {"run": result.id, "metrics": asdict(result.metrics), "orders": result.counts, "report": str(file) if file else None}
        click.echo(json.dumps({**found, "checks": {k: asdict(f) for k, f in vars(doubts).items() if f}, "record": result.record}, indent=2))
    else:
        _show(result, doubts, file)
    sys.exit(UNBELIEVABLE if failed else 0)


def _again(settings: Settings, warehouse: Any, run: str) -> None:
    """Make a run again from its record and compare."""
    from mdms_pipeline.backtest.find import recipe_of
    from mdms_pipeline.backtest.keep import record_of
    from mdms_pipeline.backtest.replay import replayed

    with warehouse.read() as connection:
        record = record_of(connection, run)
    if record is None:
        raise click.ClickException(f"no run {run!r} is kept: `mdms backtests` lists them")
    with explained():
        found = replayed(warehouse, recipe_of(settings, record["strategy"]), record)
    if found.same:
        OUT.print(f"run {run} made again: the same {found.trades} trades, the same equity, bit for bit", soft_wrap=True)
        return
    raise click.ClickException(f"run {run} cannot be made again to the bit: {'; '.join(found.differences)}")


def _show(result: Any, doubts: Any, file: Path | None) -> None:
    from mdms_pipeline.backtest.report import judgement, luck, shown
    from mdms_pipeline.backtest.run import closes_at

    ends = utc(int(closes_at(result.history)[result.end - 1]))
    strategy, starts = result.strategy, utc(int(result.opened_at[0]))
    OUT.print(f"[bold]{strategy.title}[/bold] ({strategy.name}, {strategy.timeframe}), {starts} to {ends}")
    table = Table(show_header=False)
    for what, value in shown(result.metrics).items():
        table.add_row(what, value)
    OUT.print(table)
    for what, count in result.counts.items():
        OUT.print(f"  {count} orders {what}", highlight=False, soft_wrap=True)
    for good, said in judgement(result, doubts, luck(result)):
        OUT.print(f"  {'[green]+[/green]' if good else '[red]-[/red]'} {said}", highlight=False, soft_wrap=True)
    for note in result.history.notes:
        OUT.print(f"  note: {note}", highlight=False, soft_wrap=True)
    OUT.print(f"run {result.id}" + (f"; report {file}" if file else ""), highlight=False, soft_wrap=True)


@click.command()
@click.argument("name")
@from_option
@to_option
@click.option("--train", default=365.0, show_default=True, help="Days that each refit of the walk-forward looks at.")
@click.option("--test", default=90.0, show_default=True, help="Days that it then trades unseen.")
@click.option("--anchored", is_flag=True, help="Refit on all that went before, not on the last --train days.")
@report_option
@as_json
def sweep(name: str, since: str | None, until: str | None, train: float, test: float, anchored: bool, report: bool, as_json: bool) -> None:
    """Try every combination of the strategy's swept parameters; refit on the past and trade the unseen; say how much of it is luck."""
    from mdms_pipeline.backtest.check import look_ahead, warm_up
    from mdms_pipeline.backtest.find import history_of, recipe_of
    from mdms_pipeline.backtest.history import HistoryError
    from mdms_pipeline.backtest.report import Doubts, page
    from mdms_pipeline.backtest.run import backtest as run
    from mdms_pipeline.backtest.sweep import sweep as sweep_all
    from mdms_pipeline.backtest.sweep import walk_forward

    settings = Settings.load()
    warehouse = _warehouse(settings)
    start, end = _instant(since), _instant(until)
    with explained():
        recipe = recipe_of(settings, name)
        count = len(list(recipe.combinations()))
        history = history_of(warehouse, recipe.usual)
        fitted, traded = (max(2, round(days * recipe.usual.timeframe.bars_per_year / 365)) for days in (train, test))
        with Progress(console=ERR, transient=True, disable=as_json or not ERR.is_terminal) as bars:
            task = bars.add_task("combinations", total=2 * count)
            found = sweep_all(recipe, history, start, end, advanced=lambda done: bars.advance(task, done))
            try:
                walk = walk_forward(recipe, history, fitted, traded, anchored, start, end, advanced=lambda done: bars.advance(task, done))
            except HistoryError as error:
                walk = None
                ERR.print(f"no walk-forward: {error}", highlight=False, soft_wrap=True)
        file = None
        if report:
            usual = run(recipe.usual, history, start, end)
            doubts = Doubts(look_ahead(recipe.usual, history), warm_up(recipe.usual, history), found, walk)
            file = _write(settings, f"{name}_sweep", page(usual, doubts))
    if as_json:
        unseen = None if walk is None else {**asdict(walk), "equity": None}
        click.echo(json.dumps({"sweep": asdict(found), "walk_forward": unseen, "report": str(file) if file else None}, indent=2))
        return
    _show_sweep(found, walk)
    if file:
        OUT.print(f"report {file}", highlight=False, soft_wrap=True)


def _show_sweep(found: Any, walk: Any) -> None:
    from mdms_pipeline.backtest.report import percent, plain

    table = Table(title=f"{len(found.trials)} combinations, the best 20 by Sharpe", title_justify="left")
    for column in (*found.trials[0].params, "Sharpe", "a year", "drawdown", "trades"):
        table.add_column(column, justify="right")
    for trial in found.trials[:20]:
        numbers = (f"{value:g}" for value in trial.params.values())
        table.add_row(*numbers, plain(trial.sharpe), percent(trial.annual_return), percent(trial.max_drawdown), str(trial.trades))
    OUT.print(table)
    OUT.print(f"probability of backtest overfitting {percent(found.overfitting)}; deflated Sharpe {percent(found.deflated)}")
    for refused in found.refused[:5]:
        OUT.print(f"  refused: {refused}", highlight=False, soft_wrap=True)
    if walk is not None:
        said = f"walk-forward, {len(walk.windows)} refits: Sharpe {plain(walk.sharpe)} unseen, {plain(walk.inside)} where fitted"
        OUT.print(f"{said}; total return {percent(walk.total_return)}; probability of a true Sharpe above 0 {percent(walk.probability)}")


@click.command()
@click.argument("name", required=False)
@as_json
def backtests(name: str | None, as_json: bool) -> None:
    """The kept runs, newest first, to compare; of the strategy NAME or of all."""
    from mdms_pipeline.backtest.keep import runs
    from mdms_pipeline.backtest.report import compared

    with _warehouse(Settings.load()).read() as connection:
        kept = runs(connection, name)
    if as_json:
        click.echo(json.dumps([asdict(run) for run in kept], indent=2))
        return
    rows = [compared(run) for run in kept]
    if not rows:
        OUT.print("No run is kept: try `mdms backtest trend_following`")
        return
    table = Table()
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(str, row.values()))
    OUT.print(table)


commands: list[click.Command] = [backtest, sweep, backtests]
