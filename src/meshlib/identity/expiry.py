"""The life of one's own certificates: used until their end, never after, with a warning when no successor is in sight."""

from __future__ import annotations

import datetime as dt
import logging
import math
from collections.abc import Callable

from meshlib.errors import IdentityError
from meshlib.identity.material import Svid

__all__ = ["Life", "copy_of"]

WARN_AT = 0.8
"""Share of a certificate's life here after which one without a successor is worth a warning. Renewal is usual at 0.5."""

logger = logging.getLogger("meshlib.identity")


class Life:
    """Of the certificates that are shown. not_after: the earliest end, seconds since the epoch, inf without any.

    now: seconds since the epoch.
    """

    __slots__ = ("_svid", "_warn_at", "not_after", "now")

    def __init__(self, svids: tuple[Svid, ...], now: Callable[[], float]) -> None:
        self.now = now
        self._svid = min(svids, key=lambda svid: svid.not_after, default=None)
        self.not_after = math.inf
        self._warn_at = math.inf
        if self._svid is not None:
            # From when it came: many a CA dates its certificates back.
            start, end = max(self._svid.not_before, now()), self._svid.not_after
            self.not_after = end
            self._warn_at = start + WARN_AT * (end - start)

    def check(self) -> None:
        """Raises: IdentityError: the own certificate is over. Never show it, and never go on without one."""
        now = self.now()
        if now < self._warn_at:
            return
        svid = self._svid
        assert svid is not None
        name = str(svid.spiffe_id or "the own certificate")
        end = dt.datetime.fromtimestamp(self.not_after, dt.UTC).isoformat()
        if now >= self.not_after:
            raise IdentityError(
                f"{name} ended at {end}, and nothing has taken its place",
                expected="an own certificate in force",
                got=f"one that ended at {end}",
                trust_domain=svid.spiffe_id.trust_domain if svid.spiffe_id else None,
                not_after=self.not_after,
                reason="own certificate has expired",
            )
        self._warn_at = self.not_after
        logger.warning("%s ends at %s, and nothing has taken its place yet", name, end)


def copy_of(error: IdentityError) -> IdentityError:
    """A fresh one to raise: an error that is raised twice grows a traceback with each time."""
    return IdentityError(
        error.message,
        expected=error.expected,
        got=error.got,
        trust_domain=error.trust_domain,
        not_after=error.not_after,
        reason=error.reason,
    )
