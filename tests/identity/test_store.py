"""The store: where material comes from, what a rotation changes, and that nothing ever falls back to less."""

from __future__ import annotations

import gc
import logging
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from meshlib.errors import IdentityError
from meshlib.identity.client import ClientHandshake, ClientSecurity
from meshlib.identity.material import BundleSet, Svid, TrustBundle
from meshlib.identity.peer import Peer
from meshlib.identity.server import ServerSecurity
from meshlib.identity.source import IdentityUpdate
from meshlib.identity.store import IdentityStore
from meshlib.resources.secret import Secret
from meshlib.resources.tls import (
    AdsSource,
    CertificateValidation,
    CommonTls,
    DownstreamTls,
    FilePath,
    Material,
    PathSource,
    ProviderInstance,
    SecretRef,
    ServerSource,
    TlsCertificate,
    TlsVersion,
    UpstreamTls,
)
from meshlib.runtime.clock import FakeClock, SystemClock
from meshlib.runtime.threads import Slicer
from meshlib.snapshot import Snapshot
from tests.identity.ca import Issued, TestCA
from tests.identity.configs import certificate, client, match, roots, server, spiffe
from tests.identity.tls import join

SRV = "spiffe://td.example/ns/a/sa/srv"
CLI = "spiffe://td.example/ns/a/sa/cli"


class Source:
    """An IdentitySource that a test speaks for."""

    def __init__(self) -> None:
        self.tell: Callable[[IdentityUpdate], None] | None = None
        self.starts = 0
        self.closed = False

    def start(self, on_update: Callable[[IdentityUpdate], None]) -> None:
        self.starts += 1
        self.tell = on_update

    def close(self) -> None:
        self.closed = True

    def give(self, update: IdentityUpdate) -> None:
        assert self.tell is not None
        self.tell(update)


def svid(issued: Issued) -> Svid:
    return Svid.from_pem(issued.chain, issued.key)


def update(issued: Issued | None, *cas: TestCA, error: str | None = None) -> IdentityUpdate:
    domains: dict[str, list[bytes]] = {}
    for ca in cas:
        domains.setdefault(ca.trust_domain, []).append(ca.der)
    return IdentityUpdate(
        svids=() if issued is None else (svid(issued),),
        bundles=BundleSet(TrustBundle(name, found) for name, found in domains.items()),
        error=error,
    )


def snapshot(*secrets: Secret) -> Snapshot:
    return Snapshot(secrets={secret.name: secret for secret in secrets})


def certificate_secret(name: str, issued: Issued) -> Secret:
    return Secret(name=name, certificate=certificate(issued))


def ref(name: str, source: AdsSource | ServerSource | PathSource | None = None) -> SecretRef:
    return SecretRef(name=name, source=source or AdsSource())


def by_secrets(certificate: str | None, validation: str | None, sans: tuple[str, ...] = ()) -> UpstreamTls:
    return UpstreamTls(
        common=CommonTls(
            certificate_secrets=(ref(certificate),) if certificate else (),
            validation_secret=ref(validation) if validation else None,
            validation=CertificateValidation(match_sans=tuple(map(match, sans))) if sans else None,
        )
    )


@pytest.fixture(scope="module")
def ca() -> TestCA:
    return TestCA()


def served(store: IdentityStore, tls: UpstreamTls, context: ssl.SSLContext) -> str:
    """Who the server is; raises what a transport would meet."""
    handshake = store.client(tls).handshake()
    ends = join(handshake.context, context, handshake.server_hostname)
    if "client" in ends.errors:
        raise ends.errors["client"]
    return str(handshake.verify(ends.client).spiffe_id)


# Secrets


def test_a_missing_secret_fails_calls_until_it_comes(ca: TestCA) -> None:
    store = IdentityStore()
    tls = by_secrets("own", "trust", (SRV,))
    held = store.client(tls)
    assert held.epoch == 0
    with pytest.raises(IdentityError, match="'own'") as caught:
        held.handshake()
    from meshlib.identity.failure import transport_failure

    assert transport_failure(caught.value) == "TLS_error:_Secret_is_not_supplied_by_SDS"
    store.apply(snapshot(certificate_secret("own", ca.issue(CLI))))
    with pytest.raises(IdentityError, match="'trust'"):
        held.handshake()
    store.apply(
        snapshot(certificate_secret("own", ca.issue(CLI)), Secret(name="trust", validation=roots(ca)))
    )
    assert held.epoch == 1
    peer = server(roots(ca), ca.issue(SRV))
    assert served(store, tls, peer.context) == SRV


