"""What the WebSocket tells before it is spelled, and what a test can make a connection do instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from mdms_pipeline.market import Instant


class Message(NamedTuple):
    """One message; `row` holds the fields of format DEFAULT, all but `stream_type`."""

    type: str  # as it was subscribed: ticker, trade, candle.1m, ...
    code: str
    last_ms: int  # of the trade that it tells of last
    opened_at: Instant  # of a candle; -1 of anything else
    final: bool  # of a candle that has closed
    row: dict[str, Any]


class Told(NamedTuple):
    """What a connection is about to tell."""

    connection: int  # counted from 0 in the order in which the sandbox accepted them
    beat: int  # counted from 0, which is a snapshot
    messages: list[Message]


Alter = Callable[[list[Message]], list[Message]]


def truth(messages: list[Message]) -> list[Message]:
    return messages


@dataclass(frozen=True)
class SocketFault:
    """What happens to a connection at one beat: `alter` its messages, then perhaps end it, or let it fall silent.

    A candle that changes after its close is `Sandbox.correct`: REST tells of it too.
    """

    alter: Alter = truth
    cut: bool = False  # the connection is gone, without a word
    silent: bool = False  # from now on neither messages nor answers, and the connection stays
    error: tuple[str, str] | None = None  # (name, message) of an error message, after which the connection is closed

    @classmethod
    def cutting(cls) -> SocketFault:
        """These messages are lost, and the connection."""
        return cls(alter=lambda _: [], cut=True)

    @classmethod
    def silence(cls) -> SocketFault:
        """These messages are lost, and all that would follow."""
        return cls(alter=lambda _: [], silent=True)

    @classmethod
    def saying(cls, name: str, message: str) -> SocketFault:
        """An error message in place of these."""
        return cls(alter=lambda _: [], error=(name, message))

    @classmethod
    def repeating(cls) -> SocketFault:
        """Each message twice, the second time after all others."""
        return cls(alter=lambda messages: messages + messages)

    @classmethod
    def backwards(cls) -> SocketFault:
        """The newest first."""
        return cls(alter=lambda messages: messages[::-1])

    @classmethod
    def without_finals(cls) -> SocketFault:
        """Nothing of the candles that have closed."""
        return cls(alter=lambda messages: [message for message in messages if not message.final])


SocketFaults = Callable[[Told], SocketFault | None]
