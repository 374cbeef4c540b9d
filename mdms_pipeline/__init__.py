"""How a candle becomes a ranking.

1. `settings.py`      reads the environment: home, exchange, timeframes, symbols, history
2. `collect/`         asks the exchange for closed candles at its pace: `fill.py` joins `client.py`, `pace.py`, `pages.py` and `wire.py`
3. `store/`           keeps them in DuckDB with coverage, status and events, in one transaction: `candles.py`, `warehouse.py`, `schema.py`
4. `calculate/`       declares indicators (`indicator.py`, `catalog.py`), runs their kernels (`kernels.py`) over what is new (`advance.py`)
5. `rules/`           parses, evaluates and explains `close > sma(200) and rsi(14) < 30`
6. `vocabulary.py`    tells rules which indicators there are, and which are asked for
7. `screen/`          judges every market by the rules at one instant and ranks those that pass: `load.py`, `judge.py`, `look.py`
8. `backtest/`        trades a strategy (rules, stops, sizes) over the stored past: `strategy.py`, `engine.py`, `check.py`, `report.py`
9. `live/`            tells the moment an answer of 7 or 8 changes: `run.py` listens, `engine.py` judges, `journal.py` and `deliver.py` tell
10. `defs/`           makes assets, checks and sensors of 2 to 9; `definitions.py` is what Dagster loads; `defs/run.py` is `mdms run`
11. `plan.py`         says what would be done before it is done
12. `cli.py`          is the `mdms` command; `notebook.py` is `mdms_pipeline.frame`

`market.py` has the words and units that all share. `alerts.py` tells a person what is wrong. `sandbox/` is an exchange of our own, for
first runs, demos and tests.

    mdms_pipeline.frame("rsi(14)", "KRW-BTC", "1h")       # a pandas DataFrame
    mdms_pipeline.signal("KRW-BTC", "pullback")           # what a strategy says now
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from mdms_pipeline.live.desk import Answer
    from mdms_pipeline.settings import Settings

__all__ = ["frame", "signal"]


def frame(texts: str | Sequence[str], symbol: str, timeframe: str, settings: Settings | None = None) -> pd.DataFrame:
    """One column per value, one row per stored candle, oldest first; the index `opened_at` is UTC, NaN is "not known".

    A text is a candle column, an indicator (a column for each of its outputs, named as in the warehouse) or a formula of both:
    `frame(["close", "macd", "close / sma(37) - 1"], "KRW-BTC", "1h")`. What is not stored is calculated in RAM by the same kernels.
    ValueError where the symbol, the timeframe or a text is not known.
    """
    from mdms_pipeline import notebook  # imports numba and pandas: `import mdms_pipeline` alone stays light

    return notebook.frame(texts, symbol, timeframe, settings)


def signal(symbol: str, strategy: str, settings: Settings | None = None, ask: bool = True) -> Answer:
    """What `strategy` says of `symbol` at its last closed bar and, provisionally, at the one that forms: `signal("KRW-BTC", "pullback")`.

    Says by which way (memory in RAM, stored memory, full calculation) and how long it took. Without `ask` of the stored candles alone.
    ValueError where the symbol or the strategy is not known, or nothing is stored of it.
    """
    from mdms_pipeline import answers

    return answers.signal(symbol, strategy, settings, ask)
