"""Strategies of the package and of the extensions folder, and their histories in the warehouse."""

from __future__ import annotations

from pathlib import Path

from mdms_pipeline.backtest.history import History, read_history
from mdms_pipeline.backtest.strategy import BUILT_IN, Loaded, ParamError, Recipe, Strategy, load_strategies
from mdms_pipeline.rules import did_you_mean
from mdms_pipeline.settings import Settings
from mdms_pipeline.store import Warehouse
from mdms_pipeline.vocabulary import load_extensions, vocabulary

SCREENS = Path(__file__).parents[1] / "screen" / "screens"  # files only: a universe may name a screen


def strategies_of(settings: Settings) -> Loaded:
    """The built-in strategies and those of the extensions folder; what is wrong with a file stands beside the good ones."""
    load_extensions(settings.extensions)
    own = [settings.extensions / "strategies"] if settings.extensions and (settings.extensions / "strategies").is_dir() else []
    screens = [SCREENS, *([settings.extensions / "screens"] if settings.extensions else [])]
    return load_strategies([BUILT_IN, *own], vocabulary(), screens)


def recipe_of(settings: Settings, name: str) -> Recipe:
    """The recipe of that name. Raises ParamError with the nearest names, or with what is wrong with its file."""
    loaded = strategies_of(settings)
    if name in loaded.recipes:
        return loaded.recipes[name]
    broken = [str(error) for error in loaded.errors if error.file.stem == name]
    raise ParamError("\n".join(broken) or f"strategy {name!r} is not known: {did_you_mean(name, loaded.recipes)}")


def history_of(warehouse: Warehouse, strategy: Strategy) -> History:
    """Everything stored that the strategy may trade. Raises HistoryError."""
    with warehouse.read() as connection:
        return read_history(connection, strategy)
