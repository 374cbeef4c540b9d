"""What `mdms` prints for people. Tables fold to the width of the terminal; numbers are short, times in UTC and KST."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mdms_pipeline.market import instant, kst, utc
from mdms_pipeline.settings import SECRETS, SETTINGS, Settings

PIPED = 120  # columns where the output is no terminal
OUT, ERR = Console(highlight=False, width=None if sys.stdout.isatty() else PIPED), Console(stderr=True, highlight=False)
LEFT = ("step", "indicator", "reads", "timeframe", "market", "name", "values that decided", "unstable", "states", "newest candle", "why")
MODES = ("hit", "incremental", "from_start", "skipped", "failed")
SHOWN = 20  # lines of a list before it is cut
AT_ONCE = 5  # places of a ranking where several are shown


def table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table; the columns of LEFT hold text, the others numbers."""
    made = Table(title=title, title_justify="left", title_style="bold")
    for name in columns:
        made.add_column(name.replace("_", " "), justify="left" if name in LEFT else "right", overflow="fold", no_wrap=name == "market")
    for row in rows:
        made.add_row(*row)
    return made


def number(value: float | None) -> str:
    """Four digits, or whole thousands; `?` where unknown."""
    if value is None:
        return "?"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def show_run(settings: Settings, report: Mapping[str, Any]) -> None:
    """The whole of `mdms run`."""
    if not report["runs"]:
        OUT.print(f"Nothing is due: all is collected, calculated and screened up to the newest closed candles ({report['seconds']} s).")
        show_rankings(report["rankings"], AT_ONCE)
        return
    for frame, why in report["due"].items():
        OUT.print(f"[bold]{frame}[/bold] was due: {why}")
    show_rankings(report["rankings"], AT_ONCE)
    show_steps(report["steps"])
    OUT.print(f"{report['seconds']} s in all; Dagster run {', '.join(report['runs'])}")
    show_failed(report["failed"])
    OUT.print(next_steps(settings, next(iter(report["rankings"]), "SCREEN")), soft_wrap=True)


def show_steps(steps: Sequence[Mapping[str, Any]]) -> None:
    """What each step did; columns that are empty throughout are left out."""
    counts = [name for name in ("requests", *MODES) if any(step[name] for step in steps)]
    rows = [[step["step"], f"{step['rows']:,}", *(str(step[name] or "") for name in counts), f"{step['seconds']:.2f}"] for step in steps]
    OUT.print(table("What was done, in markets x timeframes", ["step", "rows", *counts, "seconds"], rows))


def show_rankings(rankings: Mapping[str, Any], most: int = 1000) -> None:
    for name, ranking in rankings.items():
        show_ranking(name, ranking, most)


def show_ranking(name: str, ranking: Mapping[str, Any], most: int) -> None:
    """One ranking with the values that decided; at most so many places."""
    if ranking["at"] is None:
        OUT.print(f"[bold]{ranking['title']}[/bold] ({name}) was never screened: run `mdms run`")
        return
    at = instant(ranking["at"])
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(ranking["outcomes"].items(), key=lambda item: -item[1]))
    title = f"{ranking['title']} ({name}), {ranking['timeframe']} candle of {utc(at)} = {kst(at)}\n{outcomes}; ranked by {ranking['rank']}"
    rows = ranking["rows"]
    if not rows:
        OUT.print(f"[bold]{title}[/bold]\n  no market passes\n")
        return
    odd = [column for column in ("age", "unstable") if any(row[column] for row in rows)]
    cells = [
        [str(row["place"]), row["symbol"], row["korean_name"], number(row["rank"]), _values(row["values"], ranking["rank"])]
        + [str(row[column] or "") for column in odd]
        for row in rows[:most]
    ]
    heads = {"age": "bars old", "unstable": "unstable"}
    OUT.print(table(title, ["", "market", "name", "rank", "values that decided", *(heads[column] for column in odd)], cells))
    if len(rows) > most:
        OUT.print(f"  and {len(rows) - most} more: `mdms screen {name}`")


def _values(values: Mapping[str, float | None], rank: str) -> str:
    return ", ".join(f"[dim]{text}[/dim] {number(value)}" for text, value in values.items() if text != rank)


def show_failed(failed: Mapping[str, str]) -> None:
    if failed:
        OUT.print(f"[bold red]{len(failed)} not collected[/bold red]; the others are not held back by them:")
        show_list([f"{partition}: {why}" for partition, why in failed.items()], "mdms status --json")