def test_a_combined_context_merges_both_parts(ca: TestCA) -> None:
    store = IdentityStore()
    tls = by_secrets(None, "trust", (SRV,))
    store.apply(snapshot(Secret(name="trust", validation=roots(ca))))
    held = store.client(tls)
    peer = server(roots(ca), ca.issue("spiffe://td.example/other"), required=False)
    with pytest.raises(IdentityError, match="not who was expected"):
        served(store, tls, peer.context)
    assert held.epoch == 1


def test_a_secret_of_the_wrong_kind_is_a_missing_one(ca: TestCA) -> None:
    store = IdentityStore()
    store.apply(snapshot(Secret(name="own"), certificate_secret("trust", ca.issue(CLI))))
    for tls in (by_secrets("own", None), by_secrets(None, "trust")):
        with pytest.raises(IdentityError, match="has not come"):
            store.client(tls).handshake()


def test_what_has_gone_stays_in_force(ca: TestCA) -> None:
    store = IdentityStore()
    store.apply(snapshot(Secret(name="trust", validation=roots(ca))))
    held = store.client(by_secrets(None, "trust"))
    first = held.handshake()
    store.apply(snapshot())
    assert held.handshake().context is first.context
    assert held.epoch == 1


@pytest.mark.parametrize(
    "source", [ServerSource(target="unix:/run/sds.sock"), PathSource(path="/etc/secret.yaml")]
)
def test_secrets_of_other_sources_do_not_mix(ca: TestCA, source: ServerSource | PathSource) -> None:
    store = IdentityStore()
    store.apply(snapshot(certificate_secret("own", ca.issue(CLI))))
    own = ref("own", source)
    tls = UpstreamTls(common=CommonTls(certificate_secrets=(own,)))
    held = store.client(tls)
    with pytest.raises(IdentityError):
        held.handshake()
    issued = ca.issue(SRV)
    store.apply(Snapshot(external_secrets={own: certificate_secret("own", issued)}))
    assert held.handshake().not_after == issued.not_after
    store.apply(Snapshot())
    assert held.handshake().not_after == issued.not_after, "the last good one"
    assert held.epoch == 1


# Rotation


def test_new_handshakes_use_the_new_svid_at_once(ca: TestCA) -> None:
    store = IdentityStore()
    heard: list[int] = []
    tls = by_secrets("own", None)
    first, second = ca.issue(CLI), ca.issue(CLI)
    store.apply(snapshot(certificate_secret("own", first)))
    held = store.client(tls)
    unsubscribe = store.subscribe(lambda: heard.append(held.epoch))
    peer = server(roots(ca), ca.issue(SRV))
    before = held.handshake()
    store.apply(snapshot(certificate_secret("own", second)))
    after = held.handshake()
    assert heard == [2]
    assert (before.epoch, after.epoch, held.epoch) == (1, 2, 2)
    assert before.context is not after.context
    for handshake, issued in ((before, first), (after, second)):
        ends = join(handshake.context, peer.context)
        caller = peer.verify(ends.server)
        assert caller is not None
        assert caller.certificate_der == issued.der
    unsubscribe()
    unsubscribe()
    store.apply(snapshot(certificate_secret("own", first)))
    assert heard == [2]


def test_what_has_not_changed_keeps_its_epoch(ca: TestCA) -> None:
    store = IdentityStore()
    issued = ca.issue(CLI)
    store.apply(snapshot(certificate_secret("own", issued), Secret(name="trust", validation=roots(ca))))
    own, trust = store.client(by_secrets("own", None)), store.client(by_secrets(None, "trust"))
    heard: list[None] = []
    store.subscribe(lambda: heard.append(None))
    store.apply(snapshot(certificate_secret("own", issued), Secret(name="trust", validation=roots(ca))))
    assert (own.epoch, trust.epoch, heard) == (1, 1, [])
    store.apply(
        snapshot(certificate_secret("own", ca.issue(CLI)), Secret(name="trust", validation=roots(ca)))
    )
    assert (own.epoch, trust.epoch, heard) == (2, 1, [None])


