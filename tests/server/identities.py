"""A mesh with an identity for servers under test, and callers with every kind of certificate."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator
from typing import Any

from meshlib.identity.material import BundleSet, Svid, TrustBundle
from meshlib.identity.source import IdentityUpdate
from meshlib.mesh import Mesh
from tests.identity.ca import Issued, TestCA

__all__ = ["CLIENT", "OTHER", "SERVER", "Identities", "allow", "client_context", "identities"]

SERVER = "spiffe://td.example/ns/a/sa/srv"
CLIENT = "spiffe://td.example/ns/a/sa/cli"
OTHER = "spiffe://td.example/ns/a/sa/other"


class GivenIdentity:
    """An identity source that a test turns by hand."""

    def __init__(self, update: IdentityUpdate) -> None:
        self._update = update
        self._tell: Callable[[IdentityUpdate], None] | None = None

    def start(self, on_update: Callable[[IdentityUpdate], None]) -> None:
        self._tell = on_update
        on_update(self._update)

    def turn(self, update: IdentityUpdate) -> None:
        self._update = update
        if self._tell is not None:
            self._tell(update)

    def close(self) -> None:
        self._tell = None


class Identities:
    """ca: of td.example. federated: of other.example, trusted too. mesh: shows SERVER."""

    def __init__(self, **mesh: Any) -> None:
        self.ca = TestCA("td.example")
        self.federated = TestCA("other.example")
        self.source = GivenIdentity(self.update())
        self.mesh = Mesh(**({"config": [{"resources": []}]} | mesh), identity=self.source)

    def update(self, *roots: TestCA, issuer: TestCA | None = None, uri: str = SERVER) -> IdentityUpdate:
        """roots: those of td.example beside the first. issuer: of the server's certificate."""
        issued = (issuer or self.ca).issue(uri, dns=["localhost"])
        own = TrustBundle("td.example", [root.der for root in (roots or (self.ca,))])
        return IdentityUpdate(
            svids=(Svid.from_pem(issued.chain, issued.key),),
            bundles=BundleSet([own, TrustBundle("other.example", [self.federated.der])]),
        )


@contextlib.contextmanager
def identities(**mesh: Any) -> Iterator[Identities]:
    made = Identities(**mesh)
    with made.mesh:
        yield made


def client_context(tmp_path: Any, ca: TestCA, issued: Issued | None) -> ssl.SSLContext:
    """A caller that trusts the CA and shows a certificate, or none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=ca.pem.decode())
    if issued is not None:
        file = tmp_path / "caller.pem"
        file.write_bytes(issued.key + issued.chain)
        context.load_cert_chain(file)
        file.unlink()
    return context


def allow(*names: str) -> dict[str, Any]:
    """RBAC that lets these callers in, and nobody else."""
    principals = [{"authenticated": {"principal_name": {"exact": name}}} for name in names]
    policy = {"permissions": [{"any": True}], "principals": principals}
    return {"rules": {"action": "ALLOW", "policies": {"callers": policy}}}
