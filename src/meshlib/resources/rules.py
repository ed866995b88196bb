"""The limits that Envoy's API states of its own fields (protoc-gen-validate), checked as Envoy checks them.

The descriptors carry the rules as options (`validate.rules`, `validate.required`): the least length of a name, the range of a
number, which enum values are known, that one of several fields must be there. `check` walks a message with them and raises
ResourceError at the first field that breaks one. For each message type the rules become a list of functions once.

Every duration must also be one that Envoy can hold: not negative, less than 2**63 nanoseconds.

A rule on a scalar holds for its default too (an empty name breaks `min_len`), as in Envoy; within a oneof only when it is set.
The content of an Any is another message with its own walk.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from meshlib import proto
from meshlib.errors import ResourceError
from meshlib.proto.pool import pool

__all__ = ["check"]

Check = Callable[[Any], str | None]
"""What is wrong with a value, None when it is right. Raises ResourceError for a place within it."""

Rule = Callable[[Any], None]
"""Raises ResourceError when a message breaks the rule, whether the field is set or not."""

_Plan = tuple[list[Rule], dict[str, Check]]
"""What is checked always, and what is checked of the fields that are set, by field name."""

NOT_CHECKED = frozenset(
    # The prefix of Envoy's statistics of a listener. Control planes for gRPC leave it out of an api_listener, and
    # gRPC takes that.
    ("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.stat_prefix",)
)
"""Fields whose rules mean nothing to a client."""

_MAX_SECONDS = 9223372036  # Envoy keeps durations as signed 64-bit nanoseconds

_plans: dict[str, _Plan] = {}


def check(message: proto.Message, path: str = "") -> None:
    """Raise ResourceError for the first field of message, at any depth, that breaks a rule of the API.

    path: where message stands, which is put before the path of the field.
    """
    try:
        _check(message)
    except ResourceError as error:
        raise ResourceError(_join(path, error.path), error.reason) from None


def _check(message: Any) -> None:
    plan = _plans.get(message.DESCRIPTOR.full_name)
    always, when_set = _compile(message.DESCRIPTOR) if plan is None else plan
    for rule in always:
        rule(message)
    if when_set:
        for field, value in message.ListFields():
            name = field.name
            if name in when_set:
                _apply(when_set[name], value, name)


def _apply(check: Check, value: Any, place: str) -> None:
    try:
        wrong = check(value)
    except ResourceError as error:
        raise ResourceError(_join(place, error.path), error.reason) from None
    if wrong is not None:
        raise ResourceError(place, wrong)


def _compile(descriptor: Any) -> _Plan:
    rules_of = pool().FindExtensionByName("validate.rules")
    required = pool().FindExtensionByName("validate.required")
    always: list[Rule] = [
        _one_of(oneof.name, [field.name for field in oneof.fields])
        for oneof in descriptor.oneofs
        if _options(oneof, "google.protobuf.OneofOptions").Extensions[required]
    ]
    when_set: dict[str, Check] = {}
    for field in descriptor.fields:
        if field.full_name in NOT_CHECKED:
            continue
        rules = _options(field, "google.protobuf.FieldOptions").Extensions[rules_of]
        check = _field(field, rules)
        if check is not None:
            when_set[field.name] = check
        if field.containing_oneof is None:
            always.extend(_when_unset(field, rules, check))
    return _plans.setdefault(descriptor.full_name, (always, when_set))


def _when_unset(field: Any, rules: Any, check: Check | None) -> list[Rule]:
    """Whether the field may be left out: a message that is required, a list or a scalar whose default is wrong."""
    kind = rules.WhichOneof("type")
    name: str = field.name
    if field.message_type is not None and not _is_repeated(field):
        if rules.message.required or (kind in ("duration", "any") and getattr(rules, kind).required):
            return [lambda message: None if message.HasField(name) else _refuse(name, "must be given")]
        return []
    wrong = None if check is None else check(() if _is_repeated(field) else field.default_value)
    if wrong is None:
        return []
    return [lambda message: None if getattr(message, name) else _refuse(name, wrong)]


def _refuse(path: str, reason: str) -> None:
    raise ResourceError(path, reason)


def _options(descriptor: Any, name: str) -> Any:
    """The options of a descriptor in a class that knows the extensions of the private pool."""
    return proto.parse(name, descriptor.GetOptions().SerializeToString())


def _one_of(name: str, names: list[str]) -> Rule:
    reason = f"one of {', '.join(names)} must be given" if len(names) > 1 else f"{names[0]} must be given"
    return lambda message: None if message.WhichOneof(name) else _refuse("", reason)


def _field(field: Any, rules: Any) -> Check | None:
    kind: str | None = rules.WhichOneof("type")
    rule: Any = getattr(rules, kind) if kind else None
    if _is_map(field):
        return _map(field, rule)
    if _is_repeated(field):
        return _repeated(field, rule)
    return _value(field, kind, rule, skip=rules.message.skip)


def _repeated(field: Any, rules: Any) -> Check | None:
    least = rules.min_items if rules is not None else 0
    most = rules.max_items if rules is not None and rules.max_items else None
    unique = rules is not None and rules.unique
    item_rules = rules.items if rules is not None else None
    kind = item_rules.WhichOneof("type") if item_rules is not None else None
    skip = item_rules is not None and item_rules.message.skip
    check = _value(field, kind, getattr(item_rules, kind) if kind else None, skip=skip)
    if not least and most is None and not unique and check is None:
        return None

    def broken(items: Any) -> str | None:
        if len(items) < least:
            return f"must have at least {least} {'entry' if least == 1 else 'entries'}"
        if most is not None and len(items) > most:
            return f"{len(items)} entries are more than {most}"
        if unique and len(set(items)) != len(items):
            return "an entry stands twice"
        if check is not None:
            for index, item in enumerate(items):
                try:
                    wrong = check(item)
                except ResourceError as error:
                    raise ResourceError(_join(f"[{index}]", error.path), error.reason) from None
                if wrong is not None:
                    raise ResourceError(f"[{index}]", wrong)
        return None

    return broken


def _map(field: Any, rules: Any) -> Check | None:
    least = rules.min_pairs if rules is not None else 0
    check = _value(field.message_type.fields_by_name["value"], None, None, skip=False)
    if not least and check is None:
        return None

    def broken(items: Any) -> str | None:
        if len(items) < least:
            return f"must have at least {least} entries"
        if check is not None:
            for key in sorted(items):
                _apply(check, items[key], f'["{key}"]')
        return None

    return broken


def _value(field: Any, kind: str | None, rules: Any, *, skip: bool) -> Check | None:
    """The check of one value of a field: a scalar, a wrapper, a duration or a message."""
    descriptor = field.message_type
    if descriptor is None:
        return _scalar_check(field, kind, rules)
    if descriptor.full_name == "google.protobuf.Duration":
        return _duration(
            None if rules is None else _limits({k: _seconds(v) for k, v in _set(rules, "required").items()})
        )
    if "value" in descriptor.fields_by_name and descriptor.full_name.startswith("google.protobuf."):
        inner = None if rules is None else _scalar_check(descriptor.fields_by_name["value"], kind, rules)
        return None if inner is None else lambda value: inner(value.value)
    if skip or descriptor.full_name.startswith("google.protobuf."):
        return None
    return _check


def _scalar_check(field: Any, kind: str | None, rules: Any) -> Check | None:
    if rules is None:
        return None
    if kind in ("string", "bytes"):
        return _text(rules)
    if kind == "enum":
        known = set(field.enum_type.values_by_number) if rules.defined_only else None
        excluded = set(rules.not_in)
        return lambda value: (
            f"unknown value {value}"
            if (known is not None and value not in known) or value in excluded
            else None
        )
    if kind == "bool":
        return lambda value: None if value == rules.const else f"must be {str(rules.const).lower()}"
    return _limits(_set(rules))


def _duration(limits: Check | None) -> Check:
    def broken(value: Any) -> str | None:
        if value.seconds < 0 or value.nanos < 0:
            return "a duration must not be negative"
        if value.seconds >= _MAX_SECONDS or value.nanos > 999_999_999:
            return "the duration is out of range"
        return None if limits is None else limits(_seconds(value))

    return broken


def _limits(bounds: dict[str, Any]) -> Check | None:
    tests: list[tuple[Callable[[Any], bool], str]] = []
    if "gt" in bounds:
        tests.append((lambda value: value <= bounds["gt"], f"must be greater than {bounds['gt']:g}"))
    if "gte" in bounds:
        tests.append((lambda value: value < bounds["gte"], f"must be at least {bounds['gte']:g}"))
    if "lt" in bounds:
        tests.append((lambda value: value >= bounds["lt"], f"must be less than {bounds['lt']:.17g}"))
    if "lte" in bounds:
        tests.append((lambda value: value > bounds["lte"], f"must be at most {bounds['lte']:.17g}"))
    if not tests:
        return None
    return lambda value: next((reason for broken, reason in tests if broken(value)), None)


def _text(rules: Any) -> Check:
    bounds = _set(rules)
    pattern = re.compile(rules.pattern, re.ASCII) if bounds.get("pattern") else None
    allowed = set(getattr(rules, "in"))

    def broken(value: str | bytes) -> str | None:
        if not value and bounds.get("ignore_empty"):
            return None
        size = len(value)
        octets = len(value.encode("utf-8", "surrogatepass")) if isinstance(value, str) else size
        if size < bounds.get("min_len", 0) or octets < bounds.get("min_bytes", 0):
            return "must not be empty" if not value else f"{value!r} is too short"
        if size > bounds.get("max_len", size) or octets > bounds.get("max_bytes", octets):
            return f"{octets} bytes are too long"
        if isinstance(value, str):
            if bounds.get("well_known_regex") and any(char in value for char in "\0\r\n"):
                return "must not hold a NUL, a carriage return or a line feed"
            if pattern is not None and not pattern.search(value):
                return f"{value!r} does not match {rules.pattern}"
            if not value.startswith(bounds.get("prefix", "")) or not value.endswith(bounds.get("suffix", "")):
                return f"{value!r} must begin with {rules.prefix!r} and end with {rules.suffix!r}"
        if allowed and value not in allowed:
            return f"{value!r} is not one of {', '.join(sorted(map(str, allowed)))}"
        return None

    return broken


def _set(rules: Any, *without: str) -> dict[str, Any]:
    return {field.name: value for field, value in rules.ListFields() if field.name not in without}


def _seconds(duration: Any) -> float:
    seconds: float = duration.seconds + duration.nanos / 1e9
    return seconds


def _is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _is_repeated(field: Any) -> bool:
    known: bool | None = getattr(field, "is_repeated", None)  # protobuf before 6.31 has only the label
    return field.label == field.LABEL_REPEATED if known is None else known


def _join(path: str, rest: str) -> str:
    return f"{path}.{rest}" if path and rest and not rest.startswith("[") else path + rest
