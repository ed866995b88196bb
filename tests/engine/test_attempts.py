"""Success, retries, back-off and what each outcome means, through the engine on a fake clock."""

from __future__ import annotations

import pytest

from meshlib.errors import (
    CircuitFull,
    ConnectFailed,
    ConnectTimedOut,
    NoCluster,
    NoHealthyEndpoint,
    NoRoute,
    ProtocolViolation,
    StreamReset,
    UnknownHost,
)
from meshlib.policy.failure import FailureKind
from meshlib.resources.cluster import DiscoveryType
from meshlib.resources.listener import Listener
from meshlib.resources.route import DirectResponse, RateLimitedBackOff, Redirect, ResetHeader
from tests.engine.builders import (
    NO_BACK_OFF,
    cluster,
    forward,
    listener,
    outlier,
    retry,
    route_config,
    thresholds,
)
from tests.engine.wire import FakeMesh, request


def test_the_success_path_is_two_events() -> None:
    mesh = FakeMesh(cluster())
    mesh.call().answer(200)  # leaves an idle connection behind
    call = mesh.call()
    assert call.log == ["Start(1)"]
    call.answer(204)
    assert call.log == ["Start(1)", "Accept(1)"]
    assert (call.status, call.flags, call.details) == (204, "-", "via_upstream")
    assert call.headers == ()
    info = call.core.info
    assert [(each.endpoint, each.status, each.failure) for each in info.attempts] == [
        ("10.0.0.1:80", 204, None)
    ]
    assert (info.cluster, info.route, info.virtual_host) == ("a", "0", "v")
    assert mesh.held() == {}
    assert call.core.wake_at == float("inf")
    assert mesh.stat("upstream_rq_total") == 2
    assert mesh.stat("upstream_rq_completed") == 2
    assert mesh.stat("upstream_rq_2xx") == 2


def test_a_body_holds_its_permit_until_its_end() -> None:
    mesh = FakeMesh(cluster())
    call = mesh.call()
    call.answer(200, end=False)
    assert mesh.held() == {"a.requests": 1, "a.10.0.0.1:80": 1}
    call.end()
    assert mesh.held() == {}


@pytest.mark.parametrize(
    ("retry_on", "status", "again"),
    [
        ("5xx", 500, True),
        ("5xx", 503, True),
        ("5xx", 404, False),
        ("gateway-error", 500, False),
        ("gateway-error", 502, True),
        ("reset", 503, False),
        ("connect-failure", 503, False),
        ("retriable-4xx", 409, True),
        ("retriable-4xx", 404, False),
    ],
)
def test_statuses_that_are_retried(retry_on: str, status: int, again: bool) -> None:
    mesh = FakeMesh(cluster(), action=forward(retry_policy=retry(retry_on)))
    call = mesh.call()
    call.answer(status)
    assert (call.status is None) is again
    if again:
        call.tick()
        call.answer(200)
        assert (call.status, call.flags) == (200, "-")
        assert [record.status for record in call.core.info.attempts] == [status, 200]
        assert mesh.stat("upstream_rq_retry") == 1
        assert mesh.stat("upstream_rq_retry_success") == 1
    assert mesh.held() == {}


@pytest.mark.parametrize(
    ("retry_on", "kind", "sent", "again"),
    [
        ("5xx", FailureKind.TERMINATED, True, True),
        ("5xx", FailureKind.PROTOCOL_ERROR, True, True),
        ("gateway-error", FailureKind.CONNECT_FAILED, False, True),
        ("reset", FailureKind.CONNECT_TIMEOUT, False, True),
        ("reset-before-request", FailureKind.TERMINATED, True, False),
        ("reset-before-request", FailureKind.TERMINATED, False, True),
        ("connect-failure", FailureKind.CONNECT_TIMEOUT, False, True),
        ("connect-failure", FailureKind.TERMINATED, True, False),
        ("refused-stream", FailureKind.REFUSED_STREAM, True, True),
        ("refused-stream", FailureKind.REMOTE_RESET, True, False),
        ("retriable-4xx", FailureKind.CONNECT_FAILED, False, False),
    ],
)
def test_resets_that_are_retried(retry_on: str, kind: FailureKind, sent: bool, again: bool) -> None:
    mesh = FakeMesh(cluster(), action=forward(retry_policy=retry(retry_on)))
    call = mesh.call()
    call.fail(kind, sent=sent)
    assert (call.error is None) is again
    if again:
        call.tick()
        call.answer(200)
        assert call.status == 200
    assert mesh.held() == {}


