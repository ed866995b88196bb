"""What an upstream does: the data of a case, parsed."""

from __future__ import annotations

from dataclasses import dataclass

from conformance.reader import Fields
from conformance.upstream.grpc_script import GrpcAnswer, parse_answer

KINDS = ("http", "http2", "grpc", "refused", "blackhole", "silent", "close")
ACTIONS = ("respond", "fin", "rst", "garbage", "hang")


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """One answer.

    ``body`` None stands for the upstream's name. ``delay`` seconds pass before the first byte. ``cut_after`` closes the
    connection after that many body bytes (``cut``: ``fin`` or ``rst``). ``drip`` sends the body byte by byte, one each
    ``drip`` seconds. ``close`` says so and closes after the answer, ``hangup`` closes without a word. ``many_headers`` adds
    that many headers with values of ``header_size`` bytes. Of the rest a ``grpc`` upstream knows ``status`` and ``delay``:
    what it says is in ``grpc``.
    """

    action: str = "respond"
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: str | None = None
    size: int = 0
    echo: bool = False
    chunked: bool = False
    delay: float = 0.0
    drip: float = 0.0
    cut_after: int | None = None
    cut: str = "fin"
    close: bool = False
    hangup: bool = False
    many_headers: int = 0
    header_size: int = 1
    grpc: GrpcAnswer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A behaviour for requests with this path and these headers; a rule with neither matches all."""

    path: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    then: tuple[Behaviour, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """One upstream server.

    ``kind``: ``http``, ``http2`` (prior knowledge), ``grpc``, ``refused`` (nobody listens), ``blackhole`` (the connection
    never comes about), ``silent`` (accepts, never speaks), ``close`` (accepts and closes at once). Answers come from the first
    rule that matches, else from ``responses``, one after the other; the last one repeats, or all of them with ``cycle``.
    With ``per_request`` each request of the case starts the sequence anew, whichever upstream its attempts reach.
    """

    name: str
    kind: str = "http"
    responses: tuple[Behaviour, ...] = (Behaviour(),)
    rules: tuple[Rule, ...] = ()
    cycle: bool = False
    per_request: bool = False


def parse_upstream(name: str, fields: Fields, default: str = "http") -> Upstream:
    """Read one entry of ``upstreams``; ``default`` is its kind where it names none."""
    kind = fields.choice("kind", KINDS, default)

    def parse(entry: Fields) -> Behaviour:
        return _parse_grpc(name, entry) if kind == "grpc" else parse_behaviour(entry)

    rules = []
    for rule in fields.children("when"):
        path, headers = rule.text("path"), rule.pairs("headers")
        then = tuple(parse(entry) for entry in rule.children("then"))
        if not then:
            raise rule.error("needs at least one behaviour", "then")
        rules.append(Rule(path=path, headers=headers, then=then))
        rule.close()
    responses = tuple(parse(entry) for entry in fields.children("responses") or [Fields({}, fields.where)])
    upstream = Upstream(
        name=name,
        kind=kind,
        responses=responses,
        rules=tuple(rules),
        cycle=fields.flag("cycle"),
        per_request=fields.flag("per_request"),
    )
    fields.close()
    return upstream


def parse_behaviour(fields: Fields) -> Behaviour:
    """Read one answer."""
    body = fields.take("body")
    if body is not None and not isinstance(body, str):
        raise fields.error("must be a string", "body")
    cut_after = fields.integer("cut_after", 0) if fields.has("cut_after") else None
    behaviour = Behaviour(
        action=fields.choice("action", ACTIONS, "respond"),
        status=fields.integer("status", 200, 100),
        headers=fields.pairs("headers"),
        body=body,
        size=fields.integer("size", 0),
        echo=fields.flag("echo"),
        chunked=fields.flag("chunked"),
        delay=fields.seconds("delay"),
        drip=fields.seconds("drip"),
        cut_after=cut_after,
        cut=fields.choice("cut", ("fin", "rst"), "fin"),
        close=fields.flag("close"),
        hangup=fields.flag("hangup"),
        many_headers=fields.integer("many_headers", 0),
        header_size=fields.integer("header_size", 1),
    )
    fields.close()
    return behaviour


def _parse_grpc(name: str, fields: Fields) -> Behaviour:
    answer, status, delay = parse_answer(name, fields)
    return Behaviour(action=answer.action, status=status, delay=delay, grpc=answer)
