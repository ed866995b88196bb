"""Build the peers that the optional interoperability tests talk to, SPIRE's server and agent, from the Go module proxy.

    python3 -m scripts.peers

Needs Go; without it this says so and does nothing, and the tests that need the peers are skipped. The source is a pinned version
whose checksum is checked here; what it needs in turn is checked against its own go.sum. About ten minutes on one processor, once;
what is built stays in .cache/peers. MESHLIB_PEERS names another folder with the programs.
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


class BuildFailed(Exception):
    """A command of Go's failed; the message is its last words."""


def folder() -> Path:
    """Where the programs are, or would be."""
    return Path(os.environ.get("MESHLIB_PEERS") or HOME / "bin")


def missing() -> list[str]:
    """The programs that are not there."""
    return [name for name in PROGRAMS if not (folder() / name).exists()]


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
    """0 when the programs are there, or Go is not; 1 when the build fails."""
    if not missing():
        return 0
    go = shutil.which("go")
    if go is None:
        print(f"no Go here: {', '.join(missing())} can't be built, the tests against SPIRE are skipped")
        return 0
    for needed in (HOME, folder()):
        needed.mkdir(parents=True, exist_ok=True)
    try:
        build(go)
    except BuildFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
