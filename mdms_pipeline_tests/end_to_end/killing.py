"""`mdms run`, killed again and again at random moments, beside the same that nobody kills. `scripts/kill9.py` does it for longer.

1. `Killed.strike` begins a run and kills it after a random part of the time that one takes
2. `Killed.finish` runs it to its end
3. `differences` compares: tables bit for bit, Dagster's record with the tables, the runs that were killed
"""

from __future__ import annotations

import random
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mdms_pipeline.calculate.catalog import KINDS
from mdms_pipeline.market import Instant, iso
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.frames import instants
from mdms_pipeline_tests.end_to_end.dagster_record import newest, statuses
from mdms_pipeline_tests.support import Mdms, bits, broken, environment, mdms, rows

MARKETS = {"MDMS_SYMBOLS": "KRW-BTC,KRW-ETH", "MDMS_HISTORY": "40"}


@dataclass
class Killed:
    """A home in which runs are killed. `seconds` is how long a run takes, as far as was seen."""

    home: Path
    dice: random.Random
    seconds: float
    struck: list[float] = field(default_factory=list)  # of each kill, after how many seconds

    def strike(self, at: Instant) -> None:
        with tempfile.TemporaryDirectory() as folder:
            run = Mdms(["run"], environment(self.home, at, **MARKETS), Path(folder) / "said")
            after = self.dice.uniform(0, self.seconds)
            run.process.join(after)
            run.process.kill()
            code = run.wait().code
        assert code in (-signal.SIGKILL, 0), code
        if code:
            self.struck.append(after)

    def finish(self, at: Instant) -> None:
        began = time.monotonic()
        said = mdms("run", given=environment(self.home, at, **MARKETS))
        assert (said.code, said.err) == (0, ""), said
        self.seconds = max(self.seconds, time.monotonic() - began)


def never_killed(home: Path, at: Instant) -> None:
    """The same without kills, and without Dagster: the layers one by one."""
    for command in ("collect", "calculate"):
        said = mdms(command, given=environment(home, at, **MARKETS))
        assert (said.code, said.err) == (0, ""), said


def differences(home: Path, like: Path) -> Iterator[str]:
    """What is not as it should be after a run that ended; nothing where all is well."""
    killed, whole = (Warehouse(path / "mdms.duckdb", "sandbox", memory_mb=200) for path in (home, like))
    ours, theirs = bits(killed), bits(whole)
    yield from (f"{table} differs" for table in ours.keys() | theirs.keys() if ours.get(table) != theirs.get(table))
    yield from broken(killed)
    record = newest(home)
    for table in ("candles", *KINDS):
        query = f"SELECT symbol, timeframe, {instants('at')} FROM (SELECT symbol, timeframe, max(opened_at) AS at FROM {table} GROUP BY ALL)"
        if record.get(table) != {f"{symbol}|{frame}": iso(at) for symbol, frame, at in rows(killed, query)}:
            yield f"Dagster's record of {table} is not its table's"
    if set(found := statuses(home)) - {"SUCCESS", "FAILURE"}:
        yield f"runs stand at {found}"
    if rows(killed, "SELECT 1 FROM memory WHERE bars <> calculated"):
        yield "bars were calculated twice"
