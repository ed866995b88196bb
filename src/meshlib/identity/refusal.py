"""IdentityErrors about a peer, each with the text that Envoy gives for the same refusal; and what a call makes of them."""

from __future__ import annotations

import ssl

from meshlib.errors import ConnectFailed, IdentityError, MeshError

__all__ = ["explained", "refuse", "refuse_chain"]


def refuse(
    message: str,
    reason: str,
    *,
    expected: str | None = None,
    got: str | None = None,
    trust_domain: str | None = None,
    not_after: float | None = None,
) -> IdentityError:
    """An error to raise. reason: Envoy's words after `verify cert failed: `."""
    return IdentityError(
        message,
        expected=expected,
        got=got,
        trust_domain=trust_domain,
        not_after=not_after,
        reason=f"verify cert failed: {reason}",
    )


def refuse_chain(
    problem: str,
    depth: int,
    expected: str,
    got: str,
    *,
    trust_domain: str | None = None,
    not_after: float | None = None,
) -> IdentityError:
    """The chain does not verify. problem: X509_verify_cert's words. depth: of the certificate at fault, 0 is the leaf."""
    return refuse(
        f"the peer's certificate does not verify: {problem} (depth {depth}; expected {expected}, got {got})",
        f"X509_verify_cert: certificate verification error at depth {depth}: {problem}",
        expected=expected,
        got=got,
        trust_domain=trust_domain,
        not_after=not_after,
    )


def explained(error: MeshError, cause: BaseException | None) -> MeshError:
    """An IdentityError in place of a call's ConnectFailed, when `cause`, which broke the last attempt, says that somebody can't
    be trusted or has nothing to be trusted for; else the error as it is."""
    why = _why(cause) if type(error) is ConnectFailed else None
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


def _why(cause: BaseException | None) -> IdentityError | None:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return IdentityError(
            f"the endpoint's certificate does not verify: {cause.verify_message}",
            expected="a chain to an authority that is trusted",
            got=cause.verify_message,
        )
    return cause if isinstance(cause, IdentityError) else None