def test_the_waits_double_and_are_capped() -> None:
    """Envoy: uniform in [0, min(25 ms * 2**(N-1), 250 ms)); retry N was seen to wait up to 27/51/100/197/252/250 ms."""
    longest = [0.0] * 6
    for seed in range(150):
        mesh = FakeMesh(cluster(), action=forward(retry_policy=retry("5xx", times=6)), seed=seed)
        call = mesh.call()
        for number in range(6):
            call.answer(503)
            longest[number] = max(longest[number], call.tick())
        call.answer(200)
    for seen, limit in zip(longest, (0.025, 0.05, 0.1, 0.2, 0.25, 0.25)):
        assert 0.8 * limit < seen <= limit


def test_a_response_header_can_say_how_long_to_wait() -> None:
    limited = RateLimitedBackOff(reset_headers=(ResetHeader(name="retry-after"),))
    policy = retry("5xx", rate_limited_back_off=limited)
    mesh = FakeMesh(cluster(), action=forward(retry_policy=policy))
    call = mesh.call()
    call.answer(503, [("retry-after", "2")])
    assert 2.0 <= call.tick() < 3.0


def test_retries_used_up() -> None:
    mesh = FakeMesh(cluster(), action=forward(retry_policy=retry("5xx", times=2, back_off=NO_BACK_OFF)))
    call = mesh.call()
    for _ in range(2):
        call.answer(503)
        call.tick()
    call.answer(500)
    assert (call.status, call.flags, call.details) == (500, "URX", "via_upstream")
    assert mesh.stat("upstream_rq_retry_limit_exceeded") == 1
    assert mesh.stat("upstream_rq_retry_success") == 0
    assert mesh.stat("upstream_rq_5xx") == 1, "only the response that was passed on counts"
    assert mesh.held() == {}


def test_a_retry_that_ends_in_what_is_not_retried_is_a_success() -> None:
    mesh = FakeMesh(cluster(), action=forward(retry_policy=retry("connect-failure", times=2)))
    call = mesh.call()
    call.fail(FailureKind.CONNECT_FAILED, sent=False)
    call.tick()
    call.answer(500)
    assert (call.status, call.flags) == (500, "-")
    assert mesh.stat("upstream_rq_retry_success") == 1


def test_a_body_that_is_gone_is_not_sent_again() -> None:
    mesh = FakeMesh(cluster(), action=forward(retry_policy=retry("5xx")))
    call = mesh.call(replayable=lambda: False)
    call.answer(503)
    assert (call.status, call.flags) == (503, "-")


def test_no_permit_for_a_retry_passes_the_response_on() -> None:
    mesh = FakeMesh(
        cluster(circuit_breakers=thresholds(max_retries=1)),
        action=forward(retry_policy=retry("5xx", times=3)),
    )
    first, second = mesh.call(), mesh.call()
    first.answer(503)
    second.answer(503)
    assert (second.status, second.flags, second.details) == (503, "UO", "via_upstream")
    assert mesh.stat("upstream_rq_retry_overflow") == 1
    first.tick()
    first.answer(503)
    assert first.log[-1] == "CancelAttempt(2)", "its own permit serves the next retry too"
    first.tick()
    first.answer(200)
    assert first.status == 200
    assert mesh.held() == {}


def test_a_retry_may_go_elsewhere() -> None:
    mesh = FakeMesh(cluster(hosts=2), action=forward(retry_policy=retry("5xx")))
    call = mesh.call()
    call.answer(503)
    call.tick()
    assert call.starts[0].endpoint is not call.starts[1].endpoint


def test_a_retry_sees_what_was_published_in_the_meantime() -> None:
    mesh = FakeMesh(cluster(), action=forward(retry_policy=retry("5xx")))
    call = mesh.call()
    call.answer(503)
    mesh.publish(cluster("b"))
    call.tick()
    assert isinstance(call.error, NoCluster)
    assert mesh.held() == {}


FAILURES = [
    (FailureKind.CONNECT_FAILED, ConnectFailed, 503, "UF", "remote connection failure"),
    (FailureKind.CONNECT_TIMEOUT, ConnectTimedOut, 503, "UF", "connection timeout"),
    (FailureKind.TERMINATED, StreamReset, 503, "UC", "connection termination"),
    (FailureKind.REMOTE_RESET, StreamReset, 503, "UR", "remote reset"),
    (FailureKind.PROTOCOL_ERROR, ProtocolViolation, 502, "UPE", "protocol error"),
]


