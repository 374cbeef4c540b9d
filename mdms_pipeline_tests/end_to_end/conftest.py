"""One `mdms run`, made once for all tests and test processes, each of which takes a copy."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mdms_pipeline_tests.support import Said, environment, mdms

Copy = Callable[[], Path]


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """The home after one `mdms run --json` at NOW, and what it said."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if shared.name.startswith("popen-") else shared  # of all of xdist's workers
    home, said = shared / "first-run", shared / "first-run.json"
    with (shared / "first-run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            found = mdms("run", "--json", given=environment(home))
            said.write_text(json.dumps([found.code, found.out, found.err]))
    return home, Said(*json.loads(said.read_text()))


@pytest.fixture
def ran(first_run: tuple[Path, Said], home: Path) -> Path:
    """A home of one's own after the first run."""
    shutil.copytree(first_run[0], home)
    return home
