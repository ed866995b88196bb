"""What a host library is given: the right classes, in both modules, from one source."""

from __future__ import annotations

import importlib.util
import inspect
import pickle
from pathlib import Path
from typing import Any, cast

import httpx
import httpx2
import pytest

import meshlib.httpx
import meshlib.httpx2
from meshlib import errors
from meshlib.engine.call import Call, CallInfo
from meshlib.transport.http.exchange import Answer

ROOT = Path(__file__).parents[3]
LIBRARIES = [(httpx, meshlib.httpx), (httpx2, meshlib.httpx2)]


def test_the_module_for_httpx2_is_up_to_date() -> None:
    path = ROOT / "scripts" / "generate_httpx2.py"
    spec = importlib.util.spec_from_file_location("generate_httpx2", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.main(["--check"]) == 0


@pytest.mark.parametrize(("lib", "mod"), LIBRARIES)
def test_every_error_is_both(lib: Any, mod: Any) -> None:
    for name in mod.__all__:
        cls = getattr(mod, name)
        if not issubclass(cls, Exception):
            continue
        assert issubclass(cls, errors.MeshError)
        assert issubclass(cls, lib.TransportError)
        request = lib.Request("GET", "http://backend/")
        error: Any = cls("why", flags="UF", details="d")
        error.request = request
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), copy.flags, copy.request.url) == (cls, "why", "UF", request.url)


@pytest.mark.parametrize(("lib", "mod"), LIBRARIES)
def test_every_error_of_a_call_has_a_class(lib: Any, mod: Any) -> None:
    request = lib.Request("GET", "http://backend/")
    for cls in vars(errors).values():
        if not (inspect.isclass(cls) and issubclass(cls, errors.MeshError)) or cls is errors.ResourceError:
            continue
        reply = errors.LocalReply(503)
        attempts = (errors.AttemptRecord("1.2.3.4:5", None, "overflow", 0.1),)
        error = cls("why", flags="UO", details="d", attempts=attempts, local_reply=reply)
        made: Any = mod._translate(error, request)
        assert made.request is request
        assert isinstance(made, lib.TransportError)
        assert isinstance(made, errors.MeshError)
        assert isinstance(made, cls) or type(made) is mod.OtherMeshError
        assert (made.flags, made.details, made.attempts, made.local_reply) == ("UO", "d", attempts, reply)


def test_importing_one_library_does_not_need_the_other() -> None:
    source = (ROOT / "src" / "meshlib" / "httpx2.py").read_text()
    assert "import httpx\n" not in source


@pytest.mark.interpreted
@pytest.mark.parametrize(("lib", "mod"), LIBRARIES)
@pytest.mark.parametrize(
    "value", [b"plain", "gr\u00fc\u00df".encode(), "gr\u00fc\u00df".encode("latin-1"), b""]
)
def test_headers_are_those_that_the_library_would_make(lib: Any, mod: Any, value: bytes) -> None:
    raw = [(b"X-One", b"1"), (b"x-two", value), (b"X-ONE", b"2")]
    fields = [part for header in raw for part in header]
    made = mod._whole(Answer(200, fields, CallInfo(cast("Call", None)), content=b""), b"").headers
    own = lib.Headers(raw)
    assert made == own
    assert (made.raw, made.encoding, made.multi_items()) == (own.raw, own.encoding, own.multi_items())
    made["x-three"] = own["x-three"] = "3"
    assert made.raw == own.raw
