"""Backtests: a strategy in the rule language of the screens, traded over the stored past.

1. `strategy.py`   files -> `Recipe`s, or errors that name file, line and remedy; `bind` fills in parameters -> `Strategy`
2. `history.py`    the stored candles of many symbols on one complete slot grid; who is in the universe at each slot
3. `decide.py`     rules -> what may be done at every close, on stable indicators only
4. `engine.py`     decisions -> fills, equity and the orders that went wrong; plain arrays, compiled, no rules and no store
5. `metrics.py`    equity and trades -> the numbers that people expect
6. `run.py`        2 to 5 in one call: `backtest`, and the record that makes a run again to the bit
7. `check.py`      is it honest: decisions from cut history, decisions from later history
8. `sweep.py`      many parameters: sweeps and walk-forward; `doubt.py`: could it be luck
9. `report.py`     one HTML page that needs no network; `keep.py`: the tables of the warehouse; `replay.py`: a kept run made again
10. `find.py`      the strategies of the settings, their histories in the warehouse

What is traded when, and at what price, is said in docs/backtest.md.
"""

from mdms_pipeline.backtest.history import History, HistoryError, Past, read_history
from mdms_pipeline.backtest.run import Result, backtest
from mdms_pipeline.backtest.strategy import BUILT_IN, Loaded, ParamError, Recipe, Strategy, StrategyError, load_strategies, load_strategy

__all__ = [
    "BUILT_IN",
    "History",
    "HistoryError",
    "Loaded",
    "ParamError",
    "Past",
    "Recipe",
    "Result",
    "Strategy",
    "StrategyError",
    "backtest",
    "load_strategies",
    "load_strategy",
    "read_history",
]
