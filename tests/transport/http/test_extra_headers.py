"""Headers that observers add to a request go out with it, and are not kept for the next one."""

from __future__ import annotations

from typing import Any

import h2.config
import h2.connection
import h2.events
import httpx
import pytest

import meshlib
from meshlib.engine.attempt import Attempt
from meshlib.engine.call import Call
from meshlib.engine.observer import CallObserver
from meshlib.httpx import MeshTransport
from meshlib.testing import Reply, Reset, Upstream, service
from meshlib.transport.http.failure import InvalidRequest
from meshlib.transport.http.h1 import H1Codec
from meshlib.transport.http.h2 import H2Codec
from meshlib.transport.http.interned import blocks, forms
from meshlib.transport.http.message import OutgoingRequest

EXTRA = [(b"traceparent", b"00-aa-bb-01"), (b"baggage", b"a=\xc3\xa9")]


def outgoing(body: bytes | None = b"", extra: Any = EXTRA) -> OutgoingRequest:
    return OutgoingRequest(b"POST", b"/x", b"host:80", [(b"Accept", b"*/*")], body, extra)


@pytest.mark.parametrize("body", [b"", b"body", None])
def test_http1(body: bytes | None) -> None:
    blocks.clear()
    known = len(forms)
    sent = H1Codec().start(outgoing(body))
    head, _, rest = sent.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[:3] == [b"POST /x HTTP/1.1", b"Host: host:80", b"Accept: */*"]
    assert b"traceparent: 00-aa-bb-01" in lines
    assert b"baggage: a=\xc3\xa9" in lines
    assert rest == (body or b"")
    assert len(blocks) == 1
    assert len(forms) <= known + 2
    assert not [form for form in forms if form[0] == b"traceparent"]


@pytest.mark.parametrize("header", [(b"bad name", b"x"), (b"x", b"a\r\nb: c"), (b"x", b"\0"), (b"", b"")])
def test_what_cannot_be_sent_is_refused(header: tuple[bytes, bytes]) -> None:
    with pytest.raises(InvalidRequest):
        H1Codec().start(outgoing(extra=[header]))


def test_http2() -> None:
    client = H2Codec()
    client.open(outgoing())
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    server.initiate_connection()
    events = server.receive_data(client.take_outgoing())
    (request,) = [event for event in events if isinstance(event, h2.events.RequestReceived)]
    headers = [(bytes(name), bytes(value)) for name, value in request.headers]
    assert [pair for pair in headers if pair in EXTRA] == EXTRA
    assert (b"accept", b"*/*") in headers


class Adding(CallObserver):
    def begun(self, call: Call, now: float) -> None:
        call.headers_to_add += (("x-all", "1"),)

    def attempt_begun(self, call: Call, attempt: Attempt, now: float) -> None:
        attempt.headers_to_add = (("x-attempt", str(attempt.number)),)


@pytest.mark.parametrize("edits", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
def test_with_each_attempt(edits: bool, streamed: bool) -> None:
    """Also where the route edits headers, and of a body that is sent again."""
    with Upstream([Reset(), Reply(body=b"done")]) as upstream:
        config = service("reviews", upstream.address)
        host = config["resources"][1]["virtual_hosts"][0]
        host["retry_policy"] = {
            "retry_on": "reset",
            "num_retries": 1,
            "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.001s"},
        }
        if edits:
            host["include_request_attempt_count"] = True
        with meshlib.Mesh(config, observe=meshlib.Observe(tracing=False)) as mesh:
            mesh.start()
            mesh.engine.observe(Adding())
            with httpx.Client(transport=MeshTransport(mesh)) as client:
                content = iter([b"bo", b"dy"]) if streamed else b"body"
                assert client.post("http://reviews/", content=content).text == "done"
        requests = upstream.requests
    assert [request.header("x-all") for request in requests][-1] == "1"
    assert requests[-1].header("x-attempt") == "2"
    assert requests[-1].body == b"body"
    assert requests[-1].header("x-envoy-attempt-count") == ("2" if edits else None)
