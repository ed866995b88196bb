"""The development CA: short-lived SPIFFE identities, served as SPIRE's agent serves them, or written to files.

For development and tests. There is no attestation worth the name: whoever may open the socket may have
the identities of its entries.
"""

from __future__ import annotations

from meshlib.controlplane.ca.authority import Authority, Phase
from meshlib.controlplane.ca.callers import Caller, Entry
from meshlib.controlplane.ca.certificates import Template
from meshlib.controlplane.ca.identities import Identities, View
from meshlib.controlplane.ca.sds import SecretAnswer
from meshlib.controlplane.ca.server import CaServer
from meshlib.controlplane.ca.svid import IssuedSvid

__all__ = [
    "Authority",
    "CaServer",
    "Caller",
    "Entry",
    "Identities",
    "IssuedSvid",
    "Phase",
    "SecretAnswer",
    "Template",
    "View",
]
