"""IdentityErrors about a peer, each with the text that Envoy gives for the same refusal."""

from __future__ import annotations

from meshlib.errors import IdentityError

__all__ = ["refuse", "refuse_chain"]


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
