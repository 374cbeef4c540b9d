"""Runs in the warehouse: `backtest_runs`, `trades` and `equity`, one transaction per run; the same run again replaces itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np

from mdms_pipeline.backtest.run import Result, closes_at, numbers
from mdms_pipeline.market import Instant
from mdms_pipeline.store.frames import append, instants, timestamps
from mdms_pipeline.store.schema import BACKTEST_TABLES

KEPT = ("total_return", "annual_return", "sharpe", "max_drawdown", "trades", "win_rate")


@dataclass(frozen=True)
class Kept:
    """One row of the table of runs."""

    run: str
    strategy: str
    timeframe: str
    params: dict[str, float]
    starts_at: Instant
    ends_at: Instant
    total_return: float | None
    annual_return: float | None
    sharpe: float | None
    max_drawdown: float | None
    trades: int
    win_rate: float | None
    reference_return: float | None
    made_at: Instant


def keep(connection: duckdb.DuckDBPyConnection, result: Result, now: Instant, run_id: str | None = None) -> str:
    """Store a run in the caller's transaction; its id."""
    for table, columns in BACKTEST_TABLES.items():
        connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})")
        connection.execute(f"DELETE FROM {table} WHERE run = ?", [result.id])
    measured = numbers(result.metrics)
    row: dict[str, Any] = {
        "run": result.id, "strategy": result.strategy.name, "timeframe": result.strategy.timeframe.name,
        "params": json.dumps(dict(result.strategy.params)), **{name: measured[name] for name in KEPT},
        "reference_return": float(result.reference[-1] / result.strategy.capital - 1), "metrics": json.dumps(measured),
        "orders": json.dumps(result.counts), "record": json.dumps(result.record), "run_id": run_id,
    }  # fmt: skip
    ends = int(closes_at(result.history)[result.end - 1])
    times = {"starts_at": timestamps([int(result.opened_at[0])]), "ends_at": timestamps([ends]), "made_at": timestamps([now])}
    append(connection, "backtest_runs", {**{name: [value] for name, value in row.items()}, **times})
    append(connection, "trades", _trade_columns(result))
    outcome = result.outcome
    append(connection, "equity", {
        "run": [result.id] * len(outcome.equity), "opened_at": timestamps(result.opened_at.tolist()), "equity": outcome.equity,
        "cash": outcome.cash, "positions": outcome.held, "reference": result.reference,
    })  # fmt: skip
    return result.id


def _trade_columns(result: Result) -> dict[str, Sequence[Any] | np.ndarray]:
    trades = result.trades
    plain = ("symbol", "entry_price", "exit_price", "units", "fees", "profit", "profit_rate", "bars", "opened", "closed")
    times = {name: timestamps([getattr(trade, name) for trade in trades]) for name in ("decided_at", "entered_at", "exited_at")}
    return {"run": [result.id] * len(trades), **{name: [getattr(trade, name) for trade in trades] for name in plain}, **times}


def runs(connection: duckdb.DuckDBPyConnection, strategy: str | None = None, limit: int = 20) -> list[Kept]:
    """The newest kept runs, of one strategy or of all."""
    if not connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'backtest_runs'").fetchone():
        return []
    rows = connection.execute(
        f"""SELECT run, strategy, timeframe, params, {instants("starts_at", "ends_at")}, total_return, annual_return, sharpe,
                   max_drawdown, trades, win_rate, reference_return, {instants("made_at")}
            FROM backtest_runs WHERE ? IS NULL OR strategy = ? ORDER BY made_at DESC, run LIMIT ?""",
        [strategy, strategy, limit],
    ).fetchall()
    return [Kept(run, name, frame, json.loads(params), *rest) for run, name, frame, params, *rest in rows]


def record_of(connection: duckdb.DuckDBPyConnection, run: str) -> dict[str, Any] | None:
    """The record of a kept run, None where there is none of that id."""
    if not connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'backtest_runs'").fetchone():
        return None
    row = connection.execute("SELECT record FROM backtest_runs WHERE run = ?", [run]).fetchone()
    return None if row is None else json.loads(row[0])