def test_a_renewal_changes_nothing_that_is_trusted(ca: TestCA) -> None:
    store = IdentityStore()
    trust = Secret(name="trust", validation=roots(ca))
    held = store.client(by_secrets("own", "trust"))
    assert held.trust_epoch == 0
    found = []
    for secrets in (
        (certificate_secret("own", ca.issue(CLI)), trust),
        (certificate_secret("own", ca.issue(CLI)), trust),
        (certificate_secret("own", ca.issue(SRV)), trust),
        (certificate_secret("own", ca.issue(SRV)), Secret(name="trust", validation=roots(ca, TestCA()))),
        (certificate_secret("own", ca.issue(dns=("a.example",))), Secret(name="trust", validation=roots(ca))),
        (certificate_secret("own", ca.issue(dns=("a.example",))), Secret(name="trust", validation=roots(ca))),
    ):
        store.apply(snapshot(*secrets))
        found.append((held.epoch, held.trust_epoch))
    assert found == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 4)], "who is not a SPIFFE id may be anybody"


def test_authorities_come_and_go_without_a_rotation(ca: TestCA) -> None:
    """But handshakes that begin now have those of now."""
    store = IdentityStore()
    own, new, other = certificate_secret("own", ca.issue(SRV)), TestCA(), TestCA("other.example")
    held = store.client(by_secrets("own", "trust"))
    secured = store.server(
        DownstreamTls(
            common=CommonTls(certificate_secrets=(ref("own"),), validation_secret=ref("trust")),
            require_client_certificate=True,
        )
    )
    heard: list[None] = []
    store.subscribe(lambda: heard.append(None))
    found, contexts = [], set()
    for trusted in ((ca,), (ca, new), (other, new, ca), (ca, other), (ca,)):
        store.apply(snapshot(own, Secret(name="trust", validation=spiffe(*trusted))))
        found.append((held.epoch, held.trust_epoch, secured.epoch, secured.outdated(1, 0.0, None)))
        contexts |= {held.handshake().context, secured.current}
    assert found == [(1, 1, 1, False)] * 5
    assert (len(heard), len(contexts)) == (5, 8), "of both ends, those of the first and the last are the same"


def test_a_root_rotation_old_both_new() -> None:
    old, new = TestCA(), TestCA()
    store = IdentityStore()
    tls = by_secrets("own", "trust", (SRV,))
    peers = IdentityStore()
    secured = peers.server(
        DownstreamTls(
            common=CommonTls(certificate_secrets=(ref("own"),), validation_secret=ref("trust")),
            require_client_certificate=True,
        )
    )
    held = store.client(tls)
    for step, (signer, trusted) in enumerate(
        [(old, (old,)), (old, (old, new)), (new, (old, new)), (new, (new,))]
    ):
        for side, name in ((store, CLI), (peers, SRV)):
            side.apply(
                snapshot(
                    certificate_secret("own", signer.issue(name)),
                    Secret(name="trust", validation=spiffe(*trusted)),
                )
            )
        assert served(store, tls, secured.context) == SRV
        assert held.epoch == secured.epoch == step + 1
    with pytest.raises(ssl.SSLError):
        served(store, tls, server(None, old.issue(SRV)).context)


def test_federation_comes_and_goes() -> None:
    own, other = TestCA(), TestCA("other.example")
    store = IdentityStore()
    tls = by_secrets(None, "trust")
    held = store.client(tls)
    friend = server(None, other.issue("spiffe://other.example/x"), required=False)
    before: list[ClientHandshake] = []
    for trusted, allowed in (((own,), False), ((own, other), True), ((own,), False)):
        store.apply(snapshot(Secret(name="trust", validation=spiffe(*trusted))))
        assert not any(handshake.trusted for handshake in before)
        if allowed:
            before.append(shaken(held, friend)[0])
            assert before[0].trusted
        else:
            with pytest.raises((IdentityError, ssl.SSLError)):
                shaken(held, friend)
        assert held.epoch == 1


