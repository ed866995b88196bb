"""What grpcio says about an ending, as an event."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.engine.events import Cancelled, End, Failed, FailureKind, Headers, Timer
from meshlib.transport.grpc.judge import Ended, Local, end_of_stream, judge, local_cause
from meshlib.transport.grpc.metadata import decode_message, encode_message, to_headers, to_metadata

# As grpcio 1.85 says it.
SEEN = {
    "Stream removed (Deadline Exceeded)": Local.DEADLINE,
    "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))": FailureKind.REMOTE_RESET,
    "Stream removed (RST_STREAM (Received RST_STREAM with error code 7))": FailureKind.REFUSED_STREAM,
    "Stream removed (GOAWAY received; Error code: 0; Debug Text: )": FailureKind.REFUSED_STREAM,
    "Stream removed (Socket closed)": FailureKind.TERMINATED,
    "Stream removed (recvmsg:Connection reset by peer (104))": FailureKind.TERMINATED,
    "Stream removed (Channel closed!)": Local.APPLICATION,
    "Stream removed (CLIENT: Received message larger than max (5 vs. 4))": Local.APPLICATION,
    "Established channel does not have a sufficient security level to transfer call credential.": (
        Local.APPLICATION
    ),
    "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to connect to remote "
    "host: Connection refused": FailureKind.CONNECT_FAILED,
    "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: connection attempt timed out "
    "before receiving SETTINGS frame": FailureKind.CONNECT_TIMEOUT,
    "Stream removed (something new)": FailureKind.TERMINATED,
    "Stream removed (Data frame with END_STREAM flag received)": None,
    "no such book": None,
}


@pytest.mark.parametrize("text", SEEN, ids=lambda text: text[:40])
def test_causes(text: str) -> None:
    assert local_cause(Ended(14, text, f"UNAVAILABLE:{text}", (), ())) is SEEN[text]


def test_older_releases() -> None:
    """They frame nothing, and say in the debug string what came from the peer."""
    assert local_cause(Ended(14, "Socket closed", "UNKNOWN:Socket closed", (), ())) is FailureKind.TERMINATED
    told = 'UNKNOWN:Error received from peer  {grpc_message:"Socket closed", grpc_status:14}'
    assert local_cause(Ended(14, "Socket closed", told, (), ())) is None


def test_what_grpcio_s_own_part_ends_is_the_application_s() -> None:
    for debug in (None, ""):
        assert local_cause(Ended(13, "Exception serializing request!", debug, (), ())) is Local.APPLICATION


def test_answers() -> None:
    good, _ = judge(1, Ended(0, "", "", (("a", "1"),), ()), answered=False, now=5.0, wake_at=9.0)
    assert isinstance(good, Headers)
    assert (good.status, good.end) == (200, True)
    assert ("a", "1") in list(good.headers)
    ended = Ended(14, "bu%sy", "UNAVAILABLE:busy", (), (("t", "2"),))
    alone, _ = judge(1, ended, answered=False, now=5.0, wake_at=9.0)
    assert isinstance(alone, Headers)
    assert alone.end
    assert list(alone.headers)[1:] == [("grpc-status", "14"), ("grpc-message", "bu%25sy"), ("t", "2")]
    for initial, answered, message in (((("a", "1"),), False, False), ((), True, False), ((), False, True)):
        ended = Ended(14, "busy", "UNAVAILABLE:busy", initial, (), message=message)
        apart, _ = judge(1, ended, answered=answered, now=5.0, wake_at=9.0)
        assert isinstance(apart, Headers)
        assert not apart.end


def test_an_answer_of_http() -> None:
    ended = Ended(14, "Received http2 header with status: 503", "UNAVAILABLE:...", (), (("a", "1"),))
    event, _ = judge(1, ended, answered=False, now=5.0, wake_at=9.0)
    assert isinstance(event, Headers)
    assert (event.status, list(event.headers)) == (503, [("a", "1")])


def test_deadlines() -> None:
    ended = Ended(4, "Stream removed (Deadline Exceeded)", "DEADLINE_EXCEEDED:...", (), ())
    event, now = judge(1, ended, answered=False, now=9.0 - 0.001, wake_at=9.0)
    assert isinstance(event, Timer)
    assert now == 9.0
    early, _ = judge(1, ended, answered=False, now=5.0, wake_at=9.0)
    assert isinstance(early, Cancelled)  # a deadline of the surroundings: the application's
    peer = Ended(4, "too slow", "DEADLINE_EXCEEDED:too slow", (), ())
    faster, now = judge(1, peer, answered=False, now=9.0 - 0.001, wake_at=9.0)
    assert isinstance(faster, Timer)
    own, _ = judge(1, peer, answered=False, now=5.0, wake_at=9.0)
    assert isinstance(own, Headers)


def test_failures() -> None:
    for code, sent in ((7, False), (2, True)):
        text = f"Stream removed (RST_STREAM (Received RST_STREAM with error code {code}))"
        event, _ = judge(3, Ended(14, text, text, (), ()), answered=False, now=5.0, wake_at=9.0)
        assert isinstance(event, Failed)
        assert (event.attempt, event.bytes_sent) == (3, sent)


def test_the_end_of_an_accepted_stream() -> None:
    good, _ = end_of_stream(1, Ended(0, "", "", (), (("t", "2"),)), now=5.0, wake_at=9.0)
    assert isinstance(good, End)
    assert good.trailers == [("grpc-status", "0"), ("t", "2")]
    text = "Stream removed (Socket closed)"
    broken, _ = end_of_stream(1, Ended(14, text, text, (), ()), now=5.0, wake_at=9.0)
    assert isinstance(broken, Failed)


@given(st.text())
def test_messages_survive_the_wire(text: str) -> None:
    encoded = encode_message(text)
    assert encoded.isascii()
    assert decode_message(encoded) == text


@given(st.lists(st.tuples(st.sampled_from(["a", "b-bin", "c"]), st.binary(max_size=6))))
def test_metadata_survives_the_engine(pairs: list[tuple[str, bytes]]) -> None:
    metadata = [(key, value if key.endswith("-bin") else value.hex()) for key, value in pairs]
    assert list(to_metadata(to_headers(metadata))) == metadata
