"""Configuration files as the source of a ResourceStore: read at the start, again after each change.

What is served is always a whole, valid configuration. A bad edit is reported once, and the last good version goes on being
served until the files are right again.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from meshlib import proto
from meshlib.controlplane.store import ResourceStore
from meshlib.errors import ConfigError
from meshlib.resources.files import Decode, Problem, Source, files_of, load, validate

__all__ = ["INTERVAL", "FileFeed"]

INTERVAL = 0.2
"""Seconds between two looks at the files."""


def _decode(type_url: str, message: proto.Message) -> object:
    from meshlib.resources import decode

    return decode(type_url, message)


_Fingerprint = tuple[tuple[str, int, int, int], ...]


class FileFeed:
    """Keeps a store equal to files.

    feed = FileFeed(["mesh.yaml"])
    feed.load()                       # ConfigError if it is wrong
    with ControlPlane(feed.store), feed:    # watches from here on
        ...
    """

    def __init__(
        self,
        sources: Iterable[Source],
        store: ResourceStore | None = None,
        *,
        decode: Decode | None = _decode,
        report: Callable[[str], None] | None = None,
    ) -> None:
        """Read nothing yet.

        store: what is fed; its resources of any other origin are removed at the first load. decode: what a resource
        must pass before it is served; None serves all that is well-formed. report: takes one line for each problem and
        for each reload; default standard error.
        """
        self.store = ResourceStore() if store is None else store
        self._sources = tuple(sources)
        self._decode = decode
        self._report = _to_stderr if report is None else report
        self._seen: _Fingerprint = ()
        self._settled = True
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def load(self) -> None:
        """Read the files and serve them.

        Raises:
            ConfigError: something is wrong with them; its text has one line for each problem. Nothing changes then.
        """
        self._seen = self._fingerprint()
        problems = self._apply()
        if problems:
            raise ConfigError("\n".join(map(str, problems)))

    def poll(self) -> bool:
        """Look at the files once, as the watching thread does every 0.2 s. Returns whether the store changed.

        A configuration that is wrong is reported at the second look that finds it so: an editor may be in the middle
        of writing at the first.
        """
        now = self._fingerprint()
        if now == self._seen and self._settled:
            return False
        same = now == self._seen
        self._seen = now
        before = self.store.types
        problems = self._apply()
        self._settled = same or not problems
        if problems and self._settled:
            for problem in problems:
                self._report(str(problem))
            self._report("the last good configuration goes on being served")
        changed = self.store.types is not before
        if changed:
            self._report("reloaded: " + summary(self.store))
        return changed

    def start(self) -> FileFeed:
        """Begin to watch, on a thread of its own. Returns itself."""
        if self._thread is None:
            self._stopping.clear()
            self._thread = threading.Thread(target=self._watch, name="meshlib-files", daemon=True)
            self._thread.start()
        return self

    def stop(self) -> None:
        """End the watch. May be called twice, and in a forked child."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> FileFeed:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _watch(self) -> None:
        while not self._stopping.wait(INTERVAL):
            self.poll()

    def _apply(self) -> list[Problem]:
        config = load(self._sources)
        problems = list(config.problems) if self._decode is None else validate(config, self._decode)
        if not problems:
            self.store.replace(resource.message for resource in config.resources)
        return problems

    def _fingerprint(self) -> _Fingerprint:
        found = []
        for source in self._sources:
            if isinstance(source, Mapping):
                continue
            for path in files_of(source):
                try:
                    stat = Path(path).stat()
                except OSError:
                    continue  # removed since it was listed
                found.append((str(path), stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return tuple(found)


def summary(store: ResourceStore) -> str:
    """How many resources of each type a store has, in words: ``2 Clusters, 1 Listener``."""
    counts = {url.rpartition(".")[2]: len(state.resources) for url, state in store.types.items()}
    parts = [f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in sorted(counts.items()) if count]
    return ", ".join(parts) or "nothing"


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