def shaken(held: ClientSecurity, secured: ServerSecurity) -> tuple[ClientHandshake, Peer | None]:
    """A handshake in which each end has verified the other; whom the server has seen."""
    handshake = held.handshake()
    assert secured.current is not None
    ends = join(handshake.context, secured.current, handshake.server_hostname)
    for error in ends.errors.values():
        raise error
    handshake.verify(ends.client)
    return handshake, secured.verify(ends.server)


@pytest.mark.parametrize("form", [roots, spiffe], ids=["roots", "spiffe"])
def test_a_withdrawn_authority_ends_the_connections_of_whom_it_vouched_for(
    form: Callable[..., CertificateValidation],
) -> None:
    """And no others, at both ends."""
    old, new = TestCA(), TestCA()
    both = Secret(name="trust", validation=form(old, new))
    left = Secret(name="trust", validation=form(new))
    downstream = DownstreamTls(
        common=CommonTls(certificate_secrets=(ref("own"),), validation_secret=ref("trust")),
        require_client_certificate=True,
    )
    found = []
    for issuer in (old, new):
        store, peers = IdentityStore(), IdentityStore()
        sides = [(store, certificate_secret("own", issuer.issue(CLI)))]
        sides += [(peers, certificate_secret("own", issuer.issue(SRV)))]
        for side, own in sides:
            side.apply(snapshot(own, both))
        held, secured = store.client(by_secrets("own", "trust")), peers.server(downstream)
        handshake, caller = shaken(held, secured)
        assert handshake.trusted
        assert not secured.outdated(1, 0.0, caller)
        for side, own in sides:
            side.apply(snapshot(own, left))
        assert (held.epoch, held.trust_epoch, secured.epoch) == (1, 1, 1)
        found.append((handshake.trusted, secured.outdated(1, 0.0, caller)))
    assert found == [(False, True), (True, False)]


@pytest.mark.parametrize("form", [roots, spiffe], ids=["roots", "spiffe"])
def test_an_authority_that_is_withdrawn_while_hands_are_shaken(
    form: Callable[..., CertificateValidation],
) -> None:
    """The handshake knows it yet; what is verified afterwards is verified by what is trusted then."""
    old, new = TestCA(), TestCA()
    store, peers = IdentityStore(), IdentityStore()
    downstream = DownstreamTls(
        common=CommonTls(certificate_secrets=(ref("own"),), validation_secret=ref("trust")),
        require_client_certificate=True,
    )
    for gone in (old, new):
        for side, name in ((store, CLI), (peers, SRV)):
            trust = Secret(name="trust", validation=form(old, new))
            side.apply(snapshot(certificate_secret("own", old.issue(name)), trust))
        held, secured = store.client(by_secrets("own", "trust")), peers.server(downstream)
        handshake = held.handshake()
        assert secured.current is not None
        ends = join(handshake.context, secured.current)
        assert ends.done
        for side, name in ((store, CLI), (peers, SRV)):
            trust = Secret(name="trust", validation=form(new if gone is old else old))
            side.apply(snapshot(certificate_secret("own", old.issue(name)), trust))
        if gone is new:
            handshake.verify(ends.client)
            assert handshake.trusted
            assert secured.verify(ends.server) is not None
        else:
            with pytest.raises(IdentityError, match="unable to get local issuer certificate"):
                handshake.verify(ends.client)
            with pytest.raises(IdentityError, match="unable to get local issuer certificate"):
                secured.verify(ends.server)


def test_an_authority_beside_the_machines_own_that_is_withdrawn_while_hands_are_shaken() -> None:
    """Whether it was one of the machine's own that OpenSSL has found can't be told."""
    old, store = TestCA(), IdentityStore()
    store.apply(snapshot(Secret(name="trust", validation=roots(old, system_roots=True))))
    handshake = store.client(by_secrets(None, "trust")).handshake()
    ends = join(handshake.context, server(None, old.issue(SRV), required=False).context)
    assert ends.done
    store.apply(snapshot(Secret(name="trust", validation=CertificateValidation(system_roots=True))))
    with pytest.raises(IdentityError, match="the chain has not been verified"):
        handshake.verify(ends.client)


