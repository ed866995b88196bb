"""A connection that TLS broke, as the application hears of it."""

from __future__ import annotations

from meshlib.errors import ConnectFailed, IdentityError, MeshError
from meshlib.policy.failure import FailureKind
from meshlib.transport.http.failure import TransportFailure
from meshlib.transport.http.tls import refusal

__all__ = ["explained"]


def explained(error: MeshError, cause: BaseException | None) -> MeshError:
    """An IdentityError in place of a ConnectFailed, when `cause` says that somebody could not be trusted."""
    if cause is None or type(error) is not ConnectFailed:
        return error
    failure = TransportFailure(FailureKind.CONNECT_FAILED)
    failure.__cause__ = cause
    why = refusal(failure)
    if why is None:
        return error
    return IdentityError(
        f"{error.message}; {why.message}",
        expected=why.expected,
        got=why.got,
        trust_domain=why.trust_domain,
        not_after=why.not_after,
        reason=why.reason,
        flags=error.flags,
        details=error.details,
        attempts=error.attempts,
        local_reply=error.local_reply,
    )
