"""Live signals: the moment a candle closes, every strategy and screen has its answer.

1. `signal.py`  one answer that changed
"""

from mdms_pipeline.live.signal import Signal

__all__ = ["Signal"]