@pytest.mark.parametrize(("kind", "error", "status", "flag", "text"), FAILURES)
@pytest.mark.parametrize("retried", [False, True])
def test_the_replies_to_a_reset(
    kind: FailureKind, error: type[Exception], status: int, flag: str, text: str, retried: bool
) -> None:
    action = forward(retry_policy=retry("5xx")) if retried else forward()
    mesh = FakeMesh(cluster(), action=action)
    call = mesh.call()
    if retried:
        call.fail(kind)
        call.tick()
    call.fail(kind)
    assert type(call.error) is error
    again = "retried and the latest " if retried else ""
    body = f"upstream connect error or disconnect/reset before headers. {again}reset reason: {text}"
    reply = call.error.local_reply
    assert reply is not None
    assert (reply.status, reply.body) == (status, body.encode())
    assert reply.headers == (("content-length", str(len(body))), ("content-type", "text/plain"))
    assert call.flags == ("URX," if retried else "") + flag
    assert call.details == f"upstream_reset_before_response_started{{{text.replace(' ', '_')}}}"
    assert len(call.error.attempts) == 1 + retried
    assert mesh.held() == {}


def test_the_reason_of_a_refused_connection_is_in_the_details() -> None:
    call = FakeMesh(cluster()).call()
    call.fail(FailureKind.CONNECT_FAILED, sent=False, reason="delayed connect error: Connection refused")
    assert call.details == (
        "upstream_reset_before_response_started"
        "{remote_connection_failure|delayed_connect_error:_Connection_refused}"
    )


def test_a_body_that_breaks_off() -> None:
    mesh = FakeMesh(cluster(), action=forward(retry_policy=retry("5xx")))
    call = mesh.call()
    call.answer(200, end=False)
    call.fail(FailureKind.PROTOCOL_ERROR)
    assert isinstance(call.error, ProtocolViolation)
    assert (call.flags, call.details) == ("UPE", "upstream_reset_after_response_started{protocol_error}")
    assert call.log == ["Start(1)", "Connect(1)", "Accept(1)", "Fail"]
    assert mesh.held() == {}


class TestWithoutAnUpstream:
    def test_no_route(self) -> None:
        mesh = FakeMesh(cluster(), listen=listener(route_config(forward(), retry_policy=None)))
        mesh.listen = listener(None)
        mesh.publish()
        call = mesh.call()
        assert isinstance(call.error, NoRoute)
        assert call.error.local_reply is not None
        assert call.error.local_reply.status == 404
        assert call.error.local_reply.headers == (("content-length", "0"),)
        assert (call.flags, call.details) == ("NR", "route_not_found")

    def test_unknown_host(self) -> None:
        mesh = FakeMesh(cluster())
        mesh.publish(listeners={"x:80": _named("x:80"), "y:80": _named("y:80")})
        assert isinstance(mesh.call().error, UnknownHost)

    @pytest.mark.parametrize("code", [503, 404, 500])
    def test_no_cluster(self, code: int) -> None:
        mesh = FakeMesh(cluster(), action=forward("missing", cluster_not_found_response_code=code))
        call = mesh.call()
        assert isinstance(call.error, NoCluster)
        assert call.error.local_reply is not None
        assert call.error.local_reply.status == code
        assert (call.flags, call.details) == ("NC", "cluster_not_found")

    @pytest.mark.parametrize("discovery", [DiscoveryType.STATIC, DiscoveryType.EDS])
    def test_no_endpoints(self, discovery: DiscoveryType) -> None:
        call = FakeMesh(cluster(hosts=0, discovery=discovery)).call()
        assert isinstance(call.error, NoHealthyEndpoint)
        assert call.error.local_reply is not None
        assert (call.error.local_reply.status, call.error.local_reply.body) == (503, b"no healthy upstream")
        assert (call.flags, call.details) == ("UH", "no_healthy_upstream")

    def test_a_direct_response(self) -> None:
        call = FakeMesh(action=DirectResponse(status=418, body=b"tea")).call()
        assert call.reply is not None
        assert (call.reply.status, call.reply.body) == (418, b"tea")
        assert (call.flags, call.details) == ("-", "direct_response")
        assert call.core.info.cluster is None

    def test_a_redirect(self) -> None:
        call = FakeMesh(action=Redirect(host="elsewhere", response_code=308)).call()
        assert call.reply is not None
        assert call.reply.status == 308
        assert ("location", "http://elsewhere/") in call.reply.headers


def _named(name: str) -> Listener:
    return Listener(name=name, http=listener(route_config(forward())).http)


