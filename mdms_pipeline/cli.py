"""The `mdms` command. Exit codes: 0 all is well, 1 an error (said on stderr), 2 wrong usage, 3 done, but some markets failed."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from mdms_pipeline.market import TIMEFRAMES, kst, utc
from mdms_pipeline.settings import SETTINGS, SettingError, Settings

OUT, ERR = Console(), Console(stderr=True)
PARTLY = 3  # exit code: done, but some markets failed
SETTINGS_HELP = "\n\n\b\nSettings, from the environment:\n" + "\n".join(f"  {name} = {default or '(none)'}: {what}" for name, (default, what) in SETTINGS.items())


class Commands(click.Group):
    """Errors of ours are one message on stderr and exit code 1; a traceback is for what nobody foresaw."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            ERR.print("stopped; what was stored stays, the next run goes on from there")
            raise click.exceptions.Exit(130) from None
        except Exception as error:
            if not _expected(error):
                raise
            click.echo(f"mdms: {error}", err=True)
            raise click.exceptions.Exit(1) from None


def _expected(error: BaseException) -> bool:
    """Whether this error explains itself to a user."""
    from mdms_pipeline.collect.universe import UnknownSymbol
    from mdms_pipeline.collect.wire import ExchangeError
    from mdms_pipeline.rules import RuleError
    from mdms_pipeline.store import StoreError
    from mdms_pipeline.vocabulary import ExtensionError

    return isinstance(error, (SettingError, StoreError, ExchangeError, UnknownSymbol, RuleError, ExtensionError, UserError))


class UserError(Exception):
    """What was asked for cannot be; the message says what can."""


@click.group(cls=Commands, epilog=SETTINGS_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mdms-pipeline")
def main() -> None:
    """Upbit market data, collected once, calculated once, used everywhere."""
    warnings.filterwarnings("ignore", module="dagster")


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


@contextmanager
def watched(quiet: bool) -> Iterator[Callable[[str, int], Any]]:
    """A progress bar per step on stderr; nothing where stderr is no terminal, or `quiet`."""
    columns = (SpinnerColumn(), TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=ERR, disable=quiet or not ERR.is_terminal, transient=True) as bars:

        @contextmanager
        def step(name: str, total: int) -> Iterator[Callable[[int], None]]:
            task = bars.add_task(name, total=total)
            yield lambda done: bars.advance(task, done)
            bars.remove_task(task)

        yield step


def _warehouse(settings: Settings) -> Any:
    from mdms_pipeline.store import Warehouse

    return Warehouse(settings.warehouse, settings.exchange_url, settings.memory_mb)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


# ---- run


@main.command()
@click.option("--plan", "only_plan", is_flag=True, help="Say what would be done, and do nothing.")
@as_json
def run(only_plan: bool, as_json: bool) -> None:
    """Update the universe, then collect, calculate and screen what is due, in one Dagster run."""
    settings = Settings.load()
    warehouse = _warehouse(settings)
    if only_plan:
        from mdms_pipeline.plan import plan_run

        _show_plan(plan_run(settings, warehouse), as_json)
        return
    import logging

    from mdms_pipeline.defs.resources import Mdms
    from mdms_pipeline.defs.run import refresh, use_home
    from mdms_pipeline.screen.look import screens_of

    logging.getLogger("dagster").setLevel(logging.ERROR)
    with use_home(settings) as instance, watched(as_json) as progress:
        done = refresh(instance, warehouse, Mdms(settings, progress=progress))
    loaded = screens_of(settings)
    report = _report(warehouse, done, loaded.screens)
    if as_json:
        _print_json(report)
    else:
        _show_run(settings, report)
    for error in loaded.errors:
        click.echo(f"mdms: {error}", err=True)
    if done.error:
        raise UserError(done.error)
    sys.exit(1 if loaded.errors else PARTLY if report["failed"] else 0)
