"""xDS resources as validated frozen dataclasses.

listener, route, cluster, endpoint and what they are made of hold the dataclasses; decode_* turn protobuf into them. `decode`
and `decode_any` are loaded on first use, so that importing a dataclass does not load protobuf.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshlib.resources.decoding import Decoded as Decoded
    from meshlib.resources.decoding import decode as decode
    from meshlib.resources.decoding import decode_any as decode_any

__all__ = ["Decoded", "decode", "decode_any"]


def __getattr__(name: str) -> object:
    if name in __all__:
        import meshlib.resources.decoding as module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
