"""meshlib explain"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlencode

import click

from meshlib.cli.config import checked, fail
from meshlib.cli.running import PROCESS, Target, fetch, one, targets
from meshlib.engine.program import Compiler, Program
from meshlib.errors import ConfigError
from meshlib.observe.explain import Explanation, Question
from meshlib.observe.explain import explain as decide
from meshlib.resources import decode
from meshlib.resources.files import DECODED, FileConfig
from meshlib.runtime.clock import SystemClock
from meshlib.snapshot import from_resources
from meshlib.state import StateStore
from meshlib.state.way import Handshake
from meshlib.stats import Registry

__all__ = ["explain"]


@click.command()
@click.argument("arguments", nargs=-1, metavar="CONFIG... URL")
@PROCESS
@click.option("--method", "-m", default="GET", show_default=True, help="The request's method.")
@click.option(
    "--header", "-H", "headers", multiple=True, metavar="'K: V'", help="A request header; repeatable."
)
@click.option(
    "--requests",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE.jsonl",
    help='Answer many requests, {"method", "url", "headers": [[k, v], ...]} a line, with one JSON line each.',
)
@click.option("--route-config", metavar="NAME", help="Use this RouteConfiguration instead of a Listener's.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of every random choice.")
@click.option("--at", metavar="TIME", help="The time to decide at: ISO 8601, or seconds since 1970.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def explain(
    arguments: tuple[str, ...],
    process: str | None,
    method: str,
    headers: tuple[str, ...],
    requests: str | None,
    route_config: str | None,
    seed: int,
    at: str | None,
    as_json: bool,
) -> None:
    """Say where a request would go and why, without sending it.

    By the files that are given; with --process, by the configuration that a running process has right now.
    """
    if requests is None:
        if not arguments:
            raise click.UsageError("Missing argument 'CONFIG... URL'.")
        *paths, url = arguments
        questions = iter([Question(url=url, method=method, headers=[_header(header) for header in headers])])
    else:
        paths = list(arguments)
        questions = _questions(Path(requests))
    if process is not None:
        if paths or route_config is not None or at is not None:
            raise click.UsageError("a running process is asked for its own configuration, at this moment")
        with targets(process) as found:
            _ask(one(found), questions, as_json=as_json or requests is not None)
        return
    if not paths:
        raise click.UsageError("give at least one CONFIG file or folder before the URL")
    for path in paths:
        if not Path(path).exists():
            raise click.UsageError(f"CONFIG {path!r} does not exist")
    epoch = SystemClock.time() if at is None else _moment(at)
    loaded, problems = checked(paths)
    if problems:
        fail(problems)
    random = Random(seed)
    program = _program(loaded, random)
    for question in questions:
        random.seed(seed)  # whatever compiling, or the questions before, have drawn
        try:
            answer = decide(program, question, random=random, epoch=epoch, route_config=route_config)
        except ConfigError as error:
            fail([f"meshlib explain: {error}"])
        if as_json or requests is not None:
            click.echo(json.dumps(answer.to_dict()))
        else:
            click.echo(_text(question, answer))


def _ask(target: Target, questions: Iterator[Question], *, as_json: bool) -> None:
    for question in questions:
        query = {
            "url": question.url,
            "method": question.method,
            "headers": "\n".join(f"{name}: {value}" for name, value in question.headers),
        }
        answer = fetch(target, f"/mesh/explain.json?{urlencode(query)}")
        click.echo(json.dumps(answer) if as_json else _text(question, Explanation(**answer)))


class _NoHandshakes:
    """TLS of clusters that nobody connects to."""

    epoch = trust_epoch = 1

    def handshake(self, *, authority: str, hostname: str, alpn: tuple[str, ...]) -> Handshake:
        raise NotImplementedError


_NO_HANDSHAKES = _NoHandshakes()


def _program(loaded: FileConfig, random: Random) -> Program:
    decoded = [
        decode(resource.type_url, resource.message)
        for resource in loaded.resources
        if resource.type_url in DECODED
    ]
    compiler = Compiler(StateStore(Registry()), random, secure=lambda tls: _NO_HANDSHAKES)
    return compiler.compile(from_resources(decoded), compiler.empty())


def _questions(file: Path) -> Iterator[Question]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield _question(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            fail([f'{file}:{number}: not a request like {{"method", "url", "headers"}}: {error}'])


def _question(value: dict[str, Any]) -> Question:
    headers = [(str(name), str(content)) for name, content in value.get("headers", ())]
    return Question(url=str(value["url"]), method=str(value.get("method", "GET")), headers=headers)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise click.UsageError(f"--header {text!r} is not like 'name: value'")
    return name.strip(), value.strip()


def _moment(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(f"--at {text!r} is neither ISO 8601 nor seconds since 1970") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return moment.timestamp()


def _text(question: Question, answer: Explanation) -> str:
    """The explanation for people: one fact a line, only those that there are."""
    lines = [f"{question.method} {question.url}"]

    def say(title: str, value: object) -> None:
        if value not in (None, "", [], {}):
            lines.append(f"  {title:<16}{value}")

    say("listener", answer.listener)
    say("route config", answer.route_config)
    say("virtual host", answer.virtual_host or ("none matches" if answer.route_config else None))
    say(
        "route",
        answer.route if answer.route is not None else ("none matches" if answer.virtual_host else None),
    )
    if answer.action == "none":
        say("answer", "404, nothing is sent (NR route_not_found)")
    elif answer.action == "cluster":
        weights = ", ".join(f"{entry['cluster']} {entry['weight']}" for entry in answer.weighted_clusters)
        say("cluster", f"{answer.cluster}" + (f"  (drawn from {weights})" if weights else ""))
        say("endpoint", answer.endpoint or "none")
        say("path", answer.path)
        say("authority", answer.authority)
        for name, value in answer.request_headers:
            say("header", f"{name}: {value}")
        say("timeout", f"{answer.timeout:g} s" if answer.timeout else "none")
        if answer.retry is not None:
            per_try = answer.retry["per_try_timeout"]
            say(
                "retry",
                f"on {', '.join(answer.retry['on'])}; {answer.retry['attempts']} attempts"
                + (f" of {per_try:g} s" if per_try else ""),
            )
    else:
        say("answer", f"{answer.status} ({answer.action})")
        say("location", answer.location)
        say("body", answer.body)
    for fault in answer.faults:
        say("fault", fault)
    for path in answer.unsupported:
        say("not applied", path)
    return "\n".join(lines)
