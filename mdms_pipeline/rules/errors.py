"""What can go wrong with a rule.

ValueError
  RuleError             the text is not a rule: shows it with a caret, the nearest known names, the remedy
LookupError
  MissingSeriesError    evaluation was not handed something that the rule reads
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_NEAREST = 3  # names


class RuleError(ValueError):
    """The text is not a rule. `start` and `end` are offsets into `text`: the place that is wrong."""

    def __init__(self, text: str, start: int, end: int, problem: str, remedy: str) -> None:
        self.text, self.start, self.end, self.problem, self.remedy = text, start, end, problem, remedy
        super().__init__("\n".join((problem, *marked(text, start, end), remedy)))

    @property
    def line(self) -> int:
        """The line of `text` that is wrong, counted from 1."""
        return self.text.count("\n", 0, self.start) + 1

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process borders: Dagster steps run in processes of their own."""
        return type(self), (self.text, self.start, self.end, self.problem, self.remedy)


class MissingSeriesError(LookupError):
    """Evaluation was not handed something that the rule reads."""


def marked(text: str, start: int, end: int) -> list[str]:
    """The lines of `text`, carets under text[start:end) below the line where it begins. Unprintable characters are shown as `?`."""
    shown = []
    line_start = 0
    for line in text.split("\n"):
        shown.append("  " + _printable(line))
        if line_start <= start <= line_start + len(line):
            width = max(1, min(end, line_start + len(line)) - start)
            shown.append("  " + " " * (start - line_start) + "^" * width)
        line_start += len(line) + 1
    return shown


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Known names that look like `name`, the most similar first; empty where none does."""
    lower = {word.lower(): word for word in known}
    return [lower[word] for word in difflib.get_close_matches(name.lower(), lower, MAX_NEAREST, 0.6)]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean rsi?`, or a list of what is known where nothing is near."""
    known = sorted(known)
    near = nearest(name, known)
    return f"did you mean {' or '.join(near)}?" if near else f"known here: {', '.join(known) or 'nothing'}"


def _printable(line: str) -> str:
    return "".join(character if character.isprintable() else " " if character == "\t" else "?" for character in line)
