"""RBAC of one's own, where no control plane says who may do what: a file, or a dictionary."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meshlib import proto
from meshlib.errors import ConfigError, ResourceError
from meshlib.resources.decode_rbac import decode_rbac
from meshlib.resources.rbac import Rbac
from meshlib.resources.reader import Reading
from meshlib.resources.yamltext import Text, TextError

__all__ = ["RbacSource", "load_rbac"]

RbacSource = Rbac | Mapping[str, Any] | str | os.PathLike[str]

_TYPE = "envoy.extensions.filters.http.rbac.v3.RBAC"


def load_rbac(source: RbacSource) -> Rbac:
    """extensions.filters.http.rbac.v3.RBAC in the YAML or JSON form that Envoy takes: `rules:` and `shadow_rules:`.

    Raises:
        ConfigError: something in it is wrong, or would be left out; one line for each problem, with file, line and field.
    """
    if isinstance(source, Rbac):
        return source
    if isinstance(source, Mapping):
        return _decode(source, "rbac", None)
    path = Path(source)
    try:
        text = Text(path.read_text(encoding="utf-8"), is_json=path.suffix == ".json")
    except TextError as error:
        raise ConfigError(f"{path}:{error.line}: {error.reason}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if len(text.documents) != 1 or not isinstance(text.documents[0], Mapping):
        raise ConfigError(f"{path}: must hold one RBAC configuration: a mapping with 'rules:'")
    return _decode(text.documents[0], str(path), text)


def _decode(value: Mapping[str, Any], name: str, text: Text | None) -> Rbac:
    def wrong(path: str, reason: str) -> ConfigError:
        place = name if text is None else f"{name}:{text.line(0, path)}"
        return ConfigError(f"{place}: {path}: {reason}" if path else f"{place}: {reason}")

    given = {key: item for key, item in value.items() if key != "@type"}
    kind = value.get("@type", f"type.googleapis.com/{_TYPE}")
    if not isinstance(kind, str) or kind.rpartition("/")[2] != _TYPE:
        raise wrong("@type", f"must be type.googleapis.com/{_TYPE}")
    reading = Reading()
    try:
        made = decode_rbac(reading.root(proto.from_dict(_TYPE, given)))
        unsupported = reading.finish()
    except proto.FieldError as error:
        raise wrong(error.path, error.reason) from None
    except ResourceError as error:
        raise wrong(error.path, error.reason) from None
    if (
        unsupported
    ):  # a file is the user's own: what would be left out is a mistake, not somebody else's extension
        raise wrong(unsupported[0], "is not implemented")
    return made
