"""Get the peers that the optional interoperability tests talk to: SPIRE's server and agent, and Prometheus.

    python3 -m scripts.peers

SPIRE is built from the Go module proxy, which needs Go. The source is a pinned version whose checksum is checked here; what it
needs in turn is checked against its own go.sum. About ten minutes on one processor, once. Prometheus is taken out of Debian's
package, which needs apt; it is not installed. What can't be had is named, and the tests that need it are skipped. What is there
stays in .cache/peers. MESHLIB_PEERS names another folder with the programs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".cache" / "peers"
MODULE, VERSION = "github.com/spiffe/spire", "v1.13.3"
SUM = "h1:wDTK8tj8ShO5izjue/OFanVaehmjUxSxHtSWxBY+FJQ="
PROGRAMS = ("spire-server", "spire-agent")
PROMETHEUS = "prometheus"


class BuildFailed(Exception):
    """A command failed; the message is its last words."""


def folder() -> Path:
    """Where the programs are, or would be."""
    return Path(os.environ.get("MESHLIB_PEERS") or HOME / "bin")


def missing() -> list[str]:
    """The programs that are not there."""
    return [name for name in PROGRAMS if not (folder() / name).exists()]


def prometheus() -> str | None:
    """The program: that of the machine, or ours. None when there is none."""
    own = folder() / PROMETHEUS
    return shutil.which(PROMETHEUS) or (str(own) if own.exists() else None)


def fetch_prometheus() -> None:
    """Take the programs out of Debian's package. Raises BuildFailed."""
    place = HOME / "debian"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    place.chmod(0o755)  # apt downloads as a user of its own where it can
    _run(["apt-get", "download", "--quiet", PROMETHEUS], place)
    package = next(place.glob("*.deb"))
    _run(["dpkg-deb", "--extract", str(package), "root"], place)
    for name in (PROMETHEUS, "promtool"):
        shutil.copy(place / "root" / "usr" / "bin" / name, folder() / name)
    shutil.rmtree(place)


def build(go: str) -> None:
    """Download, check and build the programs. Raises BuildFailed."""
    # `mod download` needs no go.mod; a version's checksum is the same whoever serves it.
    found = json.loads(_run([go, "mod", "download", "-json", f"{MODULE}@{VERSION}"], HOME))
    if found["Sum"] != SUM:
        raise BuildFailed(f"{MODULE}@{VERSION} has the checksum {found['Sum']}, expected {SUM}")
    source = HOME / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(found["Dir"], source, copy_function=shutil.copyfile)  # the module cache is read-only
    source.chmod(0o755)
    for name in PROGRAMS:
        print(f"building {name} {VERSION} ...", flush=True)
        _run([go, "build", "-mod=readonly", "-o", str(folder() / name), f"./cmd/{name}"], source)
    shutil.rmtree(source, ignore_errors=True)


def _run(command: list[str], where: Path) -> str:
    done = subprocess.run(
        command, cwd=where, env={**os.environ, "GOFLAGS": ""}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        words = (done.stderr or done.stdout).splitlines()[-5:]
        raise BuildFailed("\n".join([*words, f"{' '.join(command[:3])} ... failed"]))
    return done.stdout


def main() -> int:
    """0 when the programs are there, or what it takes to get them is not; 1 when that fails."""
    for needed in (HOME, folder()):
        needed.mkdir(parents=True, exist_ok=True)
    go = shutil.which("go")
    try:
        if missing() and go is None:
            print(f"no Go here: {', '.join(missing())} can't be built, the tests against SPIRE are skipped")
        elif missing() and go is not None:
            build(go)
        if prometheus() is None and shutil.which("apt-get") is None:
            print("no apt here: the test against Prometheus is skipped unless it is installed")
        elif prometheus() is None:
            fetch_prometheus()
    except BuildFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
