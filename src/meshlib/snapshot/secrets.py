"""The secrets that come from elsewhere than the stream of the other resources: who needs them, and what has come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set as AbstractSet
from typing import Any

from meshlib.resources.secret import Secret
from meshlib.resources.tls import AdsSource, SecretRef
from meshlib.snapshot.snapshot import Ref
from meshlib.snapshot.table import Table

__all__ = ["ExternalSecrets"]


class ExternalSecrets:
    """found: the last good version of each. missing: those that have not come in time, or were refused at first."""

    def __init__(self) -> None:
        self.found: Table[SecretRef, Secret] = Table()
        self.missing: Table[SecretRef, None] = Table()
        self._needed: dict[Ref, frozenset[SecretRef]] = {}
        self._count: Counter[SecretRef] = Counter()

    @property
    def tables(self) -> tuple[Table[Any, Any], ...]:
        return self.found, self.missing

    @property
    def wanted(self) -> AbstractSet[SecretRef]:
        return self._count.keys()

    def need(self, ref: Ref, secrets: tuple[SecretRef, ...]) -> None:
        """The cluster or listener needs these from now on, and no others. What nobody needs is forgotten."""
        wanted = frozenset(each for each in secrets if not isinstance(each.source, AdsSource))
        before = self._needed.pop(ref, frozenset())
        if wanted:
            self._needed[ref] = wanted
            self._count.update(wanted - before)
        for each in before - wanted:
            self._count[each] -= 1
            if not self._count[each]:
                del self._count[each]
                self.found.drop(each)
                self.missing.drop(each)

    def take(self, ref: SecretRef, secret: Secret | None) -> None:
        """A secret has come; None: it is missing, unless an earlier version is there. One that nobody needs is passed over."""
        if ref not in self.wanted:
            return
        if secret is not None:
            self.found.set(ref, secret)
            self.missing.drop(ref)
        elif ref not in self.found.current:
            self.missing.set(ref, None)