def show_list(lines: Sequence[str], command: str) -> None:
    """Lines, cut after SHOWN with the command that has all."""
    for line in lines[:SHOWN]:
        OUT.print(f"  {line}", markup=False)
    if len(lines) > SHOWN:
        OUT.print(f"  and {len(lines) - SHOWN} more: `{command}` has all")


def next_steps(settings: Settings, screen: str) -> str:
    """What to type next, with the settings that this run had."""
    mdms = Path(sys.executable).parent / "mdms"
    called = os.path.relpath(mdms) if mdms.is_relative_to(Path.cwd()) else str(mdms)
    given = " ".join(f"{name}={os.environ[name]}" for name in SETTINGS if os.environ.get(name) and name not in SECRETS)
    prefix = f"env {given} " if given else ""
    return (
        "\nNext, try\n"
        f"  {prefix}{called} why KRW-BTC {screen}   (every part of the rule with its value)\n"
        f"  {prefix}{called} run   (again: nothing is due within the same candle)\n"
        f"  {prefix}make dev   (the same as an asset graph in Dagster's UI)"
    )


def show_plan(plan: Any) -> None:
    if plan.assumed:
        OUT.print(f"[yellow]{plan.assumed}[/yellow]")
    order = [
        [str(place), entry.indicator, ", ".join(entry.reads), str(entry.depth), str(entry.first), str(entry.stable_after)]
        for place, entry in enumerate(plan.order, 1)
    ]
    title = "Order of calculation: no indicator stands before what it reads"
    OUT.print(table(title, ["", "indicator", "reads", "depth", "first bar", "stable after"], order))
    OUT.print(f"To keep all fresh: {plan.capacity.arithmetic}; when all close together {plan.capacity.peak} requests", end="")
    OUT.print(f" = {plan.capacity.peak_seconds:.0f} s")
    if not plan.steps:
        OUT.print(f"Nothing is due for {plan.symbols} markets.")
        return
    steps = [
        [
            step.step,
            step.timeframe,
            str(step.partitions),
            f"{step.bars:,}",
            f"{step.bytes / 1e6:.1f}",
            "?" if step.seconds is None else f"{step.seconds:.2f}",
        ]
        for step in plan.steps
    ]
    columns = ["step", "timeframe", "markets", "rows", "MB", "seconds (median of earlier runs)"]
    OUT.print(table(f"Due for {plan.symbols} markets, in {plan.runs} run(s)", columns, steps))
    OUT.print(f"{plan.requests} requests, finest timeframe first: {plan.request_seconds:.0f} s at 10 requests/s")


def show_status(report: Mapping[str, Any]) -> None:
    OUT.print(
        f"{report['warehouse']} ({report['bytes'] / 1e6:.1f} MB) of {report['exchange']}: {report['collected']} markets are collected"
    )
    if not report["timeframes"]:
        OUT.print("Nothing was collected yet: run `mdms run`")
        return
    rows = [
        [frame["timeframe"], ", ".join(f"{count} {state}" for state, count in frame["states"].items()), f"{frame['candles']:,}",
         str(frame["indicators"]), frame["newest"] or ""]
        for frame in report["timeframes"]
    ]  # fmt: skip
    OUT.print(table(None, ["timeframe", "states", "candles", "indicators", "newest candle"], rows))
    show_list([f"{partition}: {state}" for partition, state in report["not_fresh"].items()], "mdms status --json")
    for alert in report["alerts"]:
        OUT.print(f"[yellow]alert:[/yellow] {alert}")
    for name, why in report["held_up"].items():
        OUT.print(f"[yellow]held up:[/yellow] {name}, {why}")


def show_calculated(rows: Sequence[Mapping[str, Any]]) -> None:
    cells = [
        [
            ", ".join(f"{count} {reason}" for reason, count in value.items()) if name == "why" else str(value or "")
            for name, value in row.items()
        ]
        for row in rows
    ]
    OUT.print(table(None, list(rows[0]) if rows else [], cells))


def show_why(report: Mapping[str, Any], rules: Sequence[str], values: Sequence[str]) -> None:
    reason = f": {report['reason']}" if report["reason"] else ""
    at = instant(report["at"])
    candle = f"{report['timeframe']} candle of {utc(at)} = {kst(at)}"
    OUT.print(f"[bold]{report['symbol']} {report['outcome']}[/bold] {report['screen']} ({candle}){reason}")
    for rule in rules:
        OUT.print(rule, markup=False)
    OUT.print("[dim]rank and columns[/dim]")
    for value in values:
        OUT.print(value, markup=False)
    if report["unstable"]:
        OUT.print(f"[yellow]too few candles for {', '.join(report['unstable'])}: the value still shows its seed[/yellow]")
