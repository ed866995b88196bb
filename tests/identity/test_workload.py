"""The Workload API as a source: a stream that is opened again after whatever ended it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tenacity import wait_fixed

from meshlib.controlplane.ca import Authority, CaServer, Entry, Identities
from meshlib.errors import ConfigError
from meshlib.identity.source import IdentitySource, IdentityUpdate
from meshlib.identity.sources import identity_source
from meshlib.identity.workload import ENDPOINT, WorkloadApi
from meshlib.proto import workload
from meshlib.runtime.clock import FakeClock
from meshlib.runtime.stream import StreamTarget
from tests.identity.ca import Issued, TestCA
from tests.identity.executor import ManualExecutor
from tests.runtime.fake_stream import FakeStream

ID = "spiffe://td.example/web"


def entry(issued: Issued, ca: TestCA, hint: str = "") -> dict[str, Any]:
    """As one X509SVID of the answer."""
    return {
        "spiffe_id": ID,
        "x509_svid": b"".join(issued.chain_der),
        "x509_svid_key": issued.private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        "bundle": ca.der,
        "hint": hint,
    }


def answer(*entries: Mapping[str, Any], **federated: bytes) -> bytes:
    names = {f"spiffe://{name.replace('_', '.')}": der for name, der in federated.items()}
    message = workload.message("X509SVIDResponse")(svids=entries, federated_bundles=names)
    found: bytes = message.SerializeToString()
    return found


class Agent:
    """A source without a socket and without a thread; the test speaks for the agent."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.executor = ManualExecutor(self.clock)
        self.opened: list[FakeStream] = []
        self.targets: list[StreamTarget] = []
        self.problem: Exception | None = None
        self.updates: list[IdentityUpdate] = []
        self.source = WorkloadApi(
            "unix:///run/agent.sock",
            clock=self.clock,
            wait=wait_fixed(2),
            open_stream=self.open,
            executor=lambda: self.executor,
        )

    def open(
        self,
        target: StreamTarget,
        on_message: Callable[[Any, bytes], None],
        on_closed: Callable[[Any, str], None],
    ) -> FakeStream:
        if self.problem is not None:
            raise self.problem
        self.targets.append(target)
        self.opened.append(FakeStream(on_message, on_closed))
        return self.opened[-1]

    def start(self) -> FakeStream:
        self.source.start(self.updates.append)
        self.executor.run()
        return self.opened[-1]

    def gives(self, stream: FakeStream, found: bytes) -> None:
        stream.push(found)
        self.executor.run()
        assert stream.unprocessed == 0

    def fails(self, stream: FakeStream, text: str) -> None:
        stream.end(text)
        self.executor.run()


@pytest.fixture
def agent() -> Agent:
    return Agent()


@pytest.fixture(scope="module")
def ca() -> TestCA:
    return TestCA()


def test_what_is_asked(agent: Agent) -> None:
    stream = agent.start()
    [target] = agent.targets
    assert target.target == "unix:/run/agent.sock"
    assert target.method == "/SpiffeWorkloadAPI/FetchX509SVID"
    assert target.metadata == (("workload.spiffe.io", "true"),)
    assert stream.requests == [b""]
    assert stream.half_closed


def test_svids_and_all_bundles(agent: Agent, ca: TestCA) -> None:
    other = TestCA("other.example")
    stream = agent.start()
    issued = ca.intermediate().issue(ID)
    agent.gives(stream, answer(entry(issued, ca, "internal"), other_example=other.der))
    [update] = agent.updates
    assert str(update.svids[0].spiffe_id) == ID
    assert update.svids[0].chain == issued.chain_der
    assert update.svids[0].hint == "internal"
    assert dict(update.bundles.items()).keys() == {"td.example", "other.example"}
    assert update.bundles["td.example"].authorities == (ca.der,)
    assert update.bundles["other.example"].authorities == (other.der,)


def test_the_first_of_several_svids_is_the_default(agent: Agent, ca: TestCA) -> None:
    other = TestCA("other.example")
    elsewhere = {**entry(other.issue("spiffe://other.example/web"), other)}
    agent.gives(agent.start(), answer(entry(ca.issue(ID), ca), elsewhere))
    [update] = agent.updates
    assert [str(svid.spiffe_id) for svid in update.svids] == [ID, "spiffe://other.example/web"]
    assert set(update.bundles) == {"td.example", "other.example"}


def test_a_bundle_of_several_authorities(agent: Agent, ca: TestCA) -> None:
    later = TestCA()
    both = entry(ca.issue(ID), ca) | {"bundle": ca.der + later.der}
    agent.gives(agent.start(), answer(both))
    assert agent.updates[0].bundles["td.example"].authorities == (ca.der, later.der)


