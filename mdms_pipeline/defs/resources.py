"""What assets are handed: the warehouse, the exchange and the settings."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import dagster as dg
import duckdb
from dagster_duckdb import DuckDBResource

from mdms_pipeline.collect.client import Exchange, connect
from mdms_pipeline.defs.processes import sign
from mdms_pipeline.progress import Progress, unwatched
from mdms_pipeline.settings import Settings
from mdms_pipeline.store import Warehouse, WarehouseBusy
from mdms_pipeline.store.warehouse import DEADLINE

SENSOR_DEADLINE = 15.0  # s; Dagster ends a sensor's tick after 60


@lru_cache(maxsize=4)
def _warehouse(path: Path, exchange: str, memory_mb: int, deadline: float, no_trade: str | None, inode: int | None) -> Warehouse:
    """The same for all steps of a process: its schema is looked at once. `inode`: that of another file in its place is looked at again."""
    return Warehouse(path, exchange, memory_mb, deadline, no_trade)


class WarehouseResource(DuckDBResource):
    """dagster-duckdb's resource, made safe: one lock for writers, closed on every path, one transaction per write, readers read-only."""

    exchange: str
    memory_mb: int = 500
    no_trade: str | None = None

    @property
    def warehouse(self) -> Warehouse:
        return self._opened(DEADLINE)

    @property
    def impatient(self) -> Warehouse:
        """The warehouse for a sensor, which may not wait for long. Raises WarehouseBusy after SENSOR_DEADLINE."""
        return self._opened(SENSOR_DEADLINE)

    def _opened(self, deadline: float) -> Warehouse:
        path = Path(self.database)
        return _warehouse(path, self.exchange, self.memory_mb, deadline, self.no_trade, path.stat().st_ino if path.exists() else None)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """The first thing that a run's own process does: say which one it is."""
        if context.run is not None and context.instance is not None:
            sign(context.instance, context.run)

    @contextmanager
    def get_connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection in a transaction that is stored when the block ends and rolled back when it raises."""
        with self.warehouse.write() as connection:
            yield connection

    @contextmanager
    def get_reader(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A read-only connection."""
        with self.warehouse.read() as connection:
            yield connection


@dataclass(frozen=True)
class Mdms:
    """What the project is set to, and what it needs from outside: the exchange, the clock, somebody who watches."""

    settings: Settings
    clock: Callable[[], float] = time.time
    progress: Progress = unwatched
    exchange: Callable[[], Exchange] | None = None  # None: the one that the settings name

    def __post_init__(self) -> None:
        if self.clock is time.time:
            object.__setattr__(self, "clock", self.settings.clock)

    def connect(self) -> Exchange:
        return self.exchange() if self.exchange else connect(self.settings.exchange_url, self.clock)


def resources(mdms: Mdms) -> dict[str, object]:
    settings = mdms.settings
    return {
        "warehouse": WarehouseResource(
            database=str(settings.warehouse), exchange=settings.exchange_url, memory_mb=settings.memory_mb, no_trade=settings.no_trade
        ),
        "mdms": mdms,
    }


def patiently(tick: Callable[[], dg.SensorResult | dg.SkipReason]) -> dg.SensorResult | dg.SkipReason:
    """A tick that finds the warehouse busy does nothing: the next one comes soon."""
    try:
        return tick()
    except WarehouseBusy as error:
        return dg.SkipReason(str(error))
