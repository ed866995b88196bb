"""The wheel: what it carries, and that it lives beside OpenTelemetry's OTLP exporters in every order of installation.

xds-protos, which brings its own old copies of opentelemetry-proto and googleapis-common-protos, would break the second
part; docs/decisions.md tells that story.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
CONSTRAINTS = ROOT / "scripts" / "constraints.txt"
EXPORTERS = ["opentelemetry-exporter-otlp-proto-grpc", "opentelemetry-exporter-otlp-proto-http"]

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(240)]

USE_BOTH = """
import threading
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from google.rpc import code_pb2
from grpc_status import rpc_status
import meshlib
from meshlib import proto

spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
with provider.get_tracer("packaging").start_as_current_span("call") as span:
    span.set_attribute("cluster", "reviews")
encoded = encode_spans(spans.get_finished_spans()).SerializeToString()
decoded = ExportTraceServiceRequest.FromString(encoded)
assert decoded.resource_spans[0].scope_spans[0].scope.name == "packaging"
OverGrpc(endpoint="127.0.0.1:1", insecure=True).shutdown()
OverHttp(endpoint="http://127.0.0.1:1/v1/traces").shutdown()

cluster = proto.from_dict("envoy.config.cluster.v3.Cluster", {"name": "reviews", "connect_timeout": "0.25s"})
again = proto.parse("envoy.config.cluster.v3.Cluster", cluster.SerializeToString())
assert again == cluster and again.connect_timeout.ToMilliseconds() == 250
assert proto.unpack(proto.pack(cluster)) == cluster
print("both work")
"""


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    (built,) = folder.glob("meshlib_xds-*.whl")
    return built


def test_the_wheel_carries_what_it_needs_and_stays_small(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    assert sources <= names
    assert {"meshlib/py.typed", "meshlib/proto/descriptors.bin", "meshlib/proto/descriptors.json"} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"meshlib", "meshlib_xds"}
    assert not any(name.endswith((".pyc", "_pb2.py")) for name in names)
    assert wheel.stat().st_size < 1_250_000


@pytest.mark.parametrize("order", ["meshlib first", "exporters first", "one command"])
def test_lives_beside_the_otlp_exporters(order: str, wheel: Path, tmp_path: Path) -> None:
    ours = [str(wheel)]
    steps = {
        "meshlib first": [ours, EXPORTERS],
        "exporters first": [EXPORTERS, ours],
        "one command": [[*ours, *EXPORTERS]],
    }[order]
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    for packages in steps:
        run(*pip, "install", "--quiet", "--no-compile", "--constraint", CONSTRAINTS, *packages)
    assert run(python, "-I", "-c", USE_BOTH).strip() == "both work"
    run(*pip, "check")
