"""Runs that are made once for all tests and test processes, each of which takes a copy."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mdms_pipeline_tests.support import HOUR, NOW, Said, environment, mdms


@dataclass(frozen=True)
class Ran:
    """A home that nobody may change, after `mdms run --json`, and what that said."""

    home: Path
    said: Said

    @property
    def report(self) -> Any:
        return json.loads(self.said.out)


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Said]) -> Ran:
    """What `make(home)` says: made by the first of xdist's workers that asks, waited for by the others."""
    base = factory.getbasetemp()
    base = base.parent if base.name.startswith("popen-") else base
    home, kept = base / name, base / f"{name}.json"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            said = make(home)
            kept.write_text(json.dumps([said.code, said.out, said.err]))
    return Ran(home, Said(*json.loads(kept.read_text())))


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The first run of all, at NOW."""
    return once(tmp_path_factory, "first-run", lambda home: mdms("run", "--json", given=environment(home)))


@pytest.fixture(scope="session")
def second_run(tmp_path_factory: pytest.TempPathFactory, first_run: Ran) -> Ran:
    """The next, an hour later."""

    def make(home: Path) -> Said:
        shutil.copytree(first_run.home, home)
        return mdms("run", "--json", given=environment(home, NOW + HOUR))

    return once(tmp_path_factory, "second-run", make)


@pytest.fixture
def ran(first_run: Ran, home: Path) -> Path:
    """A home of one's own after the first run."""
    shutil.copytree(first_run.home, home)
    return home
