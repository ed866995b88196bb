"""The straight line through a blocking unary call: one attempt, on a connection that is there, whose response is accepted.

That is all there is to most calls. What they run through after each system call is far away in memory, so this is one function
with few objects; whatever else happens to a call is `BlockingCall`'s, which takes over where the line ends.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

from meshlib.engine.actions import Start
from meshlib.engine.call import Call
from meshlib.engine.engine import Engine
from meshlib.engine.events import CANCELLED
from meshlib.engine.loop import ACCEPTED
from meshlib.errors import UnknownHost
from meshlib.transport.grpc.judge import PREFIX
from meshlib.transport.grpc.request import known_headers, outgoing_metadata, with_extra
from meshlib.transport.grpc.sync_call import SucceededCall
from meshlib.transport.grpc.sync_unary import BlockingCall
from meshlib.transport.grpc.waker import Waker

if TYPE_CHECKING:
    import grpc

    from meshlib.transport.grpc.metadata import Metadata

__all__ = ["call_blocking"]


def call_blocking(
    method: Any,
    request: Any,
    timeout: float | None,
    metadata: Metadata | None,
    credentials: grpc.CallCredentials | None,
    wait_for_ready: bool | None,
    compression: grpc.Compression | None,
    whole: bool,
) -> Any:
    """The response, or with `whole` the response and its call object. Raises what a blocking call of grpcio raises.

    method: a `sync_channel.Method`. The others are the application's arguments.
    """
    channel = method.channel
    opened = channel.opened()
    engine: Engine = opened[0]
    monotonic = engine.clock.monotonic
    waker = Waker()
    call: Call = engine.rpc(
        channel.target,
        channel.authority,
        method.path,
        known_headers(metadata),
        channel.channel_id,
        None if metadata else method.likeness,
        waker.wake,
        timeout,
        bool(wait_for_ready),
        channel.dialect,
    )
    deadline = call.caller_deadline
    start: Start | None = None
    receipt: Any = None
    inner: Any = None
    wake_at = inf
    try:
        actions = call.begin(monotonic())
        if len(actions) == 1 and compression is None:
            first = actions[0]
            if isinstance(first, Start) and first.permitted and not call.hedges:
                lean = method.lane(first)
                if lean is not None:
                    inner = lean.inner
                    start = first
                    wake_at = call.wake_at
                    limit, until = None, wake_at
                    if deadline is not None:
                        limit, until = wake_at - monotonic(), inf
                    try:
                        receipt = lean(request, limit, outgoing_metadata(first, metadata), credentials, until)
                    finally:
                        inner.leave()
                    if receipt is not None and receipt.number == 0:
                        if call.observed:
                            received = receipt.received
                            call.account(
                                len(receipt.sent) + PREFIX,
                                0 if received is None else len(received) + PREFIX,
                                messages=(1, 0 if received is None else 1),
                                trailers=receipt.trailers,
                            )
                        actions = call.succeed(first.attempt, receipt, monotonic())
                        if actions is ACCEPTED:
                            if whole:
                                return receipt.response, SucceededCall(receipt, call.info, None)
                            return receipt.response
    except BaseException as error:
        if call.observed:
            call.error = error
        call.handle(CANCELLED, monotonic())
        raise
    rest = BlockingCall(
        method, opened[1], monotonic, call, waker, request, metadata, credentials, compression, deadline
    )
    try:
        if start is None or receipt is None:
            answer = rest.go_on(actions)
        else:
            answer = rest.go_on_after(start, inner, receipt, wake_at, actions)
    except UnknownHost:
        plain = method.without_mesh()
        if plain is None:
            raise
        metadata = with_extra(metadata, call.headers_to_add)
        if whole:
            plain = plain.with_call
        return plain(request, timeout, metadata, credentials, wait_for_ready, compression)
    return answer if whole else answer[0]
