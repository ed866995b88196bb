"""What a gRPC upstream does: the data of a case, parsed. Statuses are gRPC's, told by name or by number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conformance.reader import Fields

CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
ACTIONS = ("respond", "fin", "rst", "goaway", "garbage", "hang")
MOMENTS = ("start", "headers", "messages")
FORMS = ("auto", "trailers-only", "headers")


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcAnswer:
    """One answer of a gRPC upstream.

    The answer begins when ``wait`` request messages have come (None: when the caller half-closes). ``echo`` sends each request
    message back as it comes. ``messages`` go out ``gap`` seconds apart, the trailers ``linger`` seconds after the last. ``form``
    ``auto`` is trailers-only for an error without messages and initial metadata. At ``moment`` (before anything, after the
    headers, after the messages) the ``action`` takes place; ``rst`` resets the stream with ``reset``, an HTTP/2 error code.
    ``code`` None leaves grpc-status out.
    """

    action: str = "respond"
    moment: str = "start"
    reset: str = "INTERNAL_ERROR"
    code: int | None = 0
    message: str = ""
    initial: tuple[tuple[str, str], ...] = ()
    trailing: tuple[tuple[str, str], ...] = ()
    messages: tuple[bytes, ...] = ()
    echo: bool = False
    trailers_only: bool = False
    wait: int | None = None
    gap: float = 0.0
    linger: float = 0.0
    content_type: str = "application/grpc"


def parse_code(fields: Fields, key: str) -> int | None:
    """A status by its name or number; ``none`` is None."""
    value = fields.take(key, 0)
    if value == "none":
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if value in CODES:
        return CODES.index(value)
    raise fields.error(f"{value!r} is not a gRPC status", key)


def parse_messages(fields: Fields, key: str, default: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Messages: a list of strings, or ``{count: N, size: BYTES}``."""
    if not fields.has(key):
        return default
    raw = fields.take(key)
    if isinstance(raw, dict):
        try:
            sized = _sized(raw)
        except (TypeError, ValueError) as error:
            raise fields.error("must be a list of strings or {count: N, size: BYTES}", key) from error
        return sized
    if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
        raise fields.error("must be a list of strings or {count: N, size: BYTES}", key)
    return tuple(item.encode() for item in raw)


def _sized(raw: dict[str, int]) -> tuple[bytes, ...]:
    if set(raw) - {"count", "size"}:
        raise ValueError(raw)
    return (b"x" * int(raw.get("size", 1)),) * int(raw.get("count", 1))


def parse_answer(name: str, fields: Fields) -> tuple[GrpcAnswer, int, float]:
    """Read one answer of the upstream ``name``: the answer, its HTTP status and its delay."""
    code = parse_code(fields, "code")
    echo = fields.flag("echo")
    initial = fields.pairs("initial")
    plain = (name.encode(),) if code == 0 and not echo else ()
    messages = parse_messages(fields, "messages", plain)
    form = fields.choice("form", FORMS, "auto")
    if form == "trailers-only" and (messages or echo):
        raise fields.error("has no room for messages", "form")
    action = fields.choice("action", ACTIONS, "respond")
    moment = fields.choice("moment", MOMENTS, "start")
    if moment != "start" and action == "respond":
        raise fields.error("is the moment of an action other than respond", "moment")
    trailers_only = form == "trailers-only" or (
        form == "auto" and not (messages or echo or initial or code == 0 or moment != "start")
    )
    trailing = fields.pairs("trailing")
    if fields.has("pushback"):
        trailing += (("grpc-retry-pushback-ms", fields.text("pushback")),)
    answer = GrpcAnswer(
        action=action,
        moment=moment,
        reset=fields.text("reset", "INTERNAL_ERROR"),
        code=code,
        message=fields.text("message"),
        initial=initial,
        trailing=trailing,
        messages=messages,
        echo=echo,
        trailers_only=trailers_only,
        wait=fields.integer("wait", 0) if fields.has("wait") else None,
        gap=fields.seconds("gap"),
        linger=fields.seconds("linger"),
        content_type=fields.text("content_type", "application/grpc"),
    )
    status = fields.integer("status", 200, 100)
    delay = fields.seconds("delay")
    fields.close()
    return answer, status, delay
