"""The Dagster edge: what the layers do, as assets whose lineage is the dependency resolver. Nothing below imports this.

1. `grid.py`       the partitions, symbol x timeframe, and what a step tells of each
2. `resources.py`  the warehouse, the exchange and the settings, handed to assets
3. `universe.py`   `symbols`: the markets there are; keeps the dynamic partitions
4. `candles.py`    `candles` and their checks
5. `indicators.py` one asset per kind of the catalog; its edges are the declared reads
6. `screens.py`    `screen_results`, and one ranking per screen
7. `refresh.py`    the job, its schedules, and which run is to be made
8. `storage.py`    Dagster's event log, written in batches
"""
