"""A clock that tests set, and one way to ask the sandbox over HTTP without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from mdms_pipeline.market import instant
from mdms_pipeline.sandbox import Sandbox, create_app

NOW = float(instant("2026-11-22T09:30:20"))  # within a minute, an hour and a day


@dataclass
class Clock:
    """Tells `now` until it is set anew."""

    now: float = NOW

    def __call__(self) -> float:
        return self.now


Get = Callable[..., httpx.Response]


def asking(sandbox: Sandbox) -> Get:
    """`get(path, headers=None, **query)`: one GET through the ASGI app."""
    app = create_app(sandbox)

    def get(path: str, headers: dict[str, str] | None = None, **query: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://sandbox") as client:
                return await client.get(path, params=query or None, headers=headers)

        return asyncio.run(ask())

    return get


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sandbox(clock: Clock) -> Sandbox:
    return Sandbox(seed=7, clock=clock)


@pytest.fixture
def get(sandbox: Sandbox) -> Get:
    return asking(sandbox)
