"""The sandbox on a loopback port, and the clients that ask it: ours, and three that people use for Upbit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import ccxt
import pytest
import pyupbit
import requests
import upbit
from requests.adapters import HTTPAdapter

from mdms_pipeline.collect.client import Exchange, connect
from mdms_pipeline.sandbox import Sandbox, served
from mdms_pipeline.settings import UPBIT
from mdms_pipeline_tests.support import NOW

Ours = Callable[[Callable[[Exchange], Awaitable[Any]]], Any]


@pytest.fixture(scope="package")
def sandbox() -> Sandbox:
    """One exchange for all; its clock stands still within a minute, an hour and a day."""
    return Sandbox(clock=lambda: float(NOW))


@pytest.fixture(scope="package")
def url(sandbox: Sandbox) -> Iterator[str]:
    """Where the sandbox listens."""
    with served(sandbox) as address:
        yield address


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback is asked directly, whatever the machine's environment says."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def ours(url: str, tmp_path: Path) -> Ours:
    """`ours(lambda exchange: exchange.markets())`: what our own client gets."""

    def ask(question: Callable[[Exchange], Awaitable[Any]]) -> Any:
        async def asked() -> Any:
            async with connect(url, lambda: float(NOW), budget_dir=tmp_path) as exchange:
                return await question(exchange)

        return asyncio.run(asked())

    return ask


@pytest.fixture
def sdk(url: str) -> upbit.Upbit:
    """Upbit's own package; it is told another address."""
    return upbit.Upbit(base_url=url, max_retries=0)


@pytest.fixture
def exchange_of_ccxt(url: str) -> ccxt.upbit:
    """ccxt; it is told another address."""
    return ccxt.upbit({"urls": {"api": {"public": url}}, "enableRateLimit": False})


@pytest.fixture
def quotations(url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """pyupbit, which knows one address only: what it sends there arrives here."""

    class Here(HTTPAdapter):
        def send(self, request: requests.PreparedRequest, *more: Any, **options: Any) -> requests.Response:
            assert request.url is not None
            request.url = request.url.replace(UPBIT, url)
            return super().send(request, *more, **options)

    session = requests.Session()
    session.mount(UPBIT, Here())
    monkeypatch.setattr("pyupbit.request_api.requests", session)
    return pyupbit
