"""Totals over the processes of an application: exact, whoever is asked, and never going down, however processes end."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshlib.observe.document import Document, document
from meshlib.observe.group import GroupTotals, Member
from meshlib.observe.metrics import MetricsObserver
from meshlib.observe.workload import Workload
from meshlib.stats import Counter, Registry
from tests.engine.builders import cluster
from tests.engine.wire import FakeMesh

FAMILY = "calls_total"


class Process:
    """One process of the group, as far as totals are concerned."""

    def __init__(self, folder: Path, name: str, started: float, group: str = "app") -> None:
        self.registry = Registry()
        self.name, self.started = name, started
        self.counter: Counter = self.registry.labelled_counter(FAMILY, ())
        self.registry.labelled(()).gauge("under_way").value = 1.0
        self.totals = GroupTotals(self.registry, folder=folder, name=name, started=started, group=group)

    def asked(self) -> Member:
        return Member(self.name, self.started, Document.from_json(self.totals.answer().to_json()))


def count(found: Document) -> float:
    family = found.families.get(FAMILY)
    value = 0 if family is None else family.samples[()]
    assert isinstance(value, int)
    return value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "run"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def pair(folder: Path) -> Iterator[tuple[Process, Process]]:
    one, other = Process(folder, "11", 1.0), Process(folder, "12", 2.0)
    yield one, other
    one.totals.close()
    other.totals.close()


def test_the_sum_of_those_that_answer(pair: tuple[Process, Process]) -> None:
    one, other = pair
    one.counter.value, other.counter.value = 3, 4
    found = one.totals.whole([other.asked()], lambda: {"11", "12"})
    assert count(found) == 7
    assert found.families["under_way"].samples == {(): 1.0}
    assert count(other.totals.whole([one.asked()], lambda: {"11", "12"})) == 7


def test_who_does_not_answer_counts_as_it_did_last(pair: tuple[Process, Process]) -> None:
    one, other = pair
    one.counter.value, other.counter.value = 3, 4
    other.asked()
    other.counter.value = 5
    assert count(one.totals.whole([], lambda: {"11", "12"})) == 7


def test_an_ended_process_goes_on_counting(folder: Path, pair: tuple[Process, Process]) -> None:
    one, other = pair
    one.counter.value, other.counter.value = 3, 4
    other.totals.close()
    for _ in range(3):
        assert count(one.totals.whole([], lambda: {"11"})) == 7
    assert sorted(path.name for path in folder.iterdir()) == ["11.totals", "app.group", "totals.lock"]
    found = one.totals.whole([], lambda: {"11"})
    assert found.families["under_way"].samples == {(): 1.0}, "gauges end with their process"
    with pytest.raises(RuntimeError, match="ending"):
        other.totals.answer()


def test_a_number_that_is_given_again(folder: Path, pair: tuple[Process, Process]) -> None:
    one, other = pair
    other.counter.value = 4
    other.totals.close()
    again = Process(folder, "12", 3.0)
    again.counter.value = 10
    assert count(one.totals.whole([again.asked()], lambda: {"11", "12"})) == 14
    again.totals.close()
    assert count(one.totals.whole([], lambda: {"11"})) == 14


def test_who_was_asked_and_has_been_folded_since_counts_once(
    pair: tuple[Process, Process], folder: Path
) -> None:
    one, other = pair
    third = Process(folder, "13", 3.0)
    other.counter.value = 4
    answers = [other.asked()]
    other.totals.close()
    assert count(third.totals.whole([], lambda: {"11", "13"})) == 4
    assert not (folder / "12.totals").exists()
    assert count(one.totals.whole(answers, lambda: {"11", "13"})) == 4
    third.totals.close()


def test_groups_keep_to_themselves(folder: Path, pair: tuple[Process, Process]) -> None:
    stranger = Process(folder, "99", 1.0, group="other")
    stranger.counter.value = 100
    stranger.totals.close()
    assert count(pair[0].totals.whole([], lambda: {"11", "12"})) == 0
    late = Process(folder, "98", 2.0, group="other")
    assert count(late.totals.whole([], lambda: {"98"})) == 100
    late.totals.close()


def test_the_group_of_a_process_ends_with_it(folder: Path) -> None:
    """The number of a gunicorn master will be another's one day."""
    over = folder / f"{os.getpid()}~1.group"
    over.write_text(json.dumps({"ids": [], **json.loads(Document().to_json())}))
    worker = Process(folder, "21", 1.0, group=str(os.getpid()))
    worker.counter.value = 2
    worker.totals.close()
    last = Process(folder, "22", 1.0, group=str(os.getpid()))
    assert count(last.totals.whole([], lambda: {"22"})) == 2
    assert not over.exists()
    last.totals.close()


def test_files_that_are_damaged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "7.totals").write_bytes(b"\x00")
    (folder / "app.group").write_text("{}")
    one = Process(folder, "11", 1.0)
    one.counter.value = 3
    assert count(one.totals.whole([], lambda: {"11"})) == 3
    assert "can't be read" in caplog.text
    one.totals.close()


