from __future__ import annotations

import subprocess
import sys

HEAD = """
import gc, os, sys
from meshlib.runtime import fork

class Item:
    def __init__(self, name, log, broken=False):
        self.name, self.log, self.broken = name, log, broken
    def before_fork(self):
        self.log.append(("before", self.name))
        if self.broken: raise ValueError(self.name)
    def after_fork_in_parent(self): self.log.append(("parent", self.name))
    def after_fork_in_child(self): self.log.append(("child", self.name))

def run():
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, repr(log).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    return os.read(reader, 10000).decode()

log = []
"""


def forked(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", HEAD + code], capture_output=True, text=True, timeout=30)


def test_objects_hear_of_a_fork_in_order() -> None:
    done = forked(
        "a, b = Item('a', log), Item('b', log); fork.register(a); fork.register(b); print(run()); print(log)"
    )
    child, parent = done.stdout.splitlines()
    before = [("before", "b"), ("before", "a")]
    assert child == repr([*before, ("child", "a"), ("child", "b")])
    assert parent == repr([*before, ("parent", "a"), ("parent", "b")])


def test_an_object_that_is_gone_hears_nothing() -> None:
    done = forked("a = Item('a', log); fork.register(a); del a; gc.collect(); print(run()); print(log)")
    assert done.stdout.splitlines() == ["[]", "[]"]


def test_one_that_fails_does_not_keep_the_others_from_it() -> None:
    done = forked(
        "a, b = Item('a', log), Item('b', log, broken=True); fork.register(a); fork.register(b); run(); print(log)"
    )
    assert done.stdout.splitlines() == [
        "[('before', 'b'), ('before', 'a'), ('parent', 'a'), ('parent', 'b')]"
    ]
    assert "ValueError: b" in done.stderr


def test_the_guard_can_be_moved_before_what_registered_itself_since() -> None:
    done = forked(
        "a = Item('a', log); fork.register(a)\n"
        "note = lambda what: (lambda: log.append((what, 'other')))\n"
        "os.register_at_fork(before=note('before'), after_in_parent=note('parent'), after_in_child=note('child'))\n"
        "fork.come_first(); print(run()); print(log)"
    )
    child, parent = done.stdout.splitlines()
    before = [("before", "a"), ("before", "other")]
    assert child == repr([*before, ("child", "other"), ("child", "a")])
    assert parent == repr([*before, ("parent", "other"), ("parent", "a")])
