"""Live signals: the moment a candle closes, every strategy and screen has its answer.

1. `signal.py`   one answer that changed
2. `journal.py`  every signal is written down before anybody hears of it
3. `deliver.py`  from there to the table, webhooks and callables: `live.subscribe(print)`
4. `ran.py`      what really ran, compared with what is stored
"""

from mdms_pipeline.live.deliver import subscribe
from mdms_pipeline.live.signal import Signal

__all__ = ["Signal", "subscribe"]
