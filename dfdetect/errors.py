"""The one error that users meet, and the exit codes it may carry. Imports nothing of ours."""

import difflib
import re
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    OK = 0
    MATCHED = 1  # --fail-on was given and something matched
    INPUT = 2  # usage or input error
    PARTIAL = 3  # finished, but some inputs of a batch failed
    ENVIRONMENT = 4  # disk full, permission, folder locked, out of memory
    DIVERGED = 5  # the loss is not finite
    BUG = 70
    INTERRUPTED = 130
    TERMINATED = 143


MOST_NAMED = 20
"""Longest list of known names in one message."""


class DfdetectError(Exception):
    """What went wrong with which file (`message`), what to do about it (`hint`), how to exit."""

    def __init__(self, message: str, hint: str = "", exit_code: ExitCode = ExitCode.INPUT) -> None:
        super().__init__(message)
        self.message, self.hint, self.exit_code = message, hint, exit_code

    def __reduce__(self) -> tuple:  # worker processes send it home by pickle
        return type(self), (self.message, self.hint, self.exit_code)

    @property
    def line(self) -> str:
        """Cause and remedy in one line."""
        return f"{self.message}; {self.hint}" if self.hint else self.message


def unknown(kind: str, name: str, known: Iterable[str]) -> DfdetectError:
    """An error for a name that is not on a shelf: lists the known names, suggests the nearest."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    suggestion = f"did you mean {near[0]!r}? " if near else ""
    more = f" and {len(known) - MOST_NAMED} more" if len(known) > MOST_NAMED else ""
    listed = ", ".join(known[:MOST_NAMED]) + more
    return DfdetectError(f"unknown {kind} {name!r}", f"{suggestion}known: {listed}")


def printable(text: object) -> str:
    """`text` with control, bidirectional and undecodable characters written as escapes.

    File names are input from strangers: they must not move the cursor of whoever reads a message.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in str(text)
    )


def cell(text: str) -> str:
    """`text` in a cell of a CSV: printable, and with an apostrophe before what a spreadsheet would
    take for a formula. A number is none, whatever its sign."""
    formula = text.startswith(("=", "+", "-", "@", "\t", "\r"))
    if formula and not re.fullmatch(r"[+-]\d+(\.\d+)?", text):
        text = f"'{text}"
    return printable(text)
