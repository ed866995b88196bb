"""Private keys: never on a disk, in a log, an error, a `repr` or a pickle."""

from __future__ import annotations

import base64
import gc
import logging
import os
import pickle
import ssl
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from meshlib.errors import IdentityError
from meshlib.identity import keyfile
from meshlib.identity.contexts import ContextSpec, build
from meshlib.identity.keyfile import certificate_file
from meshlib.identity.material import BundleSet, Svid, TrustBundle
from meshlib.identity.sds import secret_named
from meshlib.identity.source import IdentityUpdate
from meshlib.identity.store import IdentityStore
from meshlib.resources.tls import TlsVersion
from meshlib.snapshot import Snapshot
from tests.identity.ca import Issued, TestCA
from tests.identity.configs import bare_client, certificate, client, roots, server, spiffe
from tests.identity.test_store import Source, by_secrets, certificate_secret, snapshot
from tests.identity.tls import join

ID = "spiffe://td.example/a"

CA = TestCA()
KEYS = ("p256", "rsa2048", "ed25519")


def marks(issued: Issued) -> list[str]:
    """Pieces of the key that must not be seen: lines of its PEM, but for those that hold only what the certificate says too."""
    lines = [line[:40] for line in issued.key.decode().splitlines()[1:-1] if len(line) >= 40]
    public = ssl.PEM_cert_to_DER_cert(issued.chain.decode().partition("-----END")[0] + ssl.PEM_FOOTER)
    return [line for line in lines if base64.b64decode(line) not in public]


def everything(store: IdentityStore, *more: object) -> Iterator[object]:
    """The store, and all that can be reached from it and from the rest, as far as it is meshlib's."""
    seen: set[int] = set()
    todo: list[object] = [store, *more]
    while todo:
        item = todo.pop()
        if id(item) in seen or isinstance(item, (type, ssl.SSLContext)):
            continue
        seen.add(id(item))
        if type(item).__module__.startswith("meshlib") or isinstance(
            item, (dict, list, tuple, set, frozenset)
        ):
            yield item
            todo += gc.get_referents(item)


@pytest.mark.parametrize("kind", KEYS)
def test_nothing_shows_a_key(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    issued = CA.issue(ID, kind=kind)
    source = Source()
    with caplog.at_level(logging.DEBUG):
        store = IdentityStore(source)
        store.start()
        store.apply(snapshot(certificate_secret("own", issued)))
        source.give(
            IdentityUpdate(
                svids=(Svid.from_pem(issued.chain, issued.key),),
                bundles=BundleSet([TrustBundle("td.example", [CA.der])]),
            )
        )
        held = (
            store.client(by_secrets("own", "ROOTCA")),
            store.server(),
            client(spiffe(CA), issued, store=store),
        )
        handshake = held[0].handshake()
        peer = join(handshake.context, held[1].context)
        handshake.verify(peer.client)
        held[1].verify(peer.server)
    shown = [caplog.text]
    for item in everything(store, *held, handshake, secret_named(source_update(store), "default")):
        if isinstance(item, (dict, list, tuple, set, frozenset)):
            # Containers show what is in them; only those that hold raw bytes on purpose are left out below.
            continue
        shown += [repr(item), str(item)]
    secrets = marks(issued)
    assert secrets
    for text in shown:
        assert not any(mark in text for mark in secrets), text[:200]


def source_update(store: IdentityStore) -> IdentityUpdate:
    assert store.default is not None
    return store.default


def test_what_holds_a_key_can_not_be_pickled() -> None:
    issued = CA.issue(ID)
    svid = Svid.from_pem(issued.chain, issued.key)
    store = IdentityStore()
    held = client(roots(CA), issued, store=store)
    for item in (
        svid,
        svid.private_key,
        IdentityUpdate(svids=(svid,)),
        ContextSpec(server=False, svids=(svid,)),
        held._ready,
        held,
        held.handshake(),
        store,
        server(roots(CA), issued),
    ):
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
            pickle.dumps(item)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda issued: (issued.key[:-60], issued.chain),
        lambda issued: (issued.key.replace(b"\n", b"", 3), issued.chain),
        lambda issued: (issued.key, CA.issue(ID).chain),
        lambda issued: (issued.key, issued.key),
        lambda issued: (issued.chain, issued.key),
        lambda issued: (issued.key + issued.key[:100], issued.chain[:50]),
    ],
)
def test_no_error_quotes_a_key(
    break_it: Callable[[Issued], tuple[bytes, bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    issued = CA.issue(ID, kind="rsa2048")
    key, chain = break_it(issued)
    secret = certificate_secret("own", issued)
    assert secret.certificate is not None
    import dataclasses

    broken = dataclasses.replace(
        secret, certificate=dataclasses.replace(certificate(issued), chain=chain, private_key=key)
    )
    store = IdentityStore()
    with caplog.at_level(logging.DEBUG):
        held = store.client(by_secrets("own", None))
        store.apply(snapshot(secret))
        store.apply(snapshot(broken))
        store.apply(Snapshot())
        fresh = IdentityStore()
        fresh.apply(snapshot(broken))
        texts = [caplog.text]
        try:
            fresh.client(by_secrets("own", None)).handshake()
        except IdentityError as error:
            texts += ["".join(traceback.format_exception(error)), repr(error.__dict__), repr(error.args)]
    assert held.epoch == 1
    for text in texts:
        assert not any(mark in text for mark in marks(issued))


def descriptors() -> set[str]:
    return {item.name for item in Path("/proc/self/fd").iterdir()}


def test_a_key_is_loaded_without_a_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not hasattr(os, "memfd_create"):
        pytest.skip("this platform has no anonymous files")
    opened: list[str] = []
    monkeypatch.setattr(tempfile, "mkstemp", lambda *args, **options: opened.append("mkstemp"))
    monkeypatch.setattr(Path, "open", lambda self, *args, **options: opened.append(str(self)))
    before = descriptors()
    bare_client(CA.issue(ID), TlsVersion.TLSv1_2)
    assert opened == []
    assert descriptors() == before


@pytest.mark.parametrize("kind", KEYS)
def test_elsewhere_the_key_is_encrypted_and_gone_at_once(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(keyfile, "FOLDER_OF_DESCRIPTORS", tmp_path / "missing")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    issued = CA.issue(ID, kind=kind)
    svid = Svid.from_pem(issued.chain, issued.key)
    with certificate_file(issued.chain, svid.private_key) as (path, password):
        content = Path(path).read_bytes()
        assert Path(path).stat().st_mode & 0o777 == 0o600
        assert b"ENCRYPTED" in content
        assert not any(mark.encode() in content for mark in marks(issued))
        assert password is not None
    assert list(tmp_path.iterdir()) == []
    context = build(ContextSpec(server=False, svids=(svid,), verify=ssl.CERT_NONE))
    assert list(tmp_path.iterdir()) == []
    assert join(context, server(roots(CA), CA.issue(ID)).context).errors.get("server") is None


def test_the_file_is_gone_after_an_error_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(keyfile, "FOLDER_OF_DESCRIPTORS", tmp_path / "missing")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    issued = CA.issue(ID)
    key = Svid.from_pem(issued.chain, issued.key).private_key

    def use() -> Any:
        with certificate_file(issued.chain, key):
            raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        use()
    assert list(tmp_path.iterdir()) == []
