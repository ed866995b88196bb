"""Which identity whom, and when it is renewed: no network, a clock of the test's own."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import pytest

from meshlib.controlplane.ca import Authority, Caller, Entry, Identities
from meshlib.errors import ConfigError, IdentityError
from meshlib.runtime.clock import FakeClock

WEB, API = "spiffe://example.org/web", "spiffe://example.org/api"
CALLER = Caller(pid=10, uid=1000, gid=100)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def authority(clock: FakeClock) -> Authority:
    return Authority("example.org", ttl=60, clock=clock)


def ids(identities: Identities, caller: Caller | None) -> list[str]:
    return [svid.spiffe_id for svid in identities.view(caller).svids]


@pytest.mark.parametrize(
    ("entry", "admitted"),
    [
        (Entry(spiffe_id=WEB), True),
        (Entry(spiffe_id=WEB, uid=1000, gid=100, pid=10), True),
        (Entry(spiffe_id=WEB, uid=1001), False),
        (Entry(spiffe_id=WEB, uid=1000, gid=101), False),
        (Entry(spiffe_id=WEB, pid=11), False),
        (Entry(spiffe_id=WEB, uid=1000, exe="/nowhere"), False),
    ],
)
def test_selectors(entry: Entry, admitted: bool) -> None:
    assert entry.admits(CALLER) is admitted
    assert entry.admits(None) is not entry.selective, "of a caller over TCP nothing is known"


def test_the_program_of_a_caller() -> None:
    me = Caller(pid=os.getpid(), uid=os.getuid(), gid=os.getgid())
    assert me.exe == str(Path(sys.executable).resolve())
    assert Entry(spiffe_id=WEB, exe=me.exe).admits(me)
    assert Caller(pid=2**22 + 1, uid=0, gid=0).exe == ""


def test_an_entry_is_read_from_a_line() -> None:
    line = f"{WEB},uid=1,gid=2,pid=3,exe=/bin/x,dns=a.local,dns=b.local,hint=h,ttl=30,key-type=rsa-2048"
    assert Entry.parse(line) == Entry(
        spiffe_id=WEB,
        dns_names=("a.local", "b.local"),
        hint="h",
        ttl=30.0,
        key_type="rsa-2048",
        uid=1,
        gid=2,
        pid=3,
        exe="/bin/x",
    )
    assert Entry.parse(WEB) == Entry(spiffe_id=WEB)


@pytest.mark.parametrize("wrong", ["uid", "uid=x", "color=red", "uid=1,uid=2", "ttl=soon"])
def test_a_wrong_line_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=f"^'{WEB},{wrong}'"):
        Entry.parse(f"{WEB},{wrong}")


def test_a_line_without_an_id_is_refused() -> None:
    with pytest.raises(IdentityError):
        Entry.parse("web,uid=1")


def test_a_caller_sees_what_is_meant_for_it(authority: Authority) -> None:
    identities = Identities(authority, [Entry(spiffe_id=API, uid=1000), Entry(spiffe_id=WEB)])
    assert ids(identities, CALLER) == [API, WEB]
    assert ids(identities, Caller(pid=1, uid=0, gid=0)) == [WEB]
    assert ids(identities, None) == [WEB]


def test_the_same_svid_until_half_of_its_life(authority: Authority, clock: FakeClock) -> None:
    identities = Identities(authority, [Entry(spiffe_id=WEB), Entry(spiffe_id=API, ttl=20)])
    calls: list[int] = []
    identities.watch(lambda: calls.append(identities.version))
    first = identities.view(None)
    assert identities.next_renewal == clock.time() + 10

    clock.advance(9)
    identities.renew()
    assert (identities.view(None), calls) == (first, [])

    clock.advance(1)
    identities.renew()
    second = identities.view(None)
    assert second.svids[0] is first.svids[0]
    assert second.svids[1] is not first.svids[1]
    assert calls == [second.version] == [first.version + 1]
    assert identities.next_renewal == clock.time() + 10

    clock.advance(20)
    identities.renew()
    assert identities.view(None).svids[0] is not first.svids[0]


def test_a_root_that_signs_anew_renews_all(authority: Authority) -> None:
    identities = Identities(authority, [Entry(spiffe_id=WEB)])
    first = identities.view(None)
    authority.rotate()
    prepared = identities.view(None)
    assert prepared.svids == first.svids
    assert len(prepared.bundles["example.org"]) == 2
    assert prepared.version > first.version
    authority.rotate()
    activated = identities.view(None)
    assert activated.svids[0].leaf.issuer == prepared.bundles["example.org"][1].subject
    identities.close()
    authority.rotate()
    assert identities.version == activated.version, "closed: it follows no longer"


def test_federation_and_revocation_are_seen(authority: Authority) -> None:
    identities = Identities(authority, [Entry(spiffe_id=WEB)])
    before = identities.version
    authority.federate("other.org", Authority("other.org").bundle)
    assert list(identities.view(None).bundles) == ["example.org", "other.org"]
    authority.revoke(identities.view(None).svids[0])
    assert len(identities.view(None).revocation_lists) == 1
    assert identities.version == before + 2


def test_revocation_lists_are_made_anew_in_time(authority: Authority, clock: FakeClock) -> None:
    identities = Identities(authority, [Entry(spiffe_id=WEB, ttl=1e6)])
    authority.revoke(identities.view(None).svids[0])
    lists = identities.view(None).revocation_lists
    assert identities.next_renewal == clock.time() + 12 * 3600
    clock.advance(12 * 3600)
    identities.renew()
    renewed = identities.view(None).revocation_lists
    assert renewed[0].last_update_utc > lists[0].last_update_utc
    assert identities.next_renewal == clock.time() + 12 * 3600


def test_entries_may_change(authority: Authority) -> None:
    identities = Identities(authority, [])
    assert identities.next_renewal == math.inf
    assert ids(identities, None) == []
    identities.replace([Entry(spiffe_id=WEB)])
    web = identities.view(None).svids[0]
    identities.replace([Entry(spiffe_id=API), Entry(spiffe_id=WEB)])
    assert identities.view(None).svids[1] is web
    with pytest.raises(IdentityError):
        identities.replace([Entry(spiffe_id="spiffe://other.org/web")])
    assert ids(identities, None) == [API, WEB]
    identities.replace([])
    assert ids(identities, None) == []


def test_an_entry_of_another_trust_domain_is_refused(authority: Authority) -> None:
    with pytest.raises(IdentityError, match=r"not of the trust domain example\.org"):
        Identities(authority, [Entry(spiffe_id="spiffe://other.org/web")])
