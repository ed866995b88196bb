"""The relay of a process: what its xDS server says, the files that C-core reads, and the bootstrap that leads there.

C-core takes certificates from files only, by the names of providers that the bootstrap has. So the bootstrap, which can't be
changed while C-core has targets, declares a fixed number of *places*, each with a folder of its own. A place is filled for one
pair of an own certificate and of what is trusted, shared by all targets that need that very pair, and never changed while one
of them is open: a rotation takes another place. C-core reads the files when it begins with a target.

The folder is this user's alone, in memory where the machine has a file system for that (/dev/shm), and removed at exit. C-core
finds the bootstrap in GRPC_XDS_BOOTSTRAP_CONFIG, which stays set: taking it away again while other threads read the environment
is not safe. `meshlib.xds.bootstrap` knows it by the node id and passes over it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import shutil
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from grpc._cython import cygrpc

from meshlib.errors import ConfigError, IdentityError
from meshlib.identity.material import Svid, to_pem
from meshlib.runtime import fork
from meshlib.transport.grpc.relay_server import AdsServer
from meshlib.xds.bootstrap import ENV_FILE, ENV_TEXT, RELAY_NODE, is_of_a_relay

__all__ = ["PLACES", "Hub", "check_environment", "elsewhere", "name_of_a_target", "the_hub"]

PLACES = 64
"""Pairs of an own certificate and of what is trusted, at one moment; and as many of trust without a certificate."""

MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of this user's alone is made in it

_REFRESH = "31536000s"
"""C-core looks at its files again after a year: they never change."""

Rejected = Callable[[str], None]


@dataclass(slots=True)
class _Place:
    name: str
    users: int = 0


_Pair = tuple[Svid | None, tuple[bytes, ...]]


class Hub:
    """Raises OSError: there is no place for its files."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._folder = Path(tempfile.mkdtemp(prefix="meshlib-", dir=_in_memory()))  # mode 0700
        self._free = {own: [f"{own}-{number}" for number in range(PLACES)] for own in ("own", "trust")}
        self._places: dict[_Pair, _Place] = {}
        self._targets: dict[str, tuple[Mapping[str, bytes], weakref.WeakMethod[Rejected], _Pair]] = {}
        self._dropped: deque[str] = deque()
        self._server = AdsServer(str(self._folder / "ads"), self._find, self._reject, self._reap)
        self._text = json.dumps(self._bootstrap())
        atexit.register(self._remove)

    def _bootstrap(self) -> dict[str, object]:
        server = {"server_uri": f"unix:{self._server.path}", "channel_creds": [{"type": "insecure"}]}
        providers = {}
        for own, names in self._free.items():
            for name in names:
                folder = self._folder / name
                config = {"ca_certificate_file": str(folder / "roots.pem"), "refresh_interval": _REFRESH}
                if own == "own":
                    config["certificate_file"] = str(folder / "chain.pem")
                    config["private_key_file"] = str(folder / "key.pem")
                providers[name] = {"plugin_name": "file_watcher", "config": config}
        return {"xds_servers": [server], "node": {"id": RELAY_NODE}, "certificate_providers": providers}

    def enter(
        self,
        target: str,
        pair: _Pair,
        resources: Callable[[str], Mapping[str, bytes]],
        rejected: weakref.WeakMethod[Rejected],
    ) -> None:
        """Have something to say about a target, until `leave` or `drop`. resources: by type URL, given the provider's name.

        Raises:
            IdentityError: every place is taken. OSError: a file can't be written. ConfigError: the application has a bootstrap.
        """
        self._reap()
        with self._lock:
            if not self._targets:  # C-core reads it when it has no target yet
                check_environment()
                os.environ[ENV_TEXT] = self._text
            place = self._places.get(pair)
            if place is None:
                place = self._places[pair] = self._fill(pair)
            place.users += 1
            self._targets[target] = resources(place.name), rejected, pair
            try:
                self._server.open()
            except OSError:
                self._leave(target)
                raise

    def leave(self, target: str) -> None:
        """Idempotent."""
        with self._lock:
            self._leave(target)

    def drop(self, target: str) -> None:
        """The same from a finalizer, which must not take a lock."""
        self._dropped.append(target)

    def _leave(self, target: str) -> None:
        known = self._targets.pop(target, None)
        if known is None:
            return
        pair = known[2]
        place = self._places[pair]
        place.users -= 1
        if not place.users:
            del self._places[pair]
            self._empty(place.name)
        if not self._targets:
            self._server.close()

    def _fill(self, pair: _Pair) -> _Place:
        own, roots = pair
        free = self._free["trust" if own is None else "own"]
        if not free:
            raise IdentityError(
                f'tls="relay" has room for {PLACES} pairs of a certificate and of what is trusted: use tls="tunnel"',
                expected=f"at most {PLACES} pairs",
                got="more",
            )
        name = free.pop()
        try:
            folder = self._folder / name
            folder.mkdir(mode=0o700)
            _write(folder / "roots.pem", to_pem(roots))
            if own is not None:
                _write(folder / "chain.pem", own.chain_pem())
                _write(folder / "key.pem", own.private_key.reveal())
        except OSError:
            self._empty(name)
            raise
        return _Place(name)

    def _empty(self, name: str) -> None:
        shutil.rmtree(self._folder / name, ignore_errors=True)
        self._free[name.partition("-")[0]].append(name)

    # --- on the thread that serves C-core ----------------------------------------------------------------------------

    def _find(self, type_url: str, target: str) -> bytes | None:
        known = self._targets.get(target)
        return None if known is None else known[0].get(type_url)

    def _reject(self, target: str, reason: str) -> None:
        known = self._targets.get(target)
        rejected = None if known is None else known[1]()
        if rejected is not None:
            rejected(reason)

    def _reap(self) -> None:
        while True:
            try:
                target = self._dropped.popleft()
            except IndexError:
                return
            self.leave(target)

    def _remove(self) -> None:
        if self.pid == os.getpid():
            shutil.rmtree(self._folder, ignore_errors=True)


