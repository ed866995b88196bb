"""grpcio's own ``xds:///`` client of the embedded control plane, in a process of its own: it reads its bootstrap once."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from meshlib import proto
from meshlib.testing import ControlPlane, messages, serve, service

# Each line on standard input is one call; each answer is a line on standard output.
CLIENT = """
import sys, grpc
with grpc.insecure_channel("xds:///reviews:80") as channel:
    call = channel.unary_unary("/test.Reviews/Get")
    for line in sys.stdin:
        try:
            print(call(line.strip().encode(), timeout=45, wait_for_ready=True).decode(), flush=True)
        except grpc.RpcError as error:
            print(error.code().name, error.details(), flush=True)
"""


@contextlib.contextmanager
def grpc_server(name: str) -> Iterator[str]:
    """Answers /test.Reviews/Get with its name and the request."""

    def get(request: bytes, context: Any) -> bytes:
        return name.encode() + b":" + request

    with ThreadPoolExecutor(2) as executor:
        server = grpc.server(executor)
        handler = grpc.unary_unary_rpc_method_handler(get)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("test.Reviews", {"Get": handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


@contextlib.contextmanager
def xds_client(control_plane: ControlPlane) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(control_plane.bootstrap("grpc"))}
    environment.pop("GRPC_XDS_BOOTSTRAP", None)
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", CLIENT]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def ask(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(text + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def until(process: subprocess.Popen[str], wanted: str) -> list[str]:
    """The answers to calls of "b" up to the wanted one."""
    answers = [ask(process, "b")]
    while answers[-1] != wanted:
        assert len(answers) < 5000
        answers.append(ask(process, "b"))
    return answers


def test_a_call_is_routed_and_follows_a_change() -> None:
    with grpc_server("one") as one, grpc_server("two") as two:
        with serve(service("reviews", one)) as control_plane, xds_client(control_plane) as client:
            assert ask(client, "hello") == "one:hello"

            control_plane.store.replace(messages(service("reviews", two)))
            control_plane.wait_for_answer(proto.ENDPOINT)
            assert set(until(client, "two:b")) <= {"one:b", "two:b"}

            answered = {answer.type_url for answer in control_plane.answers}
            assert answered == {proto.LISTENER, proto.ROUTE, proto.CLUSTER, proto.ENDPOINT}
            assert [answer.error for answer in control_plane.answers if answer.error] == []


def test_a_route_changes_to_a_new_cluster_without_a_failed_call() -> None:
    with grpc_server("one") as one, grpc_server("two") as two:
        old, new = service("reviews", one), service("ratings", two)
        new["resources"][1] |= {"name": "reviews"}
        del new["resources"][0]
        new["resources"].append(old["resources"][0])
        with serve(old) as control_plane, xds_client(control_plane) as client:
            assert ask(client, "a") == "one:a"
            control_plane.store.replace(messages(new))
            assert set(until(client, "two:b")) <= {"one:b", "two:b"}
