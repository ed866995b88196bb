"""What several resources have in common: configuration sources, data sources, fractions."""

from __future__ import annotations

import os
from pathlib import Path

from meshlib.errors import ResourceError
from meshlib.resources import operators
from meshlib.resources.format import Format, FormatError, parse
from meshlib.resources.matching import FractionalPercent
from meshlib.resources.reader import Reader

__all__ = [
    "data_source",
    "format_string",
    "fractional_percent",
    "from_control_plane",
    "runtime_fraction",
]

_ILLEGAL = ("/dev/", "/proc/", "/sys/")
"""As in Envoy: some of what lies there has no end."""

_DENOMINATORS = {0: 100, 1: 10_000, 2: 1_000_000}


def from_control_plane(reader: Reader, field: str) -> None:
    """Accept a core.v3.ConfigSource that means the control plane (or the files) that this resource came from."""
    source = reader.required(field)
    kind = source.which("config_source_specifier")
    if kind in ("ads", "self"):
        source.leave(kind)
    elif kind in ("path", "path_config_source"):
        source.unsupported(kind)
    elif kind is None:
        raise reader.fail(field, "must say where from: ads or self")
    else:
        raise source.fail(kind, "another control plane is not supported: use ads or self")


def runtime_fraction(reader: Reader | None) -> FractionalPercent | None:
    """A core.v3.RuntimeFractionalPercent; there is no runtime, so its default counts."""
    if reader is None:
        return None
    return fractional_percent(reader.required("default_value"))


def fractional_percent(reader: Reader) -> FractionalPercent:
    """A type.v3.FractionalPercent."""
    denominator = reader.enum("denominator", _DENOMINATORS)
    return FractionalPercent(numerator=reader.number("numerator"), denominator=denominator)


def format_string(
    reader: Reader,
    field: str,
    text: str,
    evaluated: frozenset[str] = operators.EVALUATED,
    extra: frozenset[str] = operators.HEADERS_ONLY,
) -> Format:
    """A format string. Operators that are not among those evaluated in its place are reported as `field<OPERATOR>`.

    extra: see `format.parse`.
    """
    try:
        parsed = parse(text, extra)
    except FormatError as error:
        raise reader.fail(field, error.reason) from None
    for name in parsed.operators():
        if name not in evaluated:
            reader.unsupported(f"{field}<%{name}%>")
    return parsed


def data_source(reader: Reader) -> bytes:
    """The content of a core.v3.DataSource, read now."""
    kind = reader.which("specifier")
    if kind == "inline_string":
        return reader.text("inline_string").encode()
    if kind == "inline_bytes":
        return bytes(reader.value("inline_bytes"))
    if kind == "environment_variable":
        name = reader.text("environment_variable")
        if name not in os.environ:
            raise reader.fail("environment_variable", f"there is no environment variable {name!r}")
        return os.environ[name].encode("utf-8", "surrogateescape")
    if kind != "filename":
        raise reader.fail("", "must be given")
    return _file(reader)


def _file(reader: Reader) -> bytes:
    try:
        path = Path(reader.text("filename"))
        if str(path.resolve()).startswith(_ILLEGAL):
            raise ResourceError(reader.at("filename"), "devices and the kernel's files are not read")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ResourceError(reader.at("filename"), f"the file can't be read: {reason}") from None
