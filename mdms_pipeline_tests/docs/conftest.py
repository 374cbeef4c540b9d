"""A small warehouse from the sandbox exchange, made by the commands of the README."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Three markets, all screens' timeframes, 60 candles each."""
    settings = {
        "MDMS_HOME": str(tmp_path_factory.mktemp("docs")),
        "MDMS_EXCHANGE_URL": "sandbox",
        "MDMS_SYMBOLS": "KRW-BTC,KRW-ETH,KRW-XRP",
        "MDMS_HISTORY": "60",
    }
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MDMS_", "DAGSTER_"))}
    return {**plain, **settings}


@pytest.fixture(scope="session")
def python(environment: Mapping[str, str]) -> Run:
    """Run Python in a process of its own: what an example registers or reads from the environment stays there."""

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([sys.executable, *arguments], env={**environment, **more}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def home(environment: Mapping[str, str], python: Run) -> Path:
    """The home of the warehouse, collected, calculated and screened."""
    for command in ("collect", "calculate", "screen"):
        python("-m", "mdms_pipeline.cli", command)
    return Path(environment["MDMS_HOME"])
