"""The sandbox on a loopback port of this process, in a thread of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from starlette.types import ASGIApp

from mdms_pipeline.sandbox.app import create_app
from mdms_pipeline.sandbox.exchange import Sandbox

LOOPBACK = "127.0.0.1"


def served(sandbox: Sandbox) -> AbstractContextManager[str]:
    """Its address, such as http://127.0.0.1:40123, while the block lasts. RuntimeError where no port can be had."""
    return listening(create_app(sandbox))


@contextmanager
def listening(app: ASGIApp) -> Iterator[str]:
    """The address of any ASGI app, as `served`."""
    import uvicorn

    started = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started.set()

    def run() -> None:
        try:
            server.run()
        finally:
            started.set()

    config = uvicorn.Config(
        app, host=LOOPBACK, port=0, log_config=None, log_level="error", ws_ping_interval=None, timeout_graceful_shutdown=1
    )
    server = Server(config)
    thread = threading.Thread(target=run, daemon=True, name="sandbox exchange")
    thread.start()
    started.wait()
    if not server.started:
        raise RuntimeError(f"the sandbox exchange could not be served on {LOOPBACK}: no free port")
    try:
        yield f"http://{LOOPBACK}:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
