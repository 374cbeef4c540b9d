"""The Dagster edge: what the layers do, as assets whose lineage is the dependency resolver. Nothing below imports this.

1. `grid.py`       the partitions, symbol x timeframe, and what a step tells of each
2. `resources.py`  the warehouse, the exchange and the settings, handed to assets
3. `universe.py`   `symbols`: the markets there are; keeps the dynamic partitions
4. `candles.py`    `candles` and their checks
5. `indicators.py` one asset per kind of the catalog; its edges are the declared reads
6. `screens.py`    `screen_results`, and one ranking per screen
7. `due.py`        what is behind: the clock, the warehouse and Dagster's record of it compared
8. `refresh.py`    the job, and which run is made next
9. `sensors.py`    what happens by itself: refresh, listings, freshness and alerts, screens at their own times
10. `signals.py`   `signals`: what `mdms live` has told, and whether the stored candles say the same
11. `run.py`       `mdms run`: the same run, made by hand
12. `processes.py` which process executes a run, and runs whose process died
13. `storage.py`   Dagster's event log, written in batches; `prune.py` keeps it small
"""

import warnings

import dagster as dg

# Said once per asset, in every process that loads the project. Dagster is pinned, and tests hold what we use of it.
warnings.filterwarnings("ignore", "Parameter `backfill_policy`", dg.BetaWarning)