class _Process:
    """Whose relay it is. A forked child has none: C-core has read a bootstrap that leads to the parent's."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.hub: Hub | None = None
        fork.register(self)

    def before_fork(self) -> None:
        """Nothing has to be closed."""

    def after_fork_in_parent(self) -> None:
        """Nothing has changed."""

    def after_fork_in_child(self) -> None:
        self.lock = threading.Lock()


_process = _Process()


def the_hub() -> Hub:
    """The process's, made at the first use. Raises OSError, as `Hub`."""
    with _process.lock:
        if _process.hub is None:
            _process.hub = Hub()
        return _process.hub


def elsewhere() -> bool:
    """Whether this is a child that was forked from a process with a relay."""
    hub = _process.hub
    return hub is not None and hub.pid != os.getpid()


def check_environment() -> None:
    """Raises ConfigError: the application has a bootstrap, and C-core takes one only as long as it has xDS clients."""
    for name in (ENV_FILE, ENV_TEXT):
        value = os.environ.get(name)
        if value and not (name == ENV_TEXT and is_of_a_relay(value)):
            raise ConfigError(
                f'tls="relay" needs the one bootstrap that grpcio reads in a process, and {name} is set: use tls="tunnel", '
                "or give the Mesh its control plane in another way (bootstrap=, server_uri=, config=)"
            )
    dump = getattr(cygrpc, "dump_xds_configs", None)
    clients: bytes = b"" if dump is None else dump()
    if clients and RELAY_NODE.encode() not in clients:
        raise ConfigError(
            'tls="relay" needs the one bootstrap that grpcio reads in a process, and grpcio has read another one, for an xds: '
            'channel that is open: use tls="tunnel"'
        )


def name_of_a_target() -> str:
    return f"meshlib-{secrets.token_hex(16)}"


def _in_memory() -> str | None:
    return str(MEMORY) if MEMORY.is_dir() and os.access(MEMORY, os.W_OK | os.X_OK) else None


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with contextlib.closing(os.fdopen(descriptor, "wb")) as file:
        file.write(content)
