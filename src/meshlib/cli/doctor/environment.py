"""Python, its packages, and what the operating system gives a process."""

from __future__ import annotations

import os
import platform
import resource
import ssl
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path

from meshlib.cli.doctor.findings import Check, Finding, Question, broken, warning, well

__all__ = ["ENVIRONMENT"]

FEW_DESCRIPTORS = 1024
OLDEST_OPENSSL = (1, 1, 1)
OLDEST_GRPC = (1, 85, 1)

_UVLOOP = {11: (0, 17), 12: (0, 19), 13: (0, 21), 14: (0, 22)}
"""The first uvloop for each Python 3.x."""

_SHM = "/dev/shm"  # noqa: S108 - looked at, not used


def python(_question: Question) -> Iterator[Finding]:
    if platform.python_implementation() == "CPython":
        yield well("python", f"CPython {platform.python_version()}")
    else:
        yield warning("python", f"{platform.python_implementation()} is not tested", "use CPython")


def free_threading(_question: Question) -> Iterator[Finding]:
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        return
    enabled = getattr(sys, "_is_gil_enabled", lambda: True)()
    if enabled:
        yield warning("free-threading", "a free-threaded Python that runs with the GIL", "keep PYTHON_GIL=1")
    else:
        yield broken(
            "free-threading",
            "a Python without the GIL: counters and permits of meshlib are not exact there",
            "use a build with the GIL, or set PYTHON_GIL=1",
        )


def protobuf_exporters(_question: Question) -> Iterator[Finding]:
    """xds-protos overwrites modules of opentelemetry-proto and googleapis-common-protos; see docs/decisions.md."""
    if not _installed("xds-protos"):
        return
    if not _installed("opentelemetry-proto"):
        yield well("xds-protos", "installed, and no OTLP exporter that it could break")
        return
    code = "import opentelemetry.proto.trace.v1.trace_pb2, opentelemetry.proto.common.v1.common_pb2 as c; c.InstrumentationScope"
    if subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=False).returncode:
        yield broken(
            "xds-protos",
            "xds-protos has overwritten modules of OpenTelemetry's OTLP exporter, which can't be imported any longer",
            "pip uninstall xds-protos; pip install --force-reinstall --no-deps opentelemetry-proto googleapis-common-protos",
        )
    else:
        yield warning(
            "xds-protos",
            "xds-protos is installed beside OpenTelemetry's OTLP exporter; the next upgrade may break either",
            "meshlib does not need it: pip uninstall xds-protos, then pip install --force-reinstall --no-deps "
            "opentelemetry-proto googleapis-common-protos",
        )


def another_meshlib(_question: Question) -> Iterator[Finding]:
    if _installed("meshlib"):
        yield broken(
            "meshlib",
            "the package `meshlib` of the index, a geometry library, is installed: it has the same import name",
            "pip uninstall meshlib; pip install --force-reinstall --no-deps meshlib-xds",
        )


def regular_expressions(question: Question) -> Iterator[Finding]:
    if util.find_spec("re2") is not None:
        yield well("re2", "google-re2 is installed")
        return
    needed = _patterns(question.config)
    repair = "pip install 'meshlib-xds[re2]'" + (" (there is no wheel for musl)" if _musl() else "")
    if needed:
        yield broken("re2", f"without google-re2 these are refused: {'; '.join(needed[:3])}", repair)
    else:
        yield warning(
            "re2", "google-re2 is missing: patterns that could backtrack without bound are refused", repair
        )


def _patterns(config: tuple[str, ...]) -> list[str]:
    """The problems of the files that only google-re2 would solve."""
    if not config:
        return []
    from meshlib.cli.config import checked

    return [str(problem) for problem in checked(config)[1] if "re2" in str(problem)]


def grpc(_question: Question) -> Iterator[Finding]:
    version = _version("grpcio")
    if version is None:
        return
    if _numbers(version) < OLDEST_GRPC:
        oldest = ".".join(map(str, OLDEST_GRPC))
        yield broken(
            "grpcio", f"grpcio {version} loses calls of forked children", f"pip install 'grpcio>={oldest}'"
        )
    else:
        yield well("grpcio", f"grpcio {version}")


def fork_support(_question: Question) -> Iterator[Finding]:
    value = os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "").lower()
    if value in ("0", "false", "no"):
        yield broken(
            "fork",
            f"GRPC_ENABLE_FORK_SUPPORT={value} makes forked children hang in grpcio",
            "unset GRPC_ENABLE_FORK_SUPPORT",
        )