def test_authorities_that_were_lent_to_another_library() -> None:
    """By which of them it has verified the peer is not known."""
    old, new = TestCA(), TestCA()
    store = IdentityStore()
    trusted = []
    store.apply(snapshot(Secret(name="trust", validation=roots(old))))
    handshake = store.client(by_secrets(None, "trust")).handshake()
    assert handshake.lend().trust.roots == (old.der,)
    for authorities in ((old,), (old, new), (new,), (new, old)):
        store.apply(snapshot(Secret(name="trust", validation=roots(*authorities))))
        trusted.append(handshake.trusted)
    assert trusted == [True, True, False, True]


def test_a_live_context_is_never_changed(ca: TestCA) -> None:
    store = IdentityStore()
    store.apply(snapshot(Secret(name="trust", validation=roots(ca))))
    held = store.client(by_secrets(None, "trust"))
    context = held.handshake().context
    authorities = context.get_ca_certs(binary_form=True)
    store.apply(snapshot(Secret(name="trust", validation=roots(TestCA()))))
    assert context.get_ca_certs(binary_form=True) == authorities
    assert held.handshake().context is not context


def test_only_alpn_lists_that_were_used_are_ready_after_a_rotation(ca: TestCA) -> None:
    store = IdentityStore()
    store.apply(snapshot(certificate_secret("own", ca.issue(CLI))))
    held = store.client(by_secrets("own", None))
    held.handshake(alpn=("istio",))
    store.apply(snapshot(certificate_secret("own", ca.issue(CLI))))
    ready = held._ready
    assert ready is not None
    assert set(ready.contexts) == {("istio",)}
    store.apply(snapshot(certificate_secret("own", ca.issue(CLI))))
    ready = held._ready
    assert ready is not None
    assert set(ready.contexts) == {("http/1.1",), ("h2",)}, "nobody has used any: all that are usual"


def test_calls_get_a_moment_after_each_context_of_a_rotation(ca: TestCA) -> None:
    now = 0.0
    rests: list[float] = []

    def clock() -> float:
        nonlocal now
        now += 1
        return now

    store = IdentityStore(slicer=Slicer(budget=0.5, rest=0.25, clock=clock, sleep=rests.append))
    store.apply(snapshot(certificate_secret("own", ca.issue(CLI))))
    held = store.client(by_secrets("own", None))
    for protocol in ("http/1.1", "h2", "istio"):
        held.handshake(alpn=(protocol,))
    rests.clear()
    store.apply(snapshot(certificate_secret("own", ca.issue(CLI))))
    assert rests == [0.25] * 3
    rests.clear()
    store.apply(
        snapshot(certificate_secret("other", ca.issue(CLI)), certificate_secret("own", ca.issue(CLI)))
    )
    assert len(rests) == 2, "nobody has used any: both that are usual"


@pytest.mark.parametrize("swapped", [False, True], ids=["wrapped by the context", "by sni_callback"])
def test_a_session_is_not_resumed_after_a_bundle_change(ca: TestCA, swapped: bool) -> None:
    """TLS 1.2 resumes by session id; the caller's certificate is not sent again then."""
    other = TestCA()
    store = IdentityStore()
    store.apply(snapshot(Secret(name="trust", validation=roots(ca, other))))
    secured = store.server(
        DownstreamTls(
            common=CommonTls(
                certificates=(certificate(ca.issue(SRV)),),
                validation_secret=ref("trust"),
                maximum=TlsVersion.TLSv1_2,
            ),
            require_client_certificate=True,
        )
    )

    class Swapping(ssl.SSLContext):
        """A server's own context class, which takes only what sni_callback brings."""

    context: ssl.SSLContext = secured.context
    if swapped:
        context = Swapping(ssl.PROTOCOL_TLS_SERVER)
        for name in (
            "verify_mode",
            "minimum_version",
            "maximum_version",
            "options",
            "verify_flags",
            "num_tickets",
        ):
            setattr(context, name, getattr(secured.context, name))
        context.sni_callback = secured.context.sni_callback
    caller = client(None, other.issue(CLI)).handshake()
    first = join(caller.context, context)
    assert first.done
    assert secured.verify(first.server) is not None
    first.client_reads_nothing()
    session = first.client.session
    assert session is not None
    again = join(caller.context, context, session=session)
    assert again.done
    assert secured.verify(again.server) is not None

    store.apply(snapshot(Secret(name="trust", validation=roots(ca))))
    last = join(caller.context, context, session=session)
    if last.done:
        with pytest.raises(IdentityError):
            secured.verify(last.server)
    assert not (last.done and not swapped)