def test_a_folder_that_others_may_enter(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(PermissionError, match="alone"):
        Process(tmp_path, "1", 1.0)


def test_nothing_is_written_while_nothing_was_counted(folder: Path) -> None:
    one = Process(folder, "11", 1.0)
    one.totals.answer()
    assert not (folder / "11.totals").exists()
    one.counter.value = 1
    one.totals.answer()
    written = (folder / "11.totals").stat().st_mtime_ns
    one.totals.answer()
    assert (folder / "11.totals").stat().st_mtime_ns == written
    one.totals.close()
    one.totals.close()


def test_calls_have_it_written(folder: Path) -> None:
    mesh = FakeMesh(cluster("a"))
    tally = MetricsObserver(mesh.engine, mesh.registry, Workload()).tally
    mesh.engine.observe(tally)
    totals = GroupTotals(mesh.registry, folder=folder, name="5", started=1.0, group="app")
    totals.follow(tally)
    mesh.call().answer(200)
    written = folder / "5.totals"
    while not written.exists():
        os.sched_yield()
    kept = Document.from_json(written.read_bytes())
    assert list(kept.families["istio_requests_total"].samples.values()) == [1]
    mesh.call().answer(200)
    totals.close()
    kept = Document.from_json(written.read_bytes())
    assert list(kept.families["istio_requests_total"].samples.values()) == [2]
    assert tally.changed is None


def test_a_forked_child_writes_nothing(folder: Path) -> None:
    one = Process(folder, "11", 1.0)
    one.counter.value = 3
    one.totals.after_fork_in_child()
    with pytest.raises(RuntimeError):
        one.totals.answer()
    one.totals.close()
    assert not (folder / "11.totals").exists()


class Application(RuleBasedStateMachine):
    """Processes come, count, are scraped, and end in every way and order."""

    def __init__(self) -> None:
        super().__init__()
        self.place = tempfile.TemporaryDirectory()
        self.folder = Path(self.place.name)
        self.alive: dict[str, Process] = {}
        self.dead: list[Process] = []
        self.started = 0.0
        self.told = 0.0
        self.counted = 0
        self.killed = False
        self.pending: tuple[Process, list[Member], float] | None = None

    @rule(name=st.sampled_from(["1", "2", "3", "4"]))
    def begin(self, name: str) -> None:
        if name not in self.alive:
            self.started += 1.0
            self.alive[name] = Process(self.folder, name, self.started)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), number=st.integers(1, 5))
    def serve(self, data: st.DataObject, number: int) -> None:
        self._some(data).counter.value += number
        self.counted += number

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        self._some(data).totals.answer()

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        process = self._some(data)
        process.totals.close()
        self.dead.append(self.alive.pop(process.name))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        process = self._some(data)
        self.killed = True
        process.totals.after_fork_in_child()  # lets go of everything and writes nothing
        self.dead.append(self.alive.pop(process.name))

    @precondition(lambda self: self.alive and self.pending is None)
    @rule(data=st.data())
    def begin_scrape(self, data: st.DataObject) -> None:
        """Ask the others; what happens before `end_scrape` happens while the answers are being collected."""
        reader = self._some(data)
        answers = [each.asked() for each in self.alive.values() if each is not reader]
        self.pending = (reader, answers, self.told)

    @precondition(lambda self: self.pending is not None)
    @rule()
    def end_scrape(self) -> None:
        assert self.pending is not None
        (reader, answers, before), self.pending = self.pending, None
        if self.alive.get(reader.name) is reader:
            found = count(reader.totals.whole(answers, lambda: set(self.alive)))
            assert before <= found <= self.counted

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def scrape(self, data: st.DataObject) -> None:
        reader = self._some(data)
        answers = [each.asked() for each in self.alive.values() if each is not reader]
        found = count(reader.totals.whole(answers, lambda: set(self.alive)))
        assert found >= self.told
        assert found <= self.counted
        if not self.killed:
            assert found == self.counted
        self.told = found

    @invariant()
    def one_file_for_each_process_at_most(self) -> None:
        assert len(list(self.folder.glob("*.totals"))) <= 4

    def teardown(self) -> None:
        for process in self.alive.values():
            process.totals.close()
        self.place.cleanup()

    def _some(self, data: st.DataObject) -> Process:
        return self.alive[data.draw(st.sampled_from(sorted(self.alive)))]


TestApplication = Application.TestCase
TestApplication.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_document_of_another_process_is_the_same() -> None:
    registry = Registry()
    registry.scope("cluster", ("envoy_cluster_name", "a")).histogram("upstream_rq_time").record(3.0)
    found = document(registry)
    assert Document.from_json(found.to_json()) == found


def test_of_others_only_what_they_have_used_is_wanted(pair: tuple[Process, Process]) -> None:
    one, other = pair
    for each in pair:
        each.registry.labelled_counter("unused_total", ())
    other.counter.value = 1
    assert "unused_total" not in other.asked().document.families
    found = one.totals.whole([other.asked()], lambda: {"11", "12"})
    assert found.families["unused_total"].samples == {(): 0}


def test_what_programs_that_have_ended_left_is_removed(folder: Path) -> None:
    """Of a program that is one process, nobody asks any more when it has ended."""
    gone = Process(folder, "31", 1.0, group="app")
    gone.totals._key = f"{os.getpid()}~1"  # a process that began at another time
    gone.counter.value = 3
    gone.totals.close()
    assert (folder / "31.totals").exists()
    later = Process(folder, "32", 2.0)
    assert not (folder / "31.totals").exists()
    assert not list(folder.glob("*.group"))
    later.totals.close()


def test_workers_that_outlive_their_master_keep_their_totals(folder: Path) -> None:
    one, other = Process(folder, "11", 1.0), Process(folder, "12", 2.0)
    for each in (one, other):
        each.totals._key = f"{os.getpid()}~1"
        each.counter.value = 2
    other.totals.close()
    for _ in range(2):
        assert count(one.totals.whole([], lambda: {"11"})) == 4
    one.totals.close()