def test_nothing_is_opened_before_the_start(agent: Agent) -> None:
    assert isinstance(agent.source, IdentitySource)
    agent.executor.run()
    assert agent.opened == []


@pytest.mark.parametrize("retries", [3])
def test_a_stream_that_ends_is_opened_again(agent: Agent, ca: TestCA, retries: int) -> None:
    stream = agent.start()
    agent.gives(stream, answer(entry(ca.issue(ID), ca)))
    for number in range(retries):
        agent.fails(stream, "INVALID_ARGUMENT: no")
        assert stream.closed
        assert len(agent.opened) == number + 1, "not before the back-off is over"
        agent.executor.advance(2)
        stream = agent.opened[-1]
        assert len(agent.opened) == number + 2
    assert [update.error is None for update in agent.updates] == [True, False]
    agent.gives(stream, answer(entry(ca.issue(ID), ca)))
    assert agent.updates[-1].error is None


def test_a_socket_that_is_not_there_yet(agent: Agent, ca: TestCA) -> None:
    stream = agent.start()
    for _ in range(3):
        agent.fails(stream, "UNAVAILABLE: no such file")
        agent.executor.advance(2)
        stream = agent.opened[-1]
    assert len(agent.updates) == 1
    assert agent.updates[0].error == ("the Workload API at unix:///run/agent.sock: UNAVAILABLE: no such file")
    assert not agent.updates[0].has_material
    agent.gives(stream, answer(entry(ca.issue(ID), ca)))
    assert agent.updates[-1].svids


def test_a_thread_that_can_not_be_started(agent: Agent) -> None:
    agent.problem = RuntimeError("can't start new thread")
    agent.source.start(agent.updates.append)
    agent.executor.run()
    assert "can't start new thread" in str(agent.updates[0].error)
    agent.problem = None
    agent.executor.advance(2)
    assert len(agent.opened) == 1


@cache
def bad_answers() -> dict[str, tuple[bytes, str]]:
    ca = TestCA()
    good = entry(ca.issue(ID), ca)
    stranger = entry(ca.issue(ID), ca)
    return {
        "garbage": (b"\xff\xff", "X509SVIDResponse"),
        "nothing": (answer(), "no X.509-SVID"),
        "weak key": (answer(entry(ca.issue(ID, kind="rsa1024"), ca)), "too short"),
        "no id": (answer(entry(ca.issue(), ca)), "no SPIFFE id"),
        "two ids": (answer(entry(ca.issue(ID, ID + "2"), ca)), "no SPIFFE id"),
        "another's key": (
            answer(good | {"x509_svid_key": stranger["x509_svid_key"]}),
            "does not belong to the certificate",
        ),
        "no certificate": (answer(good | {"x509_svid": b""}), "no certificate in the chain"),
        "half a certificate": (answer(good | {"x509_svid": good["x509_svid"][:-1]}), "cut short"),
        "no bundle": (answer(good | {"bundle": b""}), "the bundle of td.example is empty"),
        "half a bundle": (answer(good | {"bundle": ca.der[:-1]}), "cut short"),
        "an empty federated bundle": (answer(good, far_example=b""), "the bundle of far.example is empty"),
        "a wrong trust domain": (answer(good, FAR=ca.der), "is not a trust domain"),
    }


@pytest.mark.parametrize("name", bad_answers())
def test_an_answer_that_can_not_be_used_ends_the_stream(agent: Agent, ca: TestCA, name: str) -> None:
    data, reason = bad_answers()[name]
    stream = agent.start()
    agent.gives(stream, answer(entry(ca.issue(ID), ca)))
    agent.gives(stream, data)
    assert stream.closed
    assert reason in str(agent.updates[-1].error)
    assert not agent.updates[-1].has_material, "what was given last stays in force"
    agent.executor.advance(2)
    assert len(agent.opened) == 2


def test_what_an_earlier_stream_says_is_not_heard(agent: Agent, ca: TestCA) -> None:
    first = agent.start()
    agent.fails(first, "gone")
    agent.executor.advance(2)
    agent.gives(first, answer(entry(ca.issue(ID), ca)))
    agent.fails(first, "gone again")
    assert len(agent.updates) == 1
    assert len(agent.opened) == 2
    assert not agent.opened[1].closed


def test_the_end(agent: Agent) -> None:
    stream = agent.start()
    agent.source.close()
    agent.source.close()
    assert stream.closed
    stream.end("CANCELLED")
    agent.source.start(agent.updates.append)
    assert agent.updates == []
    assert len(agent.opened) == 1


