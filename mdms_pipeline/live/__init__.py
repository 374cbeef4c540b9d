"""Live signals: the moment a candle closes, every strategy and screen has its answer, from the kernels and memories of the assets.

1. `signal.py`   one answer that changed
2. `watch.py`    a rule that is watched, and what it says at each bar: the one definition, of live and of what is stored
3. `load.py`     the warehouse's memories and last bars into RAM, by the short way or by calculation
4. `tape.py`     what is kept in RAM of a timeframe; `step.py` advances many symbols by one bar with the batch's kernels
5. `lane.py`     bars that form and close, by messages and by the clock; `panel.py` what the rules read and say at one bar of many symbols,
   `coarse.py` days, weeks, months; `engine.py` all timeframes
6. `run.py`      the process: begin, close the gap by REST (`gap.py`), listen; `news.py` tells each answer once, over restarts too
   `room.py` says before that what it takes in RAM at the most, `universe.py` follows which markets are collected, `tidy.py` finds garbage
7. `journal.py`  every signal is written down before anybody hears of it
8. `deliver.py`  from there to the table, webhooks and callables: `live.subscribe(print)`
9. `serve.py`    what is in RAM is answered to others, who come by `ask.py`
10. `parity.py`   what was told against what is stored, to the bit; `ran.py` of what really ran
11. `desk.py`    one symbol now, without a process; `forming.py` the bar that forms, from one ticker/all

What an answer means is said in docs/live.md, where it goes in docs/signals.md.
"""

from mdms_pipeline.live.deliver import subscribe
from mdms_pipeline.live.signal import Signal

__all__ = ["Signal", "subscribe"]
