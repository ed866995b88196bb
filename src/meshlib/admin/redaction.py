"""What must not leave the process by its admin: keys, passwords, tokens.

Envoy marks such fields in its API; the descriptors that meshlib carries have no marks, so fields are known by their names, and
headers by theirs. What can't be read at all (an extension of a type that is not known) is not shown either.
"""

from __future__ import annotations

import base64
import re
from typing import Any
from urllib.parse import unquote_plus

__all__ = ["REDACTED", "is_secret_header", "redact", "safe_path"]

REDACTED = "[redacted]"
_REDACTED_BYTES = base64.b64encode(REDACTED.encode()).decode()

_SECRET_FIELD = re.compile(
    r"(?:^|_)(?:password|passwd|passphrase|secrets?|tokens?|private_?keys?|private_?key_?provider|pkcs12|api_?keys?|credentials?)$"
    r"|^session_ticket_keys$"
)
_SECRET_HEADER = re.compile(
    r"^(?:proxy-)?authorization$|^(?:set-)?cookie$|token|secret|password|api-?key|credential|signature"
)
_SECRET_PARAMETER = re.compile(
    r"token|secret|passw|passphrase|^auth|authorization|api_?-?key|^key$|credential|^sig$|signature|session|^code$|^jwt$",
    re.IGNORECASE,
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def is_secret_header(name: str) -> bool:
    """name: lower-case."""
    return _SECRET_HEADER.search(name) is not None


def redact(value: Any) -> Any:
    """The JSON form of a resource with every secret replaced. What was given stays as it is."""
    if isinstance(value, list):
        return [redact(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _is_header(value):
        return {key: item if key == "key" else _hidden(key, item) for key, item in value.items()}
    if set(value) == {"type_url", "value"} and isinstance(value["value"], str):
        return {"type_url": value["type_url"], "value": REDACTED}
    return {
        key: _hidden(key, item) if _SECRET_FIELD.search(_CAMEL.sub("_", key).lower()) else redact(item)
        for key, item in value.items()
    }


def safe_path(path: str) -> str:
    """A request's path with the values of parameters that seem to be secrets replaced."""
    before, mark, query = path.partition("?")
    if not mark:
        return path
    return before + mark + "&".join(map(_parameter, query.split("&")))


def _parameter(text: str) -> str:
    name, equals, _ = text.partition("=")
    return f"{name}={REDACTED}" if equals and _SECRET_PARAMETER.search(unquote_plus(name)) else text


def _is_header(value: dict[str, Any]) -> bool:
    """A HeaderValue: `{"key": ..., "value": ...}`."""
    key = value.get("key")
    return (
        isinstance(key, str)
        and bool({"value", "raw_value"} & value.keys())
        and value.keys() <= {"key", "value", "raw_value"}
        and is_secret_header(key.lower())
    )


def _hidden(key: str, value: Any) -> Any:
    """The same shape without any text."""
    if isinstance(value, dict):
        return {name: item if name == "@type" else _hidden(name, item) for name, item in value.items()}
    if isinstance(value, list):
        return [_hidden(key, item) for item in value]
    if isinstance(value, str):
        return _REDACTED_BYTES if key in ("inline_bytes", "raw_value") else REDACTED
    return value
