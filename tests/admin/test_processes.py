"""The process directory: only its owner's, and only the living are in it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshlib.admin import family
from meshlib.admin.client import AdminError
from meshlib.admin.processes import ProcessDirectory, default_path
from meshlib.errors import ConfigError


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[ProcessDirectory]:
    with ProcessDirectory(tmp_path / "run") as opened:
        yield opened


def test_the_folder_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    with ProcessDirectory(tmp_path / "a" / "run"):
        assert (tmp_path / "a" / "run").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="others may enter it"):
        ProcessDirectory(tmp_path / "run")


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "run").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="symbolic link"):
        ProcessDirectory(tmp_path / "run")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    os.chown(tmp_path / "run", 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        ProcessDirectory(tmp_path / "run")


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MESHLIB_RUN_DIR", str(tmp_path / "named"))
    assert default_path() == tmp_path / "named"
    monkeypatch.delenv("MESHLIB_RUN_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_path() == tmp_path / "meshlib"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert default_path().name == f"meshlib-{os.getuid()}"


def test_who_sits_is_listed_until_it_leaves(directory: ProcessDirectory) -> None:
    assert directory.list() == ()
    seat = directory.sit_down(group="g", started=12.5, service="front")
    (found,) = directory.list()
    assert (found.pid, found.group, found.started, found.service) == (os.getpid(), "g", 12.5, "front")
    assert directory.list("g") == (found,)
    assert directory.list("other") == ()
    seat.leave()
    seat.leave()
    assert directory.list() == ()
    assert [path.name for path in directory.path.iterdir()] == ["lock"]


def test_two_meshes_of_a_process_have_a_seat_each(directory: ProcessDirectory) -> None:
    first = directory.sit_down(group="g", started=1.0)
    second = directory.sit_down(group="g", started=2.0)
    assert [process.name for process in directory.list()] == [str(os.getpid()), f"{os.getpid()}-2"]
    first.leave()
    assert [process.name for process in directory.list()] == [f"{os.getpid()}-2"]
    second.leave()


def _dead(directory: ProcessDirectory, name: str) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(directory.path / f"{name}.sock"))
    note = {"name": name, "pid": 1, "group": "g", "started": 0.0}
    (directory.path / f"{name}.json").write_text(json.dumps(note))


def test_a_socket_that_nobody_listens_on_is_removed_though_its_pid_lives(directory: ProcessDirectory) -> None:
    _dead(directory, str(os.getpid()))
    assert directory.list() == ()
    assert not list(directory.path.glob("*.sock"))
    assert not list(directory.path.glob("*.json"))


def test_the_seat_of_a_dead_process_with_the_same_pid_is_taken(directory: ProcessDirectory) -> None:
    _dead(directory, str(os.getpid()))
    seat = directory.sit_down(group="g", started=1.0)
    assert seat.process.name == str(os.getpid())
    seat.leave()


def test_one_without_a_note_is_left_alone_while_it_lives(directory: ProcessDirectory) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(directory.path / "77.sock"))
        stranger.listen()
        assert directory.list() == ()
        assert (directory.path / "77.sock").exists()
    assert directory.list() == ()
    assert not (directory.path / "77.sock").exists()


@pytest.mark.parametrize(
    "note", [b"", b"[]", b"{}", b'{"group": 1}', b'{"group": "g", "started": "x"}', b"\xff"]
)
def test_a_note_that_says_nothing_is_no_process(directory: ProcessDirectory, note: bytes) -> None:
    seat = directory.sit_down(group="g", started=1.0)
    (directory.path / f"{os.getpid()}.json").write_bytes(note)
    assert directory.list() == ()
    seat.leave()


def test_a_path_longer_than_an_address_serves(tmp_path: Path) -> None:
    with ProcessDirectory(tmp_path / ("x" * 120) / "run") as directory:
        seat = directory.sit_down(group="g", started=1.0)
        assert len(directory.list()) == 1
        seat.leave()


def test_a_forked_child_lets_go_of_the_parents_socket(directory: ProcessDirectory) -> None:
    seat = directory.sit_down(group="g", started=1.0)
    ready, told = os.pipe()
    go, may_end = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            seat.forget()
            os.write(told, b"x")
            os.close(may_end)
            os.read(go, 1)
        os._exit(0)
    os.read(ready, 1)
    seat.listener.close()  # as if the parent had been killed
    assert directory.list() == ()
    for end in (ready, told, go, may_end):
        os.close(end)
    os.waitpid(child, 0)


def _serve_once(listener: socket.socket, *, answer: bytes) -> threading.Thread:
    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                if not connection.recv(4096):
                    continue  # somebody looked whether we listen
                connection.sendall(answer)
                return

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_asking(directory: ProcessDirectory) -> None:
    seat = directory.sit_down(group="g", started=1.0)
    thread = _serve_once(seat.listener, answer=b"HTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 4\r\n\r\n[12]")
    answer = directory.ask(os.getpid(), "/x")
    thread.join()
    assert (answer.status, answer.headers["x-a"], answer.json()) == (200, "b", [12])
    seat.leave()


def test_one_that_does_not_answer_is_given_up(directory: ProcessDirectory) -> None:
    seat = directory.sit_down(group="g", started=1.0)
    with pytest.raises(AdminError, match="no answer to /x: timed out"):
        directory.ask(os.getpid(), "/x", timeout=0.05)
    seat.leave()


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"]
)
def test_one_that_answers_nonsense(directory: ProcessDirectory, answer: bytes) -> None:
    seat = directory.sit_down(group="g", started=1.0)
    thread = _serve_once(seat.listener, answer=answer)
    with pytest.raises(AdminError, match="no answer to /x"):
        directory.ask(os.getpid(), "/x")
    thread.join()
    seat.leave()


def test_one_that_is_not_there(directory: ProcessDirectory) -> None:
    with pytest.raises(AdminError, match="process 1: no answer"):
        directory.ask(1, "/x")
    with pytest.raises(ConfigError, match="not the pid"):
        directory.ask("../1", "/x")


def test_a_fork_is_of_its_parents_family() -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            os.write(writing, family.group().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100).decode() == family.group()
    os.close(reading)
    os.close(writing)


def test_another_program_is_another_family() -> None:
    assert family.family_head(os.getpid()) != os.getppid()
    assert family.family_head(2**30) == 2**30


def test_a_group_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHLIB_GROUP", "shop-1.a")
    assert family.group() == "shop-1.a"
    for wrong in ("..", "a/b", "x" * 65, ".hidden"):
        monkeypatch.setenv("MESHLIB_GROUP", wrong)
        with pytest.raises(ConfigError, match="MESHLIB_GROUP"):
            family.group()
