"""The answers of the SPIFFE Workload API, made of what a caller may see. No I/O; an Answer or a Refusal."""

from __future__ import annotations

from cryptography.hazmat.primitives.serialization import Encoding

from meshlib.controlplane.ca import jwt
from meshlib.controlplane.ca.authority import Authority
from meshlib.controlplane.ca.identities import View
from meshlib.controlplane.ca.svid import der
from meshlib.errors import IdentityError
from meshlib.proto import Message, workload

__all__ = ["Refusal", "jwt_bundles", "jwt_svids", "validate_jwt", "x509_bundles", "x509_svids"]


class Refusal(Exception):
    """A call that ends with this gRPC status (its name) and text; the codes are the specification's."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def x509_svids(view: View) -> Message:
    """The X509SVIDResponse: the caller's SVIDs with keys, and whom to trust.

    Raises:
        Refusal: PERMISSION_DENIED, the caller has no identity.
    """
    _identified(view)
    bundle = der(view.bundles[view.trust_domain])
    response = workload.message("X509SVIDResponse")(crl=_lists(view))
    for svid in view.svids:
        response.svids.add(
            spiffe_id=svid.spiffe_id,
            x509_svid=svid.chain_der(),
            x509_svid_key=svid.key_der(),
            bundle=bundle,
            hint=svid.hint,
        )
    for domain, roots in view.bundles.items():
        if domain != view.trust_domain:
            response.federated_bundles[f"spiffe://{domain}"] = der(roots)
    return response


def x509_bundles(view: View) -> Message:
    """The X509BundlesResponse: the roots of every trust domain.

    Raises:
        Refusal: PERMISSION_DENIED, the caller has no identity.
    """
    _identified(view)
    bundles = {f"spiffe://{domain}": der(roots) for domain, roots in view.bundles.items()}
    return workload.message("X509BundlesResponse")(crl=_lists(view), bundles=bundles)


def jwt_svids(authority: Authority, view: View, request: Message) -> Message:
    """The JWTSVIDResponse: a token for each of the caller's identities, or for the one that it names.

    Raises:
        Refusal: INVALID_ARGUMENT, no audience; PERMISSION_DENIED, no such identity.
    """
    if not request.audience:
        raise Refusal("INVALID_ARGUMENT", "audience must be specified")
    wanted = [svid for svid in view.svids if request.spiffe_id in ("", svid.spiffe_id)]
    if not wanted:
        raise Refusal("PERMISSION_DENIED", "no identity issued")
    now, root = authority.clock.time(), authority.state.root
    response = workload.message("JWTSVIDResponse")()
    for svid in wanted:
        token = jwt.make(root, svid.spiffe_id, request.audience, now=now)
        response.svids.add(spiffe_id=svid.spiffe_id, svid=token, hint=svid.hint)
    return response


def jwt_bundles(authority: Authority, view: View) -> Message:
    """The JWTBundlesResponse: the JWK set of the CA's own trust domain.

    Raises:
        Refusal: PERMISSION_DENIED, the caller has no identity.
    """
    _identified(view)
    keys = jwt.jwks(authority.state.roots)
    return workload.message("JWTBundlesResponse")(bundles={f"spiffe://{view.trust_domain}": keys})


def validate_jwt(authority: Authority, request: Message) -> Message:
    """The ValidateJWTSVIDResponse: the id and the claims of a token of the CA's own trust domain.

    Raises:
        Refusal: INVALID_ARGUMENT, a field is missing, or the token is not good.
    """
    if not request.audience or not request.svid:
        missing = "audience" if not request.audience else "svid"
        raise Refusal("INVALID_ARGUMENT", f"{missing} must be specified")
    try:
        spiffe_id, claims = jwt.validate(
            request.svid, authority.state.roots, request.audience, now=authority.clock.time()
        )
    except IdentityError as error:
        raise Refusal("INVALID_ARGUMENT", error.message) from None
    response = workload.message("ValidateJWTSVIDResponse")(spiffe_id=str(spiffe_id))
    response.claims.update(claims)
    return response


def _identified(view: View) -> None:
    if not view.svids:
        raise Refusal("PERMISSION_DENIED", "no identity issued")


def _lists(view: View) -> list[bytes]:
    return [crl.public_bytes(Encoding.DER) for crl in view.revocation_lists]
