"""An exchange that speaks Upbit's public REST and WebSocket, for first runs, demos and tests. No network, no key, no stored data.

1. `world.py` lists the markets: names, listing and delisting dates, price and turnover of an ordinary day.
2. `model.py` makes their trades, a pure function of (seed, market, time), and adds whole numbers into any candle.
3. `exchange.py` is the exchange at the clock's instant: `Sandbox.candles`, `ticker`, `markets`, and the knobs for tests.
4. `limits.py` counts requests: 429, then 418.
5. `app.py` puts it on the wire: routes, formats, error bodies; `rows.py` has what REST and the WebSocket spell alike.
6. `feed.py` knows what a subscription has to be told and when (`messages.py`), `socket.py` tells it.
7. `serve.py` serves it on a loopback port of this process.

    sandbox = Sandbox(seed=7)
    httpx.AsyncClient(transport=httpx.ASGITransport(app=create_app(sandbox)), base_url="http://sandbox")
    uvicorn.run(create_app(sandbox), host="127.0.0.1", port=8017)

Orders, the order book and private routes are not here.
"""

from mdms_pipeline.sandbox.app import create_app
from mdms_pipeline.sandbox.exchange import SECOND, YEAR, Fault, Logged, Sandbox, Ticker, UnknownMarket
from mdms_pipeline.sandbox.messages import Message, SocketFault, Told
from mdms_pipeline.sandbox.serve import served
from mdms_pipeline.sandbox.world import Market

__all__ = [
    "SECOND",
    "YEAR",
    "Fault",
    "Logged",
    "Market",
    "Message",
    "Sandbox",
    "SocketFault",
    "Ticker",
    "Told",
    "UnknownMarket",
    "create_app",
    "served",
]
