"""Lines into files and pipes: whole, in order, after a rotation too; what can't be written is counted and said once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from meshlib.observe.access_log.files import PIPE_BLOCK, FileStats, LineFile, LineStream
from meshlib.stats import Registry


@pytest.fixture
def registry() -> Registry:
    return Registry()


def counter(registry: Registry, name: str) -> int:
    return int(registry.counter(f"filesystem.{name}").value)


def test_lines_are_appended(tmp_path: Path, registry: Registry) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    file = LineFile(str(path), FileStats(registry))
    assert path.read_text() == "before\n"
    file.write(["a\n", "b\u00e9\udcff\n"])
    file.write(["c\n"])
    file.close()
    assert path.read_bytes() == b"before\na\nb\xc3\xa9\xff\nc\n"
    assert counter(registry, "write_completed") == 2


def test_a_file_that_is_not_needed_is_not_made(tmp_path: Path, registry: Registry) -> None:
    LineFile(str(tmp_path / "log"), FileStats(registry)).close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["renamed", "removed", "replaced"])
def test_rotation(tmp_path: Path, registry: Registry, how: str) -> None:
    path, old = tmp_path / "log", tmp_path / "log.1"
    file = LineFile(str(path), FileStats(registry))
    file.write(["first\n"])
    if how == "removed":
        path.unlink()
    else:
        path.rename(old)
    if how == "replaced":
        path.write_text("new\n")
    file.write(["second\n"])
    file.close()
    assert path.read_text() == ("new\nsecond\n" if how == "replaced" else "second\n")
    if how != "removed":
        assert old.read_text() == "first\n"


def test_a_file_that_cannot_be_opened(
    tmp_path: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "missing" / "log"
    file = LineFile(str(path), FileStats(registry))
    for _ in range(2):
        file.write(["lost\n"])
    assert len(caplog.records) == 1
    assert str(path) in caplog.text
    assert counter(registry, "reopen_failed") == counter(registry, "write_failed") == 2
    path.parent.mkdir()
    file.write(["kept\n"])
    file.close()
    assert path.read_text() == "kept\n"


def test_a_full_disk(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    file = LineFile("/dev/full", FileStats(registry))
    for _ in range(2):
        file.write(["lost\n"])
    file.close()
    assert counter(registry, "write_failed") == 2
    assert ["No space left" in record.getMessage() for record in caplog.records] == [True]


def test_a_pipe_gets_no_more_at_once_than_stays_whole(registry: Registry) -> None:
    reader, writer = os.pipe()
    sizes = []
    lines = [f"{number:04d}{'x' * 300}\n" for number in range(100)]

    def read() -> None:
        while data := os.read(reader, PIPE_BLOCK):
            sizes.append(data)

    thread = threading.Thread(target=read)
    thread.start()
    LineStream(writer, FileStats(registry)).write(lines)
    os.close(writer)
    thread.join()
    os.close(reader)
    assert b"".join(sizes).decode() == "".join(lines)
    assert counter(registry, "write_completed") == -(-len(lines) // (PIPE_BLOCK // len(lines[0])))


def test_a_line_that_is_longer_than_a_block(tmp_path: Path, registry: Registry) -> None:
    path = tmp_path / "log"
    file = LineFile(str(path), FileStats(registry))
    long = "x" * 200_000 + "\n"
    file.write(["a\n", long, "b\n"])
    file.close()
    assert path.read_text() == f"a\n{long}b\n"


def test_a_pipe_that_does_not_block_is_waited_for(registry: Registry) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    lines = ["x" * 1000 + "\n"] * 200  # more than a pipe holds
    got = bytearray()

    def read() -> None:
        while data := os.read(reader, 65536):
            got.extend(data)

    thread = threading.Thread(target=read)
    thread.start()
    LineStream(writer, FileStats(registry)).write(lines)
    os.close(writer)
    thread.join()
    os.close(reader)
    assert got.decode() == "".join(lines)


def test_a_reader_that_went_away(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = LineStream(writer, FileStats(registry))
    stream.write(["lost\n"])
    stream.write(["lost\n"])
    os.close(writer)
    assert counter(registry, "write_failed") == 2
    assert len(caplog.records) == 1


PROGRAM = """
import sys
from meshlib.observe.access_log.files import FileStats, LineFile
from meshlib.stats import Registry

file = LineFile(sys.argv[1], FileStats(Registry()))
for batch in range(50):
    file.write([f"{sys.argv[2]}-{batch}-{line}-{'x' * 200}\\n" for line in range(40)])
"""


def test_processes_do_not_tear_each_others_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writers = [subprocess.Popen([sys.executable, "-c", PROGRAM, path, str(name)]) for name in range(3)]
    assert [writer.wait(30) for writer in writers] == [0, 0, 0]
    lines = path.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 3 * 50 * 40
    assert {line.rpartition("-")[2] for line in lines} == {"x" * 200}
