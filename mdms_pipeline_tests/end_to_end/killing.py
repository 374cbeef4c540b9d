"""`mdms run`, killed again and again at random moments, beside the same that nobody kills. `scripts/kill9.py` does it for longer.

1. `run` takes one to its end, and the time
2. `strike` begins one and kills it after a random part of that time
3. `differences` compares: tables bit for bit, Dagster's record with the tables, the runs that were killed
"""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mdms_pipeline.market import Instant
from mdms_pipeline.store import Warehouse
from mdms_pipeline_tests.end_to_end.dagster_record import in_tables, newest, statuses
from mdms_pipeline_tests.support import Mdms, bits, broken, environment, mdms, rows


def run(home: Path, at: Instant) -> float:
    """Run to the end; the seconds that it takes."""
    began = time.monotonic()
    said = mdms("run", given=environment(home, at))
    assert (said.code, said.err) == (0, ""), said
    return time.monotonic() - began


def strike(home: Path, at: Instant, seconds: float) -> bool:
    """Begin a run and kill it after so many seconds; whether it was still running then."""
    with tempfile.TemporaryDirectory() as folder:
        begun = Mdms(["run"], environment(home, at), Path(folder) / "said")
        begun.process.join(seconds)
        begun.process.kill()
        said = begun.wait()
    assert said.code in (-signal.SIGKILL, 0), said
    return said.code != 0


def differences(home: Path, like: Path) -> Iterator[str]:
    """What is not as it should be after a run that ended; nothing where all is well."""
    killed, whole = (Warehouse(path / "mdms.duckdb", "sandbox", memory_mb=200) for path in (home, like))
    ours, theirs = bits(killed), bits(whole)
    yield from (f"{table} differs" for table in ours.keys() | theirs.keys() if ours.get(table) != theirs.get(table))
    yield from broken(killed)
    record = newest(home)
    yield from (f"Dagster's record of {table} is not its table's" for table, told in in_tables(killed).items() if record.get(table) != told)
    if set(found := statuses(home)) - {"SUCCESS", "FAILURE"}:
        yield f"runs stand at {found}"
    if rows(killed, "SELECT 1 FROM memory WHERE bars <> calculated"):
        yield "bars were calculated twice"
