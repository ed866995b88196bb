"""Identities in files: replaced in every way that files are replaced in."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshlib.controlplane.ca.authority import Authority
from meshlib.controlplane.ca.files import replace_files, svid_files
from meshlib.errors import ConfigError, IdentityError
from meshlib.identity.files import FileIdentity
from meshlib.identity.polling import Files
from meshlib.identity.source import IdentitySource, IdentityUpdate
from meshlib.runtime.clock import FakeClock
from tests.identity.ca import Issued, TestCA
from tests.identity.executor import ManualExecutor

ID = "spiffe://td.example/ns/a/sa/srv"


class Watched:
    """A FileIdentity over three files, and what it has said."""

    def __init__(self, folder: Path, ca: TestCA, **options: object) -> None:
        self.folder = folder
        self.ca = ca
        self.clock = FakeClock()
        self.executor = ManualExecutor(self.clock)
        self.updates: list[IdentityUpdate] = []
        self.write(ca.issue(ID))
        (folder / "ca.crt").write_bytes(ca.pem)
        self.source = FileIdentity(
            certificate=folder / "tls.crt",
            private_key=folder / "tls.key",
            bundle=folder / "ca.crt",
            clock=self.clock,
            executor=lambda: self.executor,
            **options,  # type: ignore[arg-type]
        )

    def write(self, issued: Issued) -> None:
        self.replace("tls.crt", issued.chain)
        self.replace("tls.key", issued.key)

    def replace(self, name: str, content: bytes) -> None:
        draft = self.folder / f"{name}.new"
        draft.write_bytes(content)
        draft.replace(self.folder / name)

    def start(self) -> None:
        self.source.start(self.updates.append)

    def look(self) -> None:
        self.executor.advance(1.0)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    found = Watched(tmp_path, TestCA())
    yield found
    found.source.close()


def test_it_is_an_identity_source(watched: Watched) -> None:
    assert isinstance(watched.source, IdentitySource)


def test_the_files_are_read_at_the_start(watched: Watched) -> None:
    assert watched.updates == []
    watched.start()
    [update] = watched.updates
    assert str(update.svids[0].spiffe_id) == ID
    assert update.bundles["td.example"].authorities == (watched.ca.der,)
    assert update.error is None
    watched.look()
    assert len(watched.updates) == 1


def test_a_replacement_is_seen_at_the_next_look(watched: Watched) -> None:
    watched.start()
    issued = watched.ca.issue(ID)
    watched.write(issued)
    watched.look()
    assert watched.updates[-1].svids[0].leaf == issued.der
    assert len(watched.updates) == 2


def test_new_bundle(watched: Watched) -> None:
    watched.start()
    other = TestCA()
    watched.replace("ca.crt", watched.ca.pem + other.pem)
    watched.look()
    assert watched.updates[-1].bundles["td.example"].authorities == (watched.ca.der, other.der)


def test_the_moment_between_certificate_and_key_is_waited_out(watched: Watched) -> None:
    watched.start()
    issued = watched.ca.issue(ID)
    watched.replace("tls.crt", issued.chain)
    watched.look()
    assert len(watched.updates) == 1
    watched.replace("tls.key", issued.key)
    watched.look()
    assert watched.updates[-1].svids[0].leaf == issued.der
    assert watched.updates[-1].error is None
    assert len(watched.updates) == 2


def test_files_that_stay_wrong_are_reported_once_and_nothing_is_lost(watched: Watched) -> None:
    watched.start()
    good = (watched.folder / "tls.crt").read_bytes()
    watched.replace("tls.crt", watched.ca.issue(ID).chain)
    for _ in range(5):
        watched.look()
    assert len(watched.updates) == 2
    assert watched.updates[-1].error is not None
    assert "does not belong" in watched.updates[-1].error
    assert not watched.updates[-1].has_material
    watched.replace("tls.crt", good)
    watched.look()
    assert len(watched.updates) == 2, "what is in force is what the files hold again"


def test_missing_files_come_later(tmp_path: Path) -> None:
    watched = Watched(tmp_path, TestCA())
    (tmp_path / "tls.key").unlink()
    watched.start()
    assert watched.updates[-1].error is not None
    assert "tls.key" in watched.updates[-1].error
    watched.write(watched.ca.issue(ID))
    watched.look()
    assert watched.updates[-1].svids
    watched.source.close()


def test_a_change_in_place_of_the_same_length(watched: Watched) -> None:
    watched.start()
    issued = watched.ca.issue(ID)
    for name, content in (("tls.crt", issued.chain), ("tls.key", issued.key)):
        (watched.folder / name).write_bytes(content)
        os.utime(watched.folder / name, ns=(1, hash(content) & 0xFFFFFFFF))
    watched.look()
    assert watched.updates[-1].svids[0].leaf == issued.der


def test_the_same_content_again_is_no_update(watched: Watched) -> None:
    watched.start()
    for name in ("tls.crt", "tls.key", "ca.crt"):
        watched.replace(name, (watched.folder / name).read_bytes())
    watched.look()
    assert len(watched.updates) == 1


def test_kubernetes_swaps_a_symbolic_link(tmp_path: Path) -> None:
    clock = FakeClock()
    executor = ManualExecutor(clock)
    authority = Authority("td.example")
    folder = tmp_path / "identity"
    replace_files(folder, svid_files(authority.issue(ID), authority.bundles, 1))
    updates: list[IdentityUpdate] = []
    source = FileIdentity(
        certificate=folder / "tls.crt",
        private_key=folder / "tls.key",
        bundle_map=folder / "bundles.json",
        clock=clock,
        executor=lambda: executor,
    )
    source.start(updates.append)
    first = updates[-1].svids[0]
    for _ in range(3):
        replace_files(folder, svid_files(authority.issue(ID), authority.bundles, 2))
        executor.advance(1.0)
        assert updates[-1].error is None
        assert updates[-1].svids[0] != first
        first = updates[-1].svids[0]
    assert len(updates) == 4
    shutil.rmtree(folder)
    executor.advance(1.0)
    executor.advance(1.0)
    assert updates[-1].error is not None
    source.close()


def test_a_folder_as_the_development_ca_writes_it(tmp_path: Path) -> None:
    authority = Authority("td.example")
    replace_files(tmp_path / "id", svid_files(authority.issue(ID), authority.bundles, 1))
    updates: list[IdentityUpdate] = []
    source = FileIdentity.of_folder(tmp_path / "id", clock=FakeClock())
    source.start(updates.append)
    source.close()
    assert set(updates[-1].bundles) == {"td.example"}
    (tmp_path / "id" / "bundles.json").unlink()
    source = FileIdentity.of_folder(tmp_path / "id", clock=FakeClock())
    source.start(updates.append)
    source.close()
    assert updates[-1].bundles == updates[0].bundles
    with pytest.raises(ConfigError):
        FileIdentity.of_folder(tmp_path / "missing")


def test_federated_bundles_and_plain_roots(tmp_path: Path) -> None:
    ca, other = TestCA(), TestCA("other.example")
    (tmp_path / "a").write_bytes(ca.pem)
    (tmp_path / "b").write_bytes(other.pem)
    updates: list[IdentityUpdate] = []
    source = FileIdentity(
        bundle=tmp_path / "a", trust_domain="td.example", federated={"other.example": tmp_path / "b"}
    )
    source.start(updates.append)
    source.close()
    assert set(updates[-1].bundles) == {"td.example", "other.example"}
    assert updates[-1].svids == ()
    plain = FileIdentity(roots=tmp_path / "a")
    plain.start(updates.append)
    plain.close()
    assert updates[-1].roots == (ca.der,)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"certificate": "a"},
        {"private_key": "a"},
        {"bundle": "a"},
        {"bundle": "a", "roots": "b"},
        {"bundle_map": "a", "bundle": "b"},
        {"certificate": "a", "private_key": "b", "federated": {"x": "c"}},
    ],
)
def test_what_does_not_fit_together(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        FileIdentity(**options)  # type: ignore[arg-type]


def test_names_of_trust_domains_are_checked() -> None:
    with pytest.raises(IdentityError):
        FileIdentity(bundle="a", trust_domain="A")
    with pytest.raises(IdentityError):
        FileIdentity(bundle="a", trust_domain="a", federated={"B": "b"})


def test_no_thread_before_the_start_and_none_after_the_end(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    Watched(tmp_path, TestCA())
    source = FileIdentity(
        certificate=tmp_path / "tls.crt", private_key=tmp_path / "tls.key", bundle=tmp_path / "ca.crt"
    )
    assert set(threading.enumerate()) == before
    source.start(lambda update: None)
    assert len(threading.enumerate()) == len(before) + 1
    source.close()
    source.close()
    assert set(threading.enumerate()) == before


def test_a_fork_starts_again(watched: Watched) -> None:
    watched.start()
    poller = watched.source._poller
    poller.before_fork()
    assert watched.executor.paused
    poller.after_fork_in_child()
    assert watched.executor.closed
    child = watched.executor = ManualExecutor(watched.clock)
    watched.start()
    assert len(watched.updates) == 2, "the child is told what is in force"
    watched.write(watched.ca.issue(ID))
    child.advance(1.0)
    assert len(watched.updates) == 3


def test_huge_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(9 * 1024 * 1024)
    with pytest.raises(IdentityError, match="larger"):
        Files().read(str(path))
    with pytest.raises(IdentityError, match="can't be read"):
        Files().read(str(tmp_path))
