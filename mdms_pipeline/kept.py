"""Which indicators the warehouse keeps: the usual ones, and those that a saved screen or strategy asks for."""

from __future__ import annotations

from mdms_pipeline.backtest.find import strategies_of
from mdms_pipeline.calculate.indicator import Indicator
from mdms_pipeline.screen.look import screens_of
from mdms_pipeline.settings import Settings
from mdms_pipeline.vocabulary import stored


def kept_indicators(settings: Settings) -> tuple[Indicator, ...]:
    """All of them, upstream first; a strategy counts with its usual parameters."""
    screens = [screen.expressions for screen in screens_of(settings).screens.values()]
    strategies = [recipe.usual.expressions for recipe in strategies_of(settings).recipes.values()]
    return stored(expression for expressions in (*screens, *strategies) for expression in expressions)