class TestGrpcForm:
    GRPC = (("content-type", "application/grpc"),)

    def test_a_reset(self) -> None:
        call = FakeMesh(cluster()).call(request(method="POST", headers=self.GRPC))
        call.fail(FailureKind.CONNECT_TIMEOUT, sent=False)
        assert call.error is not None
        reply = call.error.local_reply
        assert reply is not None
        assert (reply.status, reply.body) == (200, b"")
        assert dict(reply.headers) == {
            "content-type": "application/grpc",
            "grpc-status": "14",
            "grpc-message": "upstream connect error or disconnect/reset before headers. "
            "reset reason: connection timeout",
        }

    def test_an_empty_body_has_no_message(self) -> None:
        call = FakeMesh(cluster(), action=forward("missing", cluster_not_found_response_code=404)).call(
            request(method="POST", headers=self.GRPC)
        )
        assert call.error is not None
        assert call.error.local_reply is not None
        assert dict(call.error.local_reply.headers) == {
            "content-type": "application/grpc",
            "grpc-status": "12",
        }

    def test_overflow_keeps_its_header(self) -> None:
        mesh = FakeMesh(cluster(circuit_breakers=thresholds(max_requests=0)))
        call = mesh.call(request(method="POST", headers=self.GRPC))
        assert isinstance(call.error, CircuitFull)
        assert call.error.local_reply is not None
        assert ("x-envoy-overloaded", "true") in call.error.local_reply.headers

    @pytest.mark.parametrize(
        ("status", "grpc"),
        [(400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (502, 14), (418, 2), (200, 2)],
    )
    def test_the_map_of_statuses(self, status: int, grpc: int) -> None:
        mesh = FakeMesh(action=DirectResponse(status=status, body=b"Z~\n% \x7f"))
        call = mesh.call(request(method="POST", headers=self.GRPC))
        assert call.reply is not None
        assert call.reply.status == 200
        assert dict(call.reply.headers)["grpc-status"] == str(grpc)
        assert dict(call.reply.headers)["grpc-message"] == "Z%7E%0A%25 %7F"


class TestOutlier:
    def test_answers_and_resets_count_until_an_ejection(self) -> None:
        mesh = FakeMesh(cluster(hosts=2, outlier_detection=outlier(consecutive_5xx=3)))
        bad = "10.0.0.1:80"
        while not mesh.state().endpoints.get(bad) or not mesh.state().endpoints[bad].ejected:
            call = mesh.call()
            if call.starts[0].endpoint.key != bad:
                call.answer(200)
            elif len(mesh.state().abandoned) % 2:
                call.fail()
            else:
                call.answer(500)
        assert mesh.stat("outlier_detection.ejections_active") == 1
        for _ in range(6):
            call = mesh.call()
            assert call.starts[0].endpoint.key == "10.0.0.2:80"
            call.answer(200)
        mesh.clock.advance(41)
        keys = set()
        for _ in range(4):
            call = mesh.call()
            keys.add(call.starts[0].endpoint.key)
            call.answer(200)
        assert keys == {bad, "10.0.0.2:80"}
        assert mesh.stat("outlier_detection.ejections_active") == 0

    def test_an_overflow_does_not_count(self) -> None:
        mesh = FakeMesh(
            cluster(outlier_detection=outlier(consecutive_5xx=1), circuit_breakers=thresholds(max_requests=0))
        )
        mesh.call()
        assert mesh.state().endpoints["10.0.0.1:80"].consecutive_5xx == 0

    @pytest.mark.parametrize(
        ("status", "counts"),
        [("14", 1), ("13", 1), ("2", 1), ("4", 1), ("12", 1), ("15", 1), ("0", 0), ("8", 0), ("5", 0)],
    )
    def test_a_grpc_status_in_the_headers_counts_as_the_status_it_stands_for(
        self, status: str, counts: int
    ) -> None:
        mesh = FakeMesh(cluster(outlier_detection=outlier()))
        call = mesh.call(request(method="POST", headers=[("content-type", "application/grpc+proto")]))
        call.answer(200, [("grpc-status", status)])
        assert mesh.state().endpoints["10.0.0.1:80"].consecutive_5xx == counts

    def test_an_ejection_reaches_the_balancer_of_a_newer_push(self) -> None:
        mesh = FakeMesh(cluster(hosts=2, outlier_detection=outlier(consecutive_5xx=1)))
        call = mesh.call()
        mesh.publish(cluster(hosts=2, outlier_detection=outlier(consecutive_5xx=1), connect_timeout=1.0))
        call.answer(500)
        balancer = mesh.engine.program.clusters["a"].balancer
        assert [len(each.healthy) for each in balancer.health] == [1]

    def test_ejections_end_with_outlier_detection(self) -> None:
        mesh = FakeMesh(cluster(outlier_detection=outlier(consecutive_5xx=1)))
        mesh.call().answer(500)
        assert mesh.state().endpoints["10.0.0.1:80"].ejected
        mesh.publish(cluster())
        assert not mesh.state().endpoints["10.0.0.1:80"].ejected
        assert mesh.stat("outlier_detection.ejections_active") == 0
