"""What may stand in the parentheses of an operator (`%PATH(NQ:ORIG)%`), where Envoy looks at it. Asked of Envoy 1.40."""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = ["COMMON_DURATION_UNITS", "GRPC_STATUS_FORMS", "check_argument"]

COMMON_DURATION_UNITS = {"ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
"""Units of COMMON_DURATION: how many there are in a second."""

GRPC_STATUS_FORMS = ("CAMEL_STRING", "SNAKE_STRING", "NUMBER")
"""The first one is the default."""

_NEWLINE = re.compile(r"%[-_0^#]*[1-9]*[EO]?n")
_METADATA = (
    "CLUSTER", "DYNAMIC", "LISTENER", "LISTENER_FILTER_CHAIN", "ROUTE", "UPSTREAM_HOST", "VIRTUAL_HOST",
)  # fmt: skip


def check_argument(name: str, argument: str) -> str | None:
    """What is wrong with the argument of the operator of this name; None when Envoy takes it."""
    check = _CHECKS.get(name)
    return None if check is None else check(argument)


def _options(*allowed: tuple[str, ...]) -> Callable[[str], str | None]:
    """Options with colons between them, each one of its own list or empty; what comes after them is not looked at."""

    def check(argument: str) -> str | None:
        for given, known in zip(argument.split(":"), allowed):
            if given and given not in known:
                return f"{given!r} is none of {', '.join(known)}"
        return None

    return check


def _time(argument: str) -> str | None:
    return "the format holds a newline" if _NEWLINE.search(argument) else None


def _common_duration(argument: str) -> str | None:
    parts = argument.split(":")
    if not 2 <= len(parts) <= 3:
        return "must be START:END or START:END:UNIT"
    if len(parts) == 3 and parts[2] not in COMMON_DURATION_UNITS:
        return f"{parts[2]!r} is none of {', '.join(COMMON_DURATION_UNITS)}"
    return None


def _filter_state(argument: str) -> str | None:
    key, _, rest = argument.partition(":")
    form, _, rest = rest.partition(":")
    if not key:
        return "the key must not be empty"
    if form not in ("", "PLAIN", "TYPED", "FIELD"):
        return f"{form!r} is none of PLAIN, TYPED, FIELD"
    if (form == "FIELD") is not bool(rest.partition(":")[0]):
        return "FIELD and the name of a field belong together"
    return None


def _metadata(argument: str) -> str | None:
    kind = argument.partition(":")[0]
    return None if kind in _METADATA else f"{kind!r} is none of {', '.join(_METADATA)}"


_CHECKS: dict[str, Callable[[str], str | None]] = {
    "COMMON_DURATION": _common_duration,
    "FILTER_STATE": _filter_state,
    "GRPC_STATUS": lambda argument: (
        None
        if argument in ("", *GRPC_STATUS_FORMS)
        else f"{argument!r} is none of {', '.join(GRPC_STATUS_FORMS)}"
    ),
    "METADATA": _metadata,
    "PATH": _options(("WQ", "NQ"), ("ORIG", "PATH", "ORIG_OR_PATH")),
    "QUERY_PARAMS": lambda argument: (
        None if argument in ("", "ORIG", "DECODED") else f"{argument!r} is none of ORIG, DECODED"
    ),
    "REQUESTED_SERVER_NAME": _options(
        ("SNI_ONLY", "SNI_FIRST", "HOST_FIRST"), ("ORIG_OR_HOST", "HOST", "ORIG")
    ),
    "UPSTREAM_FILTER_STATE": _filter_state,
    **dict.fromkeys(
        (
            "DOWNSTREAM_PEER_CERT_V_END",
            "DOWNSTREAM_PEER_CERT_V_START",
            "EMIT_TIME",
            "EMIT_TIME_LOCAL",
            "START_TIME",
            "START_TIME_LOCAL",
            "UPSTREAM_PEER_CERT_V_END",
            "UPSTREAM_PEER_CERT_V_START",
        ),
        _time,
    ),
}
