"""The TLS cases, as cases.yaml says them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from conformance.reader import CaseError
from conformance.tls.materials import Materials

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CASES = Path(__file__).with_name("cases.yaml")

PLAINTEXT, SILENT = "plaintext", "silent"
"""Instead of a client's settings: no TLS. Instead of a server's: it accepts connections and never says a word."""

BODY = "upstream connect error or disconnect/reset before headers. reset reason: "

_SIDE = frozenset(
    [
        "certificate",
        "roots",
        "crl",
        "sans",
        "spiffe",
        "validation",
        "alpn",
        "min",
        "max",
        "curves",
        "require",
        "sni",
        "auto_host_sni",
        "auto_sni_san_validation",
    ]
)
_EXPECT = frozenset(
    [
        "status",
        "flags",
        "reason",
        "transport",
        "server_transport",
        "client_stats",
        "server_stats",
        "uri_san",
        "xfcc",
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsCase:
    """One client, one server, one request.

    client: settings of the cluster's TLS context (see `materials`), or "plaintext". server: of the filter chain's, or "silent".
    expect: what Envoy gives as the client of an Envoy, in the words of cases.yaml.
    """

    name: str
    client: Mapping[str, Any] | str
    server: Mapping[str, Any] | str
    expect: Mapping[str, Any]

    @property
    def expected(self) -> dict[str, Any]:
        """Attribute of an outcome -> what is expected of it."""
        found: dict[str, Any] = {"flags": "-", "transport": "", "body": "served", **self.expect}
        reason = found.pop("reason", "remote connection failure")
        if not self.connects:
            cause = reason.replace(" ", "_") + (f"|{found['transport']}" if found["transport"] else "")
            found["details"] = f"upstream_reset_before_response_started{{{cause}}}"
            found["body"] = BODY + reason
        return found

    @property
    def connects(self) -> bool:
        """Whether the request arrives."""
        return bool(self.expect["status"] == 200)


def load(path: Path = CASES) -> tuple[list[TlsCase], Materials]:
    """The cases and what they are made of.

    Raises:
        CaseError: a key that nobody knows, or a name that is there twice.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    cases = [TlsCase(**entry) for entry in content["cases"]]
    for case in cases:
        for side in (case.client, case.server):
            unknown = {side} - {PLAINTEXT, SILENT} if isinstance(side, str) else set(side) - _SIDE
            if unknown:
                raise CaseError(f"{path.name}: case {case.name}: unknown: {', '.join(sorted(unknown))}")
        if set(case.expect) - _EXPECT:
            raise CaseError(
                f"{path.name}: case {case.name}: unknown: {', '.join(set(case.expect) - _EXPECT)}"
            )
    names = [case.name for case in cases]
    if len(set(names)) < len(names):
        raise CaseError(f"{path.name}: a name is there twice")
    return cases, Materials(content["authorities"], content["certificates"])


def wrong(case: TlsCase, outcome: object, fields: Iterable[str] | None = None) -> dict[str, tuple[Any, Any]]:
    """Attribute -> (expected, found), where an outcome is not what the case expects; of these attributes, or all."""
    expected = case.expected
    pairs = {
        name: (expected[name], getattr(outcome, name)) for name in fields or expected if name in expected
    }
    return {name: (wanted, found) for name, (wanted, found) in pairs.items() if not _says(wanted, found)}


def _says(wanted: object, found: object) -> bool:
    if isinstance(found, tuple):
        found = list(found)
    if not (isinstance(wanted, str) and isinstance(found, str)):
        return wanted == found
    return re.fullmatch(".*".join(map(re.escape, wanted.split("..."))), found, re.DOTALL) is not None
