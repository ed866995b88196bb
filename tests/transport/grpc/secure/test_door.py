from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from meshlib.transport.grpc.tunnel_door import Door

STRANGER = """
import socket, sys
with socket.socket(socket.AF_UNIX) as caller:
    caller.connect(sys.argv[1].replace("@", chr(0), 1))
    caller.sendall(b"let me in")
    print(len(caller.recv(10)))
"""


def _address(door: Door) -> str:
    scheme, _, name = door.target.partition(":")
    return "@" + name if scheme == "unix-abstract" else name


def _enter(door: Door) -> socket.socket:
    caller = socket.socket(socket.AF_UNIX)
    try:
        caller.connect(_address(door).replace("@", "\0", 1))
    except OSError:
        caller.close()
        raise
    return caller


@pytest.mark.parametrize("abstract", [True, False])
def test_only_this_process_is_let_in(abstract: bool) -> None:
    door = Door(abstract=abstract)
    try:
        assert door.admit() is None
        command = [sys.executable, "-c", STRANGER, _address(door)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as stranger:
            assert select.select([door.socket], [], [], 30)[0]
            assert door.admit() is None
            out, _ = stranger.communicate(timeout=10)
        assert out.strip() in ("", "0")  # turned away, with or without a reset
        with _enter(door) as caller:
            own = door.admit()
            assert own is not None
            with own:
                caller.sendall(b"x")
                own.setblocking(True)
                assert own.recv(1) == b"x"
    finally:
        door.close()
    with pytest.raises(OSError):
        _enter(door)


def test_each_has_a_name_of_its_own_that_nobody_can_guess() -> None:
    doors = [Door() for _ in range(20)]
    try:
        names = {door.target for door in doors}
        assert len(names) == 20
        assert all(len(name.rpartition("-")[2]) == 32 for name in names)
    finally:
        for door in doors:
            door.close()


def test_a_folder_is_for_this_user_only_and_goes_with_the_door() -> None:
    door = Door(abstract=False)
    folder = Path(_address(door)).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    door.close()
    door.close()
    assert not folder.exists()


def test_no_place_for_a_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", os.fspath(deep))
    with pytest.raises(OSError, match="too long"):
        Door(abstract=False)
    assert list(deep.iterdir()) == []
