"""Ports of 127.0.0.1 for tests that need one at which nobody listens, or nobody yet."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

__all__ = ["reserved"]


@contextlib.contextmanager
def reserved() -> Iterator[int]:
    """A port that refuses connections, until a server listens there; nobody else is given it meanwhile.

    A port that was free a moment ago may be that of another process by the time it is used. This one is bound, so the kernel
    gives it to nobody who asks for any; and shared, as servers share theirs (SO_REUSEADDR), so that one of ours may listen.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