@pytest.mark.parametrize("version", [TlsVersion.TLSv1_2, TlsVersion.TLSv1_3])
def test_a_server_issues_no_tickets(ca: TestCA, version: TlsVersion) -> None:
    secured = server(roots(ca), ca.issue(SRV), version=version)
    ends = join(client(None, ca.issue(CLI), version=version).handshake().context, secured.context)
    assert ends.done
    ends.client_reads_nothing()
    session = ends.client.session
    assert session is None or not session.has_ticket


# Expiry


def test_an_expired_certificate_is_never_shown(ca: TestCA) -> None:
    clock = FakeClock(epoch=SystemClock().time())
    store = IdentityStore(clock=clock)
    issued = ca.issue(CLI, lifetime=60)
    store.apply(snapshot(certificate_secret("own", issued)))
    held = store.client(by_secrets("own", None))
    assert held.handshake().not_after == issued.not_after
    clock.advance(61)
    with pytest.raises(IdentityError, match="nothing has taken its place") as caught:
        held.handshake()
    error = caught.value
    assert error.not_after == issued.not_after
    assert error.trust_domain == "td.example"
    assert error.expected == "an own certificate in force"
    assert error.got is not None
    assert error.flags == "UF"
    store.apply(snapshot(certificate_secret("own", ca.issue(CLI, lifetime=3600))))
    assert held.handshake().epoch == 2


def test_a_server_whose_own_identity_has_expired_fails_closed(ca: TestCA) -> None:
    clock = FakeClock(epoch=SystemClock().time())
    source = Source()
    store = IdentityStore(source, clock=clock)
    secured = store.server()
    store.start()
    source.give(update(ca.issue(SRV, lifetime=60), ca))
    caller = client(None, ca.issue(CLI)).handshake()
    assert join(caller.context, secured.context).done
    assert len(secured.pem()) == 3
    clock.advance(61)
    assert secured.current is None
    assert "client" in join(caller.context, secured.context).errors
    with pytest.raises(IdentityError):
        secured.pem()


def test_a_configured_certificate_that_is_over_is_still_shown_and_callers_refuse_it(ca: TestCA) -> None:
    clock = FakeClock(epoch=SystemClock().time())
    store = IdentityStore(clock=clock)
    expired = ca.issue(SRV, starts=-7200, lifetime=-3600)
    secured = server(roots(ca), expired, store=store)
    assert len(secured.pem()) == 3
    caller = client(roots(ca), ca.issue(CLI)).handshake()
    ends = join(caller.context, secured.context)
    assert "certificate has expired" in str(ends.errors["client"])


def test_a_server_without_material_fails_closed(ca: TestCA) -> None:
    secured = IdentityStore().server()
    assert secured.current is None
    assert secured.epoch == 0
    assert secured.own_uris == ()
    assert "client" in join(client(None).handshake().context, secured.context).errors
    for ask in (secured.pem, lambda: secured.verify_chain(ca.issue(CLI).chain_der)):
        with pytest.raises(IdentityError):
            ask()


