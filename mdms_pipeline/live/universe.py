"""What became of the collected markets while the process runs: looked up, and loaded, beside the stream. `run.py` takes it in.

A market that joined the universe is taken in once a candle of it is stored; in a timeframe of which none is yet, once there is. One that
left is let go. A market that is no more, though it is still among those collected, stays out; so does one for which there was no room,
until another one leaves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import duckdb

from mdms_pipeline.live.engine import Engine
from mdms_pipeline.live.load import Found, load
from mdms_pipeline.market import Instant
from mdms_pipeline.store.candles import DELISTED, Partition, standings
from mdms_pipeline.store.universe import known_symbols, universe


@dataclass(frozen=True)
class Change:
    """What is collected and stored, and not watched, or the other way round."""

    joined: tuple[str, ...]
    left: tuple[str, ...]
    found: Mapping[str, Sequence[Found]]  # timeframe -> its markets of which nothing was known, as they are stored
    revisions: Mapping[Partition, int]  # of what was found
    names: Mapping[str, str]  # symbol -> Korean name
    waived: tuple[str, ...] = ()  # for which there was no room, and which are not collected any more

    def without_joining(self) -> Change:
        """The same, but nobody joins."""
        found = {name: [each for each in of_one if each.loaded.symbol not in self.joined] for name, of_one in self.found.items()}
        return replace(self, joined=(), found=found)


def change(
    connection: duckdb.DuckDBPyConnection,
    engine: Engine,
    symbols: Sequence[str],
    refused: Collection[str],
    since: Mapping[str, Instant],
) -> Change | None:
    """What has changed since `symbols` were taken in, and `refused` for want of room; None where nothing has.

    Of a timeframe in `since` what is new is loaded with all bars from there on.
    """
    collected, found, revisions = universe(connection), dict[str, list[Found]](), dict[Partition, int]()
    left = tuple(symbol for symbol in symbols if symbol not in collected)
    waived = tuple(symbol for symbol in refused if symbol not in collected)
    wanted = collected if left else [symbol for symbol in collected if symbol not in refused]
    for name, lane in engine.lanes.items():
        unknown = [symbol for symbol in wanted if any(watch.takes(symbol) for watch in lane.watches) and not lane.knows(symbol)]
        known = standings(connection, [(symbol, name) for symbol in unknown if symbol not in lane.gone]) if unknown else {}
        stored = [symbol for (symbol, _), one in known.items() if one.last_bar is not None and one.state != DELISTED]
        if stored:
            found[name] = list(load(connection, lane.watches, stored, since.get(name)))
            revisions |= {(symbol, name): known[symbol, name].revision for symbol in stored}
    there = {each.loaded.symbol for of_one in found.values() for each in of_one}
    joined = tuple(symbol for symbol in collected if symbol in there and symbol not in symbols)
    if not left and not found and not waived:
        return None
    names = {symbol: korean for symbol, (korean, _, _) in known_symbols(connection).items()}
    return Change(joined, left, found, revisions, names, waived)
