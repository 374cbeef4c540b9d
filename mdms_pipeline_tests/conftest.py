"""Fixtures of the joined layers. Nothing here reads the environment or the network."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdms_pipeline.sandbox import Sandbox
from mdms_pipeline.store import Warehouse
from mdms_pipeline_tests.support import Clock


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home."""
    return tmp_path / "home"


@pytest.fixture
def warehouse(home: Path) -> Warehouse:
    """A new warehouse of the sandbox's candles."""
    return Warehouse(home / "mdms.duckdb", "sandbox", memory_mb=200)


@pytest.fixture
def now() -> Clock:
    """The clock of `exchange`."""
    return Clock()


@pytest.fixture
def exchange(now: Clock) -> Sandbox:
    """A sandbox exchange at `now`, without limits."""
    return Sandbox(clock=now)
