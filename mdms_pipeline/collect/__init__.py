"""Layer 1, collect: the exchange's candles, closed ones only, every slot accounted for.

1. `wire.py`      one request: Upbit's JSON in, our types out, or a typed error
2. `pace.py`      when the next request may leave, learnt from the exchange's own header (pure)
3. `budget.py`    where that is kept: one small file for all processes of this machine
4. `client.py`    requests with pace and retries; which errors pass and which do not
5. `universe.py`  which markets there are, and which of them are collected
6. `pages.py`     which page to ask for next, and what an answer covers (pure)
7. `fill.py`      many partitions at once: pages are fetched in parallel and committed in groups, one that fails stops no other
8. `socket.py`    candles as they form, over the exchange's WebSocket
"""
