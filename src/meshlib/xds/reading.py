"""A configuration from files, read and decoded as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshlib.errors import ConfigError, ResourceError
from meshlib.resources import Decoded, decode
from meshlib.resources.files import DECODED, load
from meshlib.snapshot import Ref
from meshlib.snapshot.snapshot import kind_of

__all__ = ["ConfigSource", "FileResources", "read_files"]

ConfigSource = str | os.PathLike[str] | Mapping[str, Any]
"""A file, a folder, or a document."""


@dataclass(frozen=True, slots=True)
class FileResources:
    """decoded: every resource. encoded: the bytes of each."""

    decoded: list[Decoded]
    encoded: dict[Ref, bytes]


def read_files(sources: Iterable[ConfigSource]) -> FileResources:
    """Every resource of the files.

    Raises:
        ConfigError: something is wrong with them; one line for each problem.
    """
    given = [source if isinstance(source, Mapping) else Path(source) for source in sources]
    config = load(given)
    problems = [str(problem) for problem in config.problems]
    found = FileResources([], {})
    for resource in config.resources:
        if resource.type_url not in DECODED:
            continue
        try:
            decoded = decode(resource.type_url, resource.message)
        except ResourceError as error:
            problems.append(str(resource.origin.problem(error.path, error.reason)))
            continue
        found.decoded.append(decoded)
        found.encoded[kind_of(decoded.resource), decoded.name] = resource.message.SerializeToString()
    if problems:
        raise ConfigError("\n".join(problems))
    return found
