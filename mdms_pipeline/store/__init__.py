"""Layer 1, store: one DuckDB file, written in short transactions under one file lock.

1. `warehouse.py`  opens the file: `read()` and `write()`, one lock, one transaction per write, closed on every path
2. `schema.py`     the tables, what stands in them, and the joined view
3. `universe.py`   which markets there are, and which of them are collected
4. `candles.py`    pages of candles with coverage, status and event, written together
5. `indicators.py` indicator rows with their memories, written together; NaN becomes NULL here and nowhere else
6. `series.py`     columns of any table as arrays, for rules, screens and notebooks
7. `journal.py`    events, the work done, and what screens found
8. `signals.py`    live signals, each once, and what was watched while they came
"""

from mdms_pipeline.store.warehouse import StoreError, Warehouse, WarehouseBusy

__all__ = ["StoreError", "Warehouse", "WarehouseBusy"]