def gevent(_question: Question) -> Iterator[Finding]:
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        yield broken(
            "gevent",
            "gevent has patched `threading`: the connection to the control plane needs real threads",
            "gevent.monkey.patch_all(thread=False), or Mesh(config=[...])",
        )
    elif _installed("gevent"):
        yield warning(
            "gevent",
            "gevent is installed; gunicorn's gevent workers patch `threading`, and a Mesh refuses to start there",
            "use sync, gthread or uvicorn workers",
        )


def event_loops(_question: Question) -> Iterator[Finding]:
    version = _version("uvloop")
    if version is None:
        return
    oldest = _UVLOOP[max(minor for minor in _UVLOOP if minor <= max(sys.version_info[1], 11))]
    if _numbers(version) < oldest:
        shown = ".".join(map(str, oldest))
        yield warning(
            "uvloop",
            f"uvloop {version} is older than the first for this Python",
            f"pip install 'uvloop>={shown}'",
        )
    else:
        yield well("uvloop", f"uvloop {version}")


def openssl(_question: Question) -> Iterator[Finding]:
    if ssl.OPENSSL_VERSION_INFO[:3] < OLDEST_OPENSSL:
        yield broken("openssl", f"{ssl.OPENSSL_VERSION} has no TLS 1.3", "use a Python with OpenSSL 3")
    elif ssl.OPENSSL_VERSION_INFO[0] < 3:
        yield warning(
            "openssl", f"{ssl.OPENSSL_VERSION} gets no fixes any longer", "use a Python with OpenSSL 3"
        )
    elif not ssl.HAS_TLSv1_3:
        yield broken(
            "openssl", f"{ssl.OPENSSL_VERSION} was built without TLS 1.3", "use another build of Python"
        )
    else:
        yield well("openssl", ssl.OPENSSL_VERSION)


def protobuf(_question: Question) -> Iterator[Finding]:
    from google.protobuf.internal import api_implementation

    kind = api_implementation.Type()
    if kind != "upb":
        chosen = os.environ.get("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION")
        why = (
            f"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION={chosen}"
            if chosen
            else "there is no binary wheel for this machine"
        )
        yield warning(
            "protobuf", f"protobuf runs as {kind}, a hundred times slower: {why}", "use its upb build"
        )
    else:
        yield well("protobuf", f"protobuf {metadata.version('protobuf')} (upb)")


def descriptors(_question: Question) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft <= FEW_DESCRIPTORS:
        most = "unlimited" if hard < 0 else str(hard)
        yield warning(
            "descriptors",
            f"a process may have {soft} open files, and each connection is one",
            f"ulimit -n 65536 (up to {most} without more rights), or LimitNOFILE= of the service",
        )
    else:
        yield well("descriptors", f"{'unlimited' if soft < 0 else soft} open files")


def shared_memory(_question: Question) -> Iterator[Finding]:
    repair = f"mount a tmpfs on {_SHM}"
    if os.access(_SHM, os.W_OK):
        yield well("shm", f"{_SHM} can be written")
    elif hasattr(os, "memfd_create"):
        yield warning("shm", f"there is no {_SHM}: with tls='relay', keys would be files on disk", repair)
    else:
        yield warning("shm", f"there is no {_SHM}: keys are files on disk for a moment", repair)


def run_directory(_question: Question) -> Iterator[Finding]:
    from meshlib.admin.processes import ProcessDirectory, default_path
    from meshlib.errors import ConfigError

    try:
        with ProcessDirectory() as directory:
            yield well("run-directory", f"{directory.path}")
    except ConfigError as error:
        yield broken("run-directory", str(error), f"rm -rf {default_path()}, or set MESHLIB_RUN_DIR")


def _installed(name: str) -> bool:
    return _version(name) is not None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    numbers = []
    for part in version.split("."):
        digits = "".join(character for character in part if character.isdigit())
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def _musl() -> bool:
    return any(Path("/lib").glob("ld-musl-*"))


ENVIRONMENT: tuple[Check, ...] = (
    python,
    free_threading,
    another_meshlib,
    protobuf_exporters,
    protobuf,
    regular_expressions,
    grpc,
    fork_support,
    gevent,
    event_loops,
    openssl,
    descriptors,
    shared_memory,
    run_directory,
)