def test_around_a_fork(agent: Agent, ca: TestCA) -> None:
    stream = agent.start()
    agent.gives(stream, answer(entry(ca.issue(ID), ca)))
    agent.source.before_fork()
    assert stream.closed
    paused = agent.executor.paused
    assert paused
    stream.end("CANCELLED")
    agent.source.after_fork_in_parent()
    assert not agent.executor.paused
    agent.executor.run()
    assert len(agent.opened) == 2
    assert len(agent.updates) == 1


def test_a_fork_while_a_back_off_lasts(agent: Agent) -> None:
    agent.fails(agent.start(), "gone")
    agent.source.before_fork()
    agent.source.after_fork_in_parent()
    agent.executor.run()
    assert len(agent.opened) == 1
    agent.executor.advance(2)
    assert len(agent.opened) == 2


def test_in_the_child_of_a_fork(agent: Agent) -> None:
    agent.start()
    agent.source.before_fork()
    agent.source.after_fork_in_child()
    assert agent.executor.closed
    agent.executor = ManualExecutor(agent.clock)
    agent.start()
    assert len(agent.opened) == 2


def test_addresses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(ENDPOINT, raising=False)
    with pytest.raises(ConfigError, match=ENDPOINT):
        WorkloadApi()
    monkeypatch.setenv(ENDPOINT, "unix:///run/env.sock")
    assert WorkloadApi().address == "unix:///run/env.sock"
    assert WorkloadApi("/run/a.sock").address == "unix:///run/a.sock"
    assert identity_source(None) is None
    with pytest.raises(ConfigError, match="neither"):
        identity_source("nonsense")
    with pytest.raises(ConfigError, match="no identity source"):
        identity_source(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        identity_source(tmp_path / "missing")


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("unix:///run/a.sock", "unix:/run/a.sock"),
        ("unix:/run/a.sock", "unix:/run/a.sock"),
        ("tcp://127.0.0.1:8000", "ipv4:127.0.0.1:8000"),
        ("tcp://[::1]:8000", "ipv6:[::1]:8000"),
    ],
)
def test_the_address_of_an_endpoint(agent: Agent, address: str, target: str) -> None:
    source = WorkloadApi(address, open_stream=agent.open, executor=lambda: agent.executor)
    source.start(agent.updates.append)
    agent.executor.run()
    assert agent.targets[0].target == target


@pytest.mark.parametrize(
    "address",
    [
        "unix://",
        "unix:",
        "unix://host/run/a.sock",
        "unix:///run/a.sock?x=1",
        "unix:///run/a.sock#x",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:70000",
        "tcp://localhost:8000",
        "tcp://127.0.0.1:8000/path",
        "tcp://127.0.0.1:8000?x=1",
        "tcp://me@127.0.0.1:8000",
        "https://127.0.0.1:8000",
        "run:me",
    ],
)
def test_what_is_no_address_of_an_endpoint(address: str) -> None:
    with pytest.raises(ConfigError, match="no address of a Workload API: expected"):
        WorkloadApi(address)


# Over a socket, against the development CA


class Heard:
    def __init__(self) -> None:
        self.updates: list[IdentityUpdate] = []
        self._more = threading.Condition()

    def __call__(self, update: IdentityUpdate) -> None:
        with self._more:
            self.updates.append(update)
            self._more.notify_all()

    def wait_for(self, wanted: Callable[[IdentityUpdate], bool]) -> IdentityUpdate:
        with self._more:
            assert self._more.wait_for(lambda: any(map(wanted, self.updates)), timeout=20), self.updates
            return next(filter(wanted, self.updates))


@pytest.fixture
def identities() -> Identities:
    return Identities(Authority("td.example"), [Entry(spiffe_id=ID)])


@pytest.fixture
def heard(tmp_path: Path, identities: Identities) -> Iterator[tuple[Heard, Path]]:
    address = tmp_path / "agent.sock"
    source = WorkloadApi(f"unix://{address}", wait=wait_fixed(0.05))
    heard = Heard()
    source.start(heard)
    yield heard, address
    source.close()


def test_over_a_socket(heard: tuple[Heard, Path], identities: Identities) -> None:
    told, address = heard
    told.wait_for(lambda update: update.error is not None)
    with CaServer(identities, listen=[f"unix:{address}"]):
        first = told.wait_for(lambda update: bool(update.svids))
        assert str(first.svids[0].spiffe_id) == ID
        assert set(first.bundles) == {"td.example"}
        identities.authority.rotate()
        both = told.wait_for(
            lambda update: bool(update.bundles) and len(update.bundles["td.example"].authorities) == 2
        )
        assert both.bundles["td.example"].authorities != first.bundles["td.example"].authorities
    gone = len(told.updates)
    told.wait_for(lambda update: update.error is not None and update in told.updates[gone - 1 :])
    with CaServer(identities, listen=[f"unix:{address}"]):
        told.wait_for(lambda update: bool(update.svids) and update in told.updates[gone:])
