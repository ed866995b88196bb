"""Endpoints that are Unix sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import meshlib
from meshlib import errors
from tests.resources.building import assignment, locality, socket_listener
from tests.transport.http.drivers import Driver
from tests.transport.http.support import info

TYPES = "type.googleapis.com/envoy.config."
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


def mesh_to(path: str) -> meshlib.Mesh:
    pipe = {"endpoint": {"address": {"pipe": {"path": path}}}}
    cluster = {"name": "c", "type": "STATIC", "load_assignment": assignment(locality(pipe))}
    resources: list[dict[str, Any]] = [
        {"@type": TYPES + "cluster.v3.Cluster", **cluster},
        {"@type": TYPES + "listener.v3.Listener", **socket_listener()},
    ]
    return meshlib.Mesh(config={"resources": resources})


@contextmanager
def served(path: str) -> Iterator[None]:
    """One connection that is answered for as long as it asks."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("\0" + path[1:] if path.startswith("@") else path)
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                while connection.recv(65536):
                    connection.sendall(ANSWER)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


@pytest.mark.parametrize("abstract", [False, True])
def test_a_call(driver: Driver, tmp_path: Path, abstract: bool) -> None:
    path = f"@meshlib-test-{id(driver)}" if abstract else str(tmp_path / "s")
    with served(path), mesh_to(path) as mesh:
        driver.open(mesh)  # type: ignore[arg-type]
        assert driver.get("/").text == "hi"
        answer = driver.get("/")
        assert answer.text == "hi"
        assert info(answer).attempts[0].endpoint == path
        driver.close_client()


def test_nobody_there(driver: Driver, tmp_path: Path) -> None:
    with mesh_to(str(tmp_path / "s")) as mesh:
        driver.open(mesh)  # type: ignore[arg-type]
        with pytest.raises(errors.ConnectFailed) as caught:
            driver.get("/")
        assert caught.value.flags == "UF"
        assert "No_such_file_or_directory" in caught.value.details
