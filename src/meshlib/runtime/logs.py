"""How the library logs: through `logging`, by the names `meshlib.<folder>`, quietly.

WARNING and above is what a person should look at, and is said once for each cause: a control plane that cannot be reached, a
resource that was refused, a certificate that is about to end. When it is right again, and breaks anew, it is said again. What
happens to single calls is never above INFO. A record has what it is about as an attribute, `record.meshlib`, a dictionary.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Hashable

__all__ = ["Once", "about", "failed"]

KEPT = 1_000
"""Causes that are remembered; beyond them nothing is new."""


class Once:
    """Whether a cause is new. Thread safe: dictionaries' own methods are."""

    __slots__ = ("_known", "_most")

    def __init__(self, most: int = KEPT) -> None:
        self._known: dict[Hashable, object] = {}
        self._most = most

    def __call__(self, cause: Hashable) -> bool:
        """True the first time, and the first time after it was forgotten."""
        known = self._known
        if cause in known or len(known) >= self._most:
            return False
        mark = object()
        return known.setdefault(cause, mark) is mark

    def forget(self, cause: Hashable) -> bool:
        """It is right again. Whether it was known."""
        return self._known.pop(cause, None) is not None

    def clear(self) -> None:
        self._known.clear()


def about(**what: object) -> dict[str, object]:
    """`extra` of a log call: what the message is about. Never a secret, never the content of a request."""
    return {"meshlib": what}


_failures = Once()


def failed(logger: logging.Logger, message: str, *arguments: object) -> None:
    """Log the exception that is being handled, with its traceback, once for each place that it comes from.

    For errors that nobody could handle: background work goes on after them. Silent while the interpreter ends.
    """
    kind, error, traceback = sys.exc_info()
    if sys.is_finalizing() or kind is None:
        return
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    place = None if traceback is None else (traceback.tb_frame.f_code, traceback.tb_lineno)
    if _failures((logger.name, message, kind, place)):
        logger.error(message, *arguments, exc_info=error)