def test_a_certificate_that_nears_its_end_is_warned_of_once(
    ca: TestCA, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock(epoch=SystemClock().time())
    store = IdentityStore(clock=clock)
    store.apply(snapshot(certificate_secret("own", ca.issue(CLI, starts=0, lifetime=100))))
    held = store.client(by_secrets("own", None))
    with caplog.at_level(logging.WARNING, logger="meshlib.identity"):
        held.handshake()
        assert caplog.records == []
        clock.advance(85)
        held.handshake()
        held.handshake()
    [record] = caplog.records
    assert CLI in record.getMessage()


# The default identity


def test_the_default_identity_serves_a_server(ca: TestCA) -> None:
    source = Source()
    store = IdentityStore(source)
    secured = store.server()
    store.start()
    store.start()
    assert source.starts == 1
    source.give(update(ca.issue(SRV), ca))
    assert secured.epoch == 1
    assert secured.own_uris == (SRV,)
    ends = join(client(None, ca.issue(CLI)).handshake().context, secured.context)
    caller = secured.verify(ends.server)
    assert caller is not None
    assert str(caller.spiffe_id) == CLI
    assert "server" in join(client(None).handshake().context, secured.context).errors
    stranger = join(client(None, TestCA().issue(CLI)).handshake().context, secured.context)
    assert "server" in stranger.errors
    store.close()
    assert source.closed


def test_spires_names_for_secrets(ca: TestCA) -> None:
    other = TestCA("other.example")
    source = Source()
    store = IdentityStore(source)
    store.start()
    source.give(update(ca.issue(CLI), ca, other))
    own, friend = (
        server(spiffe(ca), ca.issue(SRV)),
        server(spiffe(ca), other.issue("spiffe://other.example/x")),
    )
    for name in ("default", CLI):
        for trust in ("ROOTCA", "ALL", "spiffe://td.example"):
            assert served(store, by_secrets(name, trust), own.context) == SRV
    assert served(store, by_secrets("default", "ALL"), friend.context) == "spiffe://other.example/x"
    assert served(store, by_secrets("default", "spiffe://other.example"), friend.context)
    for trust in ("ROOTCA", "spiffe://td.example"):
        with pytest.raises(ssl.SSLError):
            served(store, by_secrets("default", trust), friend.context)
    for name in ("spiffe://td.example/unknown", "nonsense", "SPIFFE://td.example"):
        with pytest.raises(IdentityError):
            store.client(by_secrets(name, None)).handshake()
    with pytest.raises(IdentityError):
        store.client(by_secrets(None, "spiffe://unknown.example")).handshake()


def test_a_secret_that_was_sent_comes_before_the_default_identity(ca: TestCA) -> None:
    source = Source()
    store = IdentityStore(source)
    store.start()
    source.give(update(ca.issue(CLI, lifetime=100), ca))
    issued = ca.issue(CLI, lifetime=200)
    held = store.client(by_secrets("default", None))
    assert held.handshake().not_after != issued.not_after
    store.apply(snapshot(certificate_secret("default", issued)))
    assert held.handshake().not_after == issued.not_after


def test_an_error_of_a_source_changes_nothing_but_is_told_once(
    ca: TestCA, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source()
    store = IdentityStore(source)
    secured = store.server()
    store.start()
    with caplog.at_level(logging.WARNING, logger="meshlib.identity"):
        source.give(IdentityUpdate(error="no agent"))
        with pytest.raises(IdentityError, match="no agent"):
            secured.pem()
        source.give(update(ca.issue(SRV), ca))
        for _ in range(3):
            source.give(IdentityUpdate(error="the agent has gone"))
    assert secured.epoch == 1
    assert secured.pem()
    messages = [record.getMessage() for record in caplog.records]
    assert sum("no agent" in text for text in messages) == 1
    assert sum("the agent has gone" in text for text in messages) == 1


# Providers of a bootstrap


def test_certificate_providers(ca: TestCA) -> None:
    provider, source = Source(), Source()
    store = IdentityStore(source, {"files": provider})
    store.start()

    def by_provider(name: str) -> UpstreamTls:
        instance = ProviderInstance(instance_name=name)
        return UpstreamTls(
            common=CommonTls(
                certificate_provider=instance,
                validation=CertificateValidation(ca_provider=instance, match_sans=(match(SRV),)),
            )
        )

    held = store.client(by_provider("files"))
    with pytest.raises(IdentityError, match="'files'"):
        held.handshake()
    provider.give(IdentityUpdate(svids=(svid(ca.issue(CLI)),), roots=(ca.der,)))
    peer = server(roots(ca), ca.issue(SRV))
    assert served(store, by_provider("files"), peer.context) == SRV
    provider.give(update(ca.issue(CLI), TestCA()))
    with pytest.raises((IdentityError, ssl.SSLError)):
        served(store, by_provider("files"), peer.context)
    source.give(update(ca.issue(CLI), ca))
    assert served(store, by_provider("any other name"), peer.context) == SRV


# Files that configurations name


def test_files_are_followed(ca: TestCA, tmp_path: Path) -> None:
    def file(name: str, content: bytes) -> Material:
        draft = tmp_path / "draft"
        draft.write_bytes(content)
        draft.replace(tmp_path / name)
        return FilePath(path=str(tmp_path / name))

    first, second = ca.issue(CLI), ca.issue(CLI)
    tls = UpstreamTls(
        common=CommonTls(
            certificates=(
                TlsCertificate(chain=file("chain", first.chain), private_key=file("key", first.key)),
            ),
            validation=CertificateValidation(trusted_ca=file("ca", ca.pem)),
        )
    )
    store = IdentityStore()
    held = store.client(tls)
    assert held.handshake().not_after == first.not_after
    store._look_at_files()
    assert held.epoch == 1
    file("chain", second.chain)
    store._look_at_files()
    assert held.epoch == 1, "the key does not fit yet: the last good one"
    file("key", second.key)
    store._look_at_files()
    assert held.epoch == 2
    (tmp_path / "ca").unlink()
    store._look_at_files()
    assert held.epoch == 2
    other = TestCA()
    file("ca", other.pem)
    store._look_at_files()
    assert held.material is not None
    assert (held.material.trust.roots, held.epoch) == ((other.der,), 2)
    store.close()


def test_a_file_that_comes_later(ca: TestCA, tmp_path: Path) -> None:
    tls = UpstreamTls(
        common=CommonTls(validation=CertificateValidation(trusted_ca=FilePath(path=str(tmp_path / "ca"))))
    )
    store = IdentityStore()
    held = store.client(tls)
    with pytest.raises(IdentityError, match="can't be read"):
        held.handshake()
    (tmp_path / "ca").write_bytes(ca.pem)
    store._look_at_files()
    assert held.handshake().epoch == 1
    store.close()


def test_a_thread_only_where_there_are_files_to_follow(ca: TestCA, tmp_path: Path) -> None:
    before = threading.active_count()
    store = IdentityStore()
    held = store.client(UpstreamTls(common=CommonTls(validation=roots(ca))))
    held.handshake()
    store.start()
    assert threading.active_count() == before
    (tmp_path / "ca").write_bytes(ca.pem)
    file = FilePath(path=str(tmp_path / "ca"))
    other = store.client(UpstreamTls(common=CommonTls(validation=CertificateValidation(trusted_ca=file))))
    assert threading.active_count() == before + 1
    other.handshake()
    store.close()
    store.close()
    assert threading.active_count() == before


# Life


def test_what_nobody_holds_is_forgotten(ca: TestCA) -> None:
    store = IdentityStore()
    held = store.client(UpstreamTls(common=CommonTls(validation=roots(ca))))
    assert len(store._clients) == 1
    del held
    gc.collect()
    assert len(store._clients) == 0
    assert len(store._cache._contexts) == 0


def test_a_forked_child_starts_its_sources_again(ca: TestCA) -> None:
    source = Source()
    store = IdentityStore(source)
    store.start()
    source.give(update(ca.issue(CLI), ca))
    held = store.client(by_secrets("default", None))
    store.before_fork()
    store.after_fork_in_child()
    assert held.handshake().epoch == 1, "what the parent had serves at once"
    assert source.starts == 2
    source.give(update(ca.issue(CLI), ca))
    assert held.epoch == 2


def test_after_the_end_nothing_changes(ca: TestCA) -> None:
    source = Source()
    store = IdentityStore(source)
    store.start()
    source.give(update(ca.issue(CLI), ca))
    held = store.client(by_secrets("default", None))
    store.close()
    source.give(update(ca.issue(CLI), ca))
    assert held.handshake().epoch == 1


def test_rotation_while_many_threads_shake_hands(ca: TestCA) -> None:
    store = IdentityStore()
    issued = [ca.issue(CLI) for _ in range(5)]
    store.apply(snapshot(certificate_secret("own", issued[0])))
    held = store.client(by_secrets("own", None))
    wrong: list[str] = []
    stop = threading.Event()

    def shake() -> None:
        last = 0
        while not stop.wait(0.0005):
            handshake = held.handshake(alpn=("h2",))
            if handshake.epoch < last:
                wrong.append("an epoch went back")
            last = handshake.epoch

    threads = [threading.Thread(target=shake) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(1, 21):
            store.apply(snapshot(certificate_secret("own", issued[number % 5])))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert held.epoch == 21
