"""What is watched live: the rules of the saved strategies and screens. The one place where live meets both."""

from __future__ import annotations

from collections.abc import Sequence

from mdms_pipeline.backtest.decide import stable_from
from mdms_pipeline.backtest.find import recipe_of, strategies_of
from mdms_pipeline.backtest.strategy import Strategy
from mdms_pipeline.live.signal import ENTRY, EXIT, SCREEN, STRATEGY, WHERE
from mdms_pipeline.live.watch import Watch
from mdms_pipeline.rules import did_you_mean
from mdms_pipeline.screen.load import Screen
from mdms_pipeline.screen.look import screens_of
from mdms_pipeline.settings import Settings


class UnknownScreen(ValueError):
    """There is no such screen, or its file is wrong; the message says which there are, or what is wrong."""


def watches_of(settings: Settings, strategies: Sequence[str] = (), screens: Sequence[str] = ()) -> tuple[Watch, ...]:
    """The rules of these strategies and screens; of all where none is named. Raises ParamError and UnknownScreen."""
    every = not strategies and not screens
    recipes = list(strategies_of(settings).recipes.values()) if every else [recipe_of(settings, name) for name in strategies]
    chosen = list(screens_of(settings).screens.values()) if every else [screen_named(settings, name) for name in screens]
    found = [watch for recipe in recipes for watch in strategy_watches(recipe.usual)]
    return (*found, *map(screen_watch, chosen))


def screen_named(settings: Settings, name: str) -> Screen:
    """The screen of that name. Raises UnknownScreen."""
    loaded = screens_of(settings)
    if name in loaded.screens:
        return loaded.screens[name]
    broken = [str(error) for error in loaded.errors if error.file.stem == name]
    raise UnknownScreen("\n".join(broken) or f"screen {name!r} is not known: {did_you_mean(name, loaded.screens)}")


def strategy_watches(strategy: Strategy) -> tuple[Watch, ...]:
    """Its entry, with the screen that its universe may name, and its exit where that reads nothing of the position."""
    stable = max(map(stable_from, strategy.expressions))
    named = None if strategy.universe.symbols is None else frozenset(strategy.universe.symbols)
    rules = {ENTRY: (strategy.entry, *strategy.screen)}
    if strategy.exit is not None and not strategy.exit.given:
        rules[EXIT] = (strategy.exit,)
    return tuple(
        Watch(STRATEGY, strategy.name, rule, strategy.timeframe.name, parts, stable, named, trades=True) for rule, parts in rules.items()
    )


def screen_watch(screen: Screen) -> Watch:
    """All its clauses together."""
    named = None if screen.universe.symbols is None else frozenset(screen.universe.symbols)
    return Watch(SCREEN, screen.name, WHERE, screen.timeframe.name, tuple(screen.where), symbols=named, max_age=screen.max_age)
