"""The parts of scripts/build_descriptors.py that decide what goes into the wheel; the whole runs in ``make test``."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

from scripts import build_descriptors as script


def field(options: bytes) -> FieldDescriptorProto:
    made = FieldDescriptorProto(name="f", number=1)
    made.options.MergeFromString(options)
    return made


RULES = b"\xfa\x42\x02\x08\x01"  # (validate.rules), extension 1071
SENSITIVE = b"\xb8\xb7\x8b\xa4\x02\x01"  # (udpa.annotations.sensitive)


def test_the_descriptor_is_read_from_the_source_text() -> None:
    file = FileDescriptorProto(name="a.proto", package="a")
    text = f"x = 1\nDESCRIPTOR = pool.Default().AddSerializedFile({file.SerializeToString()!r})\nraise SystemExit\n"
    assert FileDescriptorProto.FromString(script.serialized(text)) == file
    with pytest.raises(ValueError, match="without a serialised descriptor"):
        script.serialized("x = 1\n")


def test_of_the_options_of_a_field_only_the_limits_and_the_deprecation_stay() -> None:
    made = field(SENSITIVE + RULES + b"\x18\x01")  # deprecated = true
    script.strip_field(made)
    assert made.options.deprecated
    assert made.options.SerializeToString(deterministic=True) == b"\x18\x01" + RULES


def test_imports_that_only_options_needed_go() -> None:
    file = FileDescriptorProto(
        name="a.proto",
        dependency=["udpa/annotations/status.proto", "b.proto", "validate/validate.proto", "c.proto"],
        public_dependency=[3],
    )
    file.options.go_package = "x"
    script.strip(file)
    assert list(file.dependency) == ["b.proto", "c.proto"]
    assert list(file.public_dependency) == [1]
    assert not file.HasField("options")


def test_the_limits_keep_their_import() -> None:
    file = FileDescriptorProto(name="a.proto", dependency=["validate/validate.proto"])
    file.message_type.add(name="M").field.append(field(RULES))
    script.strip(file)
    assert list(file.dependency) == ["validate/validate.proto"]


def test_map_entries_and_aliases_keep_their_meaning() -> None:
    entry = descriptor_pb2.DescriptorProto(name="E")
    entry.options.map_entry = True
    entry.options.deprecated = True
    script.strip_message(entry)
    assert entry.options == descriptor_pb2.MessageOptions(map_entry=True)
    enum = descriptor_pb2.EnumDescriptorProto(name="E")
    enum.options.allow_alias = True
    script.strip_enum(enum)
    assert enum.options.allow_alias


def test_a_wheel_of_other_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / script.WHEEL).write_bytes(b"no wheel")
    with pytest.raises(SystemExit, match="sha256"):
        script.wheel(tmp_path)


def test_the_check_notices_another_set() -> None:
    committed = {name: (script.OUT / name).read_bytes() for name in ("descriptors.bin", "descriptors.json")}
    assert script.up_to_date(committed)
    other = zlib.compress(b"other")
    assert not script.up_to_date({**committed, "descriptors.bin": other})
    assert not script.up_to_date({**committed, "descriptors.json": b"{}"})
    recompressed = zlib.compress(zlib.decompress(committed["descriptors.bin"]), 1)
    assert script.up_to_date({**committed, "descriptors.bin": recompressed})
