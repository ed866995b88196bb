"""A gRPC call as data: what a request of a case is when it names an ``rpc``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from conformance.upstream.grpc_script import parse_messages

if TYPE_CHECKING:
    from conformance.reader import Fields

ARITIES = ("unary-unary", "unary-stream", "stream-unary", "stream-stream")
_DEFAULT = (b"hello",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc:
    """How a gRPC request is made; method and metadata are its ``path`` and ``headers``.

    ``timeout``: seconds, the caller's deadline. ``cancel_after``: seconds until the caller cancels, or with
    ``cancel_at`` after that many response messages. ``gap``: seconds before each request message after the first.
    ``paced``: each request message but the first waits for a response message.
    """

    arity: str = "unary-unary"
    messages: tuple[bytes, ...] = _DEFAULT
    timeout: float | None = None
    wait_for_ready: bool | None = None
    cancel_after: float | None = None
    cancel_at: int | None = None
    gap: float = 0.0
    paced: bool = False

    @property
    def streams_requests(self) -> bool:
        """Whether the caller sends a stream."""
        return self.arity.startswith("stream-")

    @property
    def streams_responses(self) -> bool:
        """Whether the caller gets a stream."""
        return self.arity.endswith("-stream")


def parse_rpc(fields: Fields) -> Rpc:
    """Take the fields that only a gRPC request has."""
    rpc = Rpc(
        arity=fields.choice("arity", ARITIES, "unary-unary"),
        messages=parse_messages(fields, "messages", _DEFAULT),
        timeout=fields.seconds("timeout") if fields.has("timeout") else None,
        wait_for_ready=fields.flag("wait_for_ready") if fields.has("wait_for_ready") else None,
        cancel_after=fields.seconds("cancel_after") if fields.has("cancel_after") else None,
        cancel_at=fields.integer("cancel_at", 0) if fields.has("cancel_at") else None,
        gap=fields.seconds("gap"),
        paced=fields.flag("paced"),
    )
    if not rpc.streams_requests and len(rpc.messages) != 1:
        raise fields.error(f"{rpc.arity} sends exactly one message", "messages")
    if rpc.cancel_at is not None and not rpc.streams_responses:
        raise fields.error("counts the messages of a stream of responses", "cancel_at")
    return rpc
