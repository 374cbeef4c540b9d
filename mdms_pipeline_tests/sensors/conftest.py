"""A home that is up to date, made once; each test gets a copy of it with a clock of its own."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import dagster as dg
import httpx
import pytest

from mdms_pipeline import definitions
from mdms_pipeline.calculate.catalog import closure
from mdms_pipeline.collect.budget import MemoryBudget
from mdms_pipeline.collect.client import Exchange
from mdms_pipeline.collect.pace import Ledger, Pace
from mdms_pipeline.defs import due, sensors
from mdms_pipeline.defs.resources import Mdms, WarehouseResource
from mdms_pipeline.defs.run import refresh, use_home
from mdms_pipeline.sandbox import Sandbox, create_app
from mdms_pipeline.screen.look import screens_of
from mdms_pipeline.settings import Settings
from mdms_pipeline.store import Warehouse
from mdms_pipeline.vocabulary import parse_indicator

from ..support import EXCHANGE, Clock, settings

SYMBOLS = ("KRW-BTC", "KRW-ETH")
TIMEFRAMES = "1m,1h,4h"


async def no_sleep(seconds: float) -> None:
    return None


@dataclass
class House:
    """A home, its exchange and its clock, and Dagster over it."""

    settings: Settings
    clock: Clock
    sandbox: Sandbox
    instance: dg.DagsterInstance
    cursors: dict[str, str | None] = field(default_factory=dict)

    @property
    def warehouse(self) -> Warehouse:
        return Warehouse(self.settings.warehouse, self.settings.exchange_url)

    @property
    def mdms(self) -> Mdms:
        return Mdms(self.settings, self.clock, exchange=self.connect)

    def connect(self) -> Exchange:
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app=create_app(self.sandbox)), base_url=EXCHANGE)
        unlimited = Ledger({group: Pace(allowed=math.inf) for group in ("market", "ticker", "candles")})
        return Exchange(http, clock=self.clock, sleep=no_sleep, budget=MemoryBudget(ledger=unlimited))

    @cached_property
    def definitions(self) -> dg.Definitions:
        return definitions.build(self.mdms)

    def context(self, name: str) -> dg.SensorEvaluationContext:
        return dg.build_sensor_context(self.instance, cursor=self.cursors.get(name), resources={"warehouse": self.resource()})

    def resource(self) -> WarehouseResource:
        return WarehouseResource(database=str(self.settings.warehouse), exchange=self.settings.exchange_url)

    def tick(self, name: str = "refresh") -> dg.SensorResult | dg.SkipReason:
        """One tick of a sensor; its cursor is kept for the next one."""
        sensor = self.definitions.get_repository_def().get_sensor_def(name)
        result = sensor(self.context(name))
        if isinstance(result, dg.SensorResult) and result.cursor is not None:
            self.cursors[name] = result.cursor
        return result

    def requests(self, name: str = "refresh") -> list[dg.RunRequest]:
        """The runs that one tick asks for."""
        result = self.tick(name)
        return list(result.run_requests or []) if isinstance(result, dg.SensorResult) else []

    def execute(self, request: dg.RunRequest, job: str = sensors.JOB) -> dg.ExecuteInProcessResult:
        """What the daemon does with a request."""
        return self.definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance, tags=dict(request.tags), asset_selection=request.asset_selection, raise_on_error=False,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )  # fmt: skip

    def settle(self) -> list[str]:
        """Tick and execute until nothing is asked for: the timeframes of each run."""
        made = []
        while requests := self.requests():
            assert len(requests) == 1
            made.append(requests[0].tags["mdms/timeframes"])
            assert self.execute(requests[0]).success
        return made

    def asked(self) -> list[str]:
        """The candle requests that the exchange has answered."""
        return [entry.path for entry in self.sandbox.log if "/candles/" in entry.path]

    def screens(self) -> Sequence[object]:
        return list(screens_of(self.settings).screens.values())


@contextmanager
def house_in(home: Path, **more: str) -> Iterator[House]:
    clock = Clock()
    wanted = settings(home, ",".join(SYMBOLS), TIMEFRAMES, 60, **more)
    with pytest.MonkeyPatch.context() as patch:
        for module in (definitions, due):  # what is tested here does not hang on how many indicators there are
            patch.setattr(module, "kept_indicators", lambda settings: closure([parse_indicator("rsi(14)")]))
        for name in ("DAGSTER_HOME", "DAGSTER_EVENT_BATCH_SIZE", "DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS"):
            patch.setenv(name, "")
            patch.delenv(name)
        with use_home(wanted) as instance:
            yield House(wanted, clock, Sandbox(clock=clock), instance)


@pytest.fixture(scope="session")
def fresh_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which everything is up to date at support.NOW."""
    home = tmp_path_factory.mktemp("fresh")
    with house_in(home) as house:
        done = refresh(house.instance, house.warehouse, house.mdms)
        assert done.succeeded, done.error
    return home


@pytest.fixture
def house(fresh_home: Path, tmp_path: Path) -> Iterator[House]:
    """A copy of the home that is up to date."""
    shutil.copytree(fresh_home, tmp_path / "home")
    with house_in(tmp_path / "home") as house:
        yield house


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[House]:
    """A home in which nothing was ever done."""
    with house_in(tmp_path / "home") as house:
        yield house
