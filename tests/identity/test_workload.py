"""The Workload API as a source: a stream that is opened again after whatever ended it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from tenacity import wait_fixed

from meshlib.controlplane.ca import Authority, CaServer, Entry, Identities
from meshlib.errors import ConfigError, IdentityError
from meshlib.identity.source import IdentitySource, IdentityUpdate
from meshlib.identity.sources import identity_source
from meshlib.identity.workload import ENDPOINT, WorkloadApi
from meshlib.runtime.clock import FakeClock
from tests.identity.ca import Issued, TestCA
from tests.identity.executor import ManualExecutor

ID = "spiffe://td.example/web"


@dataclass
class TrustDomain:
    name: str


@dataclass
class Bundle:
    trust_domain: TrustDomain
    x509_authorities: set[x509.Certificate]


@dataclass
class BundleSet:
    bundles: list[Bundle]


@dataclass
class X509Svid:
    cert_chain: list[x509.Certificate]
    private_key: Any


@dataclass
class Context:
    """As spiffe's X509Context."""

    x509_svids: list[X509Svid]
    x509_bundle_set: BundleSet


def context(issued: Issued, *cas: TestCA) -> Context:
    return Context(
        [X509Svid([issued.certificate, *issued.intermediates], issued.private)],
        BundleSet([Bundle(TrustDomain(ca.trust_domain), {ca.certificate}) for ca in cas]),
    )


class Client:
    """As spiffe's WorkloadApiClient; the test speaks for the agent."""

    def __init__(self, opened: list[Client]) -> None:
        self.cancelled = self.closed = False
        self.success: Callable[[Any], None] = lambda found: None
        self.error: Callable[[Exception], None] = lambda error: None
        opened.append(self)

    def stream_x509_contexts(
        self,
        on_success: Callable[[Any], None],
        on_error: Callable[[Exception], None],
        retry_connect: bool = True,
    ) -> Client:
        assert not retry_connect
        self.success, self.error = on_success, on_error
        return self

    def cancel(self) -> None:
        self.cancelled = True

    def close(self) -> None:
        self.closed = True


class Agent:
    """A source without a socket and without a thread."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.executor = ManualExecutor(self.clock)
        self.opened: list[Client] = []
        self.problem: Exception | None = None
        self.updates: list[IdentityUpdate] = []
        self.source = WorkloadApi(
            "unix:///run/agent.sock",
            clock=self.clock,
            wait=wait_fixed(2),
            open_client=self.open,
            executor=lambda: self.executor,
        )

    def open(self, address: str) -> Client:
        if self.problem is not None:
            raise self.problem
        return Client(self.opened)

    def start(self) -> Client:
        self.source.start(self.updates.append)
        self.executor.run()
        return self.opened[-1]

    def gives(self, client: Client, found: object) -> None:
        client.success(found)
        self.executor.run()

    def fails(self, client: Client, text: str) -> None:
        client.error(RuntimeError(text))
        self.executor.run()


@pytest.fixture
def agent() -> Agent:
    return Agent()


@pytest.fixture(scope="module")
def ca() -> TestCA:
    return TestCA()


def test_svids_and_all_bundles(agent: Agent, ca: TestCA) -> None:
    other = TestCA("other.example")
    client = agent.start()
    issued = ca.intermediate().issue(ID)
    agent.gives(client, context(issued, ca, other))
    [update] = agent.updates
    assert str(update.svids[0].spiffe_id) == ID
    assert update.svids[0].chain == issued.chain_der
    assert set(update.bundles) == {"td.example", "other.example"}
    assert update.bundles["other.example"].authorities == (other.der,)


def test_nothing_is_opened_before_the_start(agent: Agent) -> None:
    assert isinstance(agent.source, IdentitySource)
    agent.executor.run()
    assert agent.opened == []


@pytest.mark.parametrize("retries", [3])
def test_a_stream_that_ends_is_opened_again(agent: Agent, ca: TestCA, retries: int) -> None:
    client = agent.start()
    agent.gives(client, context(ca.issue(ID), ca))
    for number in range(retries):
        agent.fails(client, "INVALID_ARGUMENT")
        assert client.cancelled
        assert client.closed
        assert len(agent.opened) == number + 1, "not before the back-off is over"
        agent.executor.advance(2)
        client = agent.opened[-1]
        assert len(agent.opened) == number + 2
    assert [update.error is None for update in agent.updates] == [True, False]
    agent.gives(client, context(ca.issue(ID), ca))
    assert agent.updates[-1].error is None


def test_a_socket_that_is_not_there_yet(agent: Agent, ca: TestCA) -> None:
    agent.problem = IdentityError("no such file")
    agent.source.start(agent.updates.append)
    for _ in range(3):
        agent.executor.run()
        agent.executor.advance(2)
    assert len(agent.updates) == 1
    assert "no such file" in str(agent.updates[0].error)
    assert not agent.updates[0].has_material
    agent.problem = None
    agent.executor.advance(2)
    agent.gives(agent.opened[-1], context(ca.issue(ID), ca))
    assert agent.updates[-1].svids


def test_an_answer_that_can_not_be_used_ends_the_stream(agent: Agent, ca: TestCA) -> None:
    client = agent.start()
    weak = context(ca.issue(ID, kind="rsa1024"), ca)
    agent.gives(client, weak)
    assert client.closed
    assert "too short" in str(agent.updates[-1].error)


def test_what_an_earlier_stream_says_is_not_heard(agent: Agent, ca: TestCA) -> None:
    first = agent.start()
    agent.fails(first, "gone")
    agent.executor.advance(2)
    agent.gives(first, context(ca.issue(ID), ca))
    agent.fails(first, "gone again")
    assert len(agent.updates) == 1
    assert len(agent.opened) == 2
    assert not agent.opened[1].closed


def test_the_end(agent: Agent, ca: TestCA) -> None:
    client = agent.start()
    agent.source.close()
    agent.source.close()
    assert client.closed
    client.error(RuntimeError("cancelled"))
    agent.source.start(agent.updates.append)
    assert agent.updates == []
    assert len(agent.opened) == 1


def test_around_a_fork(agent: Agent, ca: TestCA) -> None:
    client = agent.start()
    agent.gives(client, context(ca.issue(ID), ca))
    agent.source.before_fork()
    assert client.closed
    paused = agent.executor.paused
    assert paused
    client.error(RuntimeError("cancelled"))
    agent.source.after_fork_in_parent()
    assert not agent.executor.paused
    agent.executor.run()
    assert len(agent.opened) == 2
    assert len(agent.updates) == 1


def test_in_the_child_of_a_fork(agent: Agent, ca: TestCA) -> None:
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
        WorkloadApi(open_client=lambda address: Client([]))
    monkeypatch.setenv(ENDPOINT, "unix:///run/env.sock")
    assert WorkloadApi(open_client=lambda address: Client([])).address == "unix:///run/env.sock"
    assert WorkloadApi("/run/a.sock", open_client=lambda address: Client([])).address == "unix:///run/a.sock"
    assert identity_source(None) is None
    with pytest.raises(ConfigError, match="neither"):
        identity_source("nonsense")
    with pytest.raises(ConfigError, match="no identity source"):
        identity_source(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        identity_source(tmp_path / "missing")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"meshlib-xds\[spiffe\]"):
        WorkloadApi("unix:///run/a.sock")


# Over a socket, with the spiffe package, against the development CA


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
    pytest.importorskip("spiffe")
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
