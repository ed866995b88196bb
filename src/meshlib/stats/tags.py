"""The part of a statistic's name that is a value, as Envoy's tag extraction finds it at the end of a name.

Envoy takes names apart with rules (`source/common/config/well_known_names.cc`): `upstream_rq_503` becomes the family
`upstream_rq` with the label `envoy_response_code="503"`. What stands in the middle of a name, such as the cluster, is known
where the metric is bound (`Registry.scope`), so only the rules for endings are needed here.
"""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["Labels", "clean", "tagged"]

Labels = tuple[tuple[str, str], ...]
"""Pairs of a label's name and its value, in the order in which they are shown."""

_CLUSTER = "cluster."

_ENDINGS = (
    (re.compile(r"^(.*_rq)_(\d{3})$"), "envoy_response_code", r"\1"),
    (re.compile(r"^(.*_rq_)(\d)xx$"), "envoy_response_code_class", r"\1xx"),
    (re.compile(r"^(ssl\.curves)\.([\w-]+)$"), "envoy_ssl_curve", r"\1"),
    (re.compile(r"^(ssl\.sigalgs)\.([\w-]+)$"), "envoy_ssl_sigalg", r"\1"),
    (re.compile(r"^(ssl\.versions)\.(TLSv\d\.\d)$"), "envoy_ssl_version", r"\1"),
)
_CIPHER = re.compile(r"^(ssl\.ciphers)\.([\w-]+)$")


@lru_cache(4096)
def tagged(family: str, leaf: str) -> tuple[str, Labels]:
    """The name of the family and the labels that the leaf of a name gives below the family of its scope (`cluster.`)."""
    cipher = _CIPHER.match(leaf)
    if cipher:  # Envoy has another name for it on each side
        label = "cipher_suite" if family == _CLUSTER else "envoy_ssl_cipher"
        return family + cipher[1], ((label, cipher[2]),)
    for pattern, label, kept in _ENDINGS:
        found = pattern.match(leaf)
        if found:
            return family + found.expand(kept), ((label, found[2]),)
    return family + leaf, ()


def clean(part: str) -> str:
    """A part of a name as Envoy writes it: no colons, no dot at either end (`Stats::Utility::sanitizeStatsName`)."""
    part = part.removesuffix(".").removeprefix(".")
    if ":" in part:
        part = part.replace("://", "_").replace(":/", "_").replace(":", "_")
    return part
