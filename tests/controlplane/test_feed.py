from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from meshlib import proto
from meshlib.controlplane import FileFeed, ResourceStore
from meshlib.errors import ConfigError, ResourceError
from meshlib.testing import service

CLUSTER = """\
resources:
- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: {name}
  connect_timeout: 1s
"""


class Edits:
    """A file whose modification time moves on with each write, however fast the writes come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.time = 1_700_000_000

    def write(self, text: str) -> None:
        self.path.write_text(text)
        self.time += 1
        os.utime(self.path, (self.time, self.time))


@pytest.fixture
def edits(tmp_path: Path) -> Edits:
    made = Edits(tmp_path / "mesh.yaml")
    made.write(CLUSTER.format(name="a"))
    return made


def feed(edits: Edits, lines: list[str]) -> FileFeed:
    return FileFeed([edits.path], decode=None, report=lines.append)


def names(store: ResourceStore) -> list[str]:
    return list(store.state(proto.CLUSTER).resources)


def test_an_edit_is_served(edits: Edits) -> None:
    lines: list[str] = []
    running = feed(edits, lines)
    running.load()
    assert names(running.store) == ["a"]
    assert not running.poll()
    edits.write(CLUSTER.format(name="b"))
    assert running.poll()
    assert names(running.store) == ["b"]
    assert lines == ["reloaded: 1 Cluster"]


def test_a_bad_edit_is_reported_once_and_the_last_good_version_stays(edits: Edits) -> None:
    lines: list[str] = []
    running = feed(edits, lines)
    running.load()
    edits.write(CLUSTER.format(name="b") + "  lb_polcy: RANDOM\n")
    for _ in range(5):
        assert not running.poll()
    assert lines == [
        f"{edits.path}:5: lb_polcy: unknown field of envoy.config.cluster.v3.Cluster; did you mean 'lb_policy'?",
        "the last good configuration goes on being served",
    ]
    assert names(running.store) == ["a"]
    edits.write(CLUSTER.format(name="c"))
    assert running.poll()
    assert names(running.store) == ["c"]


def test_a_file_that_is_half_written_is_not_reported(edits: Edits) -> None:
    lines: list[str] = []
    running = feed(edits, lines)
    running.load()
    edits.write(CLUSTER.format(name="b")[:40])
    assert not running.poll()
    edits.write(CLUSTER.format(name="b"))
    assert running.poll()
    assert lines == ["reloaded: 1 Cluster"]


def test_what_a_decoder_refuses_is_not_served(edits: Edits) -> None:
    def decode(type_url: str, message: proto.Message) -> None:
        if message.name != "a":
            raise ResourceError("name", "only a will do", type_url=type_url, name=message.name)

    lines: list[str] = []
    running = FileFeed([edits.path], decode=decode, report=lines.append)
    running.load()
    edits.write(CLUSTER.format(name="b"))
    assert not running.poll()
    assert not running.poll()
    assert lines[0] == f"{edits.path}:3: name: only a will do"
    assert names(running.store) == ["a"]


def test_a_bad_start_is_an_error_with_every_problem(edits: Edits) -> None:
    edits.write(CLUSTER.format(name="3") + "  a: 1\n---\nx: 1\n")
    running = feed(edits, [])
    with pytest.raises(ConfigError) as caught:
        running.load()
    assert str(caught.value).splitlines() == [
        f"{edits.path}:3: name: expected string or bytes-like object, got 'int'",
        f"{edits.path}:7: neither 'resources:' nor '@type' is here",
    ]
    assert names(running.store) == []


def test_a_removed_file_keeps_what_it_held(edits: Edits) -> None:
    lines: list[str] = []
    running = feed(edits, lines)
    running.load()
    edits.path.unlink()
    assert not running.poll()
    assert not running.poll()
    assert lines[0] == f"{edits.path}: no such file or folder"
    assert names(running.store) == ["a"]


def test_a_file_that_is_added_to_a_folder_is_served(tmp_path: Path) -> None:
    Edits(tmp_path / "1.yaml").write(CLUSTER.format(name="a"))
    running = FileFeed([tmp_path], decode=None, report=lambda line: None)
    running.load()
    Edits(tmp_path / "2.yaml").write(CLUSTER.format(name="b"))
    assert running.poll()
    assert names(running.store) == ["a", "b"]


def test_the_watching_thread_sees_an_edit_and_ends(edits: Edits) -> None:
    seen = threading.Event()
    running = feed(edits, [])
    running.load()
    running.store.watch(seen.set)
    with running:
        running.start()
        edits.write(CLUSTER.format(name="b"))
        assert seen.wait(10)
    assert names(running.store) == ["b"]
    running.stop()


def test_problems_go_to_standard_error_by_default(edits: Edits, capsys: pytest.CaptureFixture[str]) -> None:
    running = FileFeed([edits.path], decode=None)
    running.load()
    edits.write("x: 1")
    running.poll()
    running.poll()
    assert f"{edits.path}:1: neither" in capsys.readouterr().err


def test_by_default_what_meshlib_cannot_apply_is_not_served(tmp_path: Path) -> None:
    good = tmp_path / "good.json"
    good.write_text(json.dumps(service("reviews", "127.0.0.1:1")))
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        f'"@type": {proto.ROUTE}\nname: r\nvirtual_hosts:\n- name: v\n  domains: ["*"]\n  routes:\n'
        '  - match: {safe_regex: {regex: "(("}}\n    route: {cluster: c}\n'
    )
    running = FileFeed([good])
    running.load()
    assert sum(len(state.resources) for state in running.store.types.values()) == 4
    with pytest.raises(ConfigError) as caught:
        FileFeed([good, bad]).load()
    assert str(caught.value).startswith(f"{bad}:7: virtual_hosts[0].routes[0].match.safe_regex.regex: ")
