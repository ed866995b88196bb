"""An identity in files: watched, and taken over when certificate and key fit together.

Whoever replaces certificate and key one after the other leaves a moment in which they do not belong together. That is waited
out, with the last good identity in force; only when it lasts is it reported. Kubernetes (and `meshlib ca issue`) replace all
files of a folder at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from meshlib.errors import ConfigError, IdentityError
from meshlib.identity.material import BundleSet, Svid, TrustBundle, certificates_from_pem
from meshlib.identity.polling import INTERVAL, Files, Poller
from meshlib.identity.resolve import bundle_map
from meshlib.identity.source import IdentityUpdate
from meshlib.identity.spiffe import check_trust_domain
from meshlib.runtime.clock import Clock, SystemClock
from meshlib.runtime.threads import Executor

__all__ = ["FileIdentity"]

PATIENCE = 2
"""Looks that a new state of the files may be unusable before it is reported."""


class FileIdentity:
    """An IdentitySource of PEM files.

        FileIdentity(certificate="tls.crt", private_key="tls.key", bundle="ca.crt")
        FileIdentity.of_folder("/run/identity")          # as `meshlib ca issue --out` and Kubernetes' tls secrets lay it out

    certificate: the chain, leaf first. private_key: PKCS#8, PKCS#1 or SEC1, not encrypted. Both or none.
    bundle: the authorities of the own trust domain; trust_domain: its name, needed without a certificate. federated: files with
    the authorities of other trust domains, by name. bundle_map: a SPIFFE bundle map (JSON) in their place. roots: authorities
    that are trusted whatever a peer's trust domain, in the place of bundles.
    interval: seconds between two looks.
    """

    def __init__(
        self,
        *,
        certificate: str | Path | None = None,
        private_key: str | Path | None = None,
        bundle: str | Path | None = None,
        trust_domain: str | None = None,
        federated: Mapping[str, str | Path] | None = None,
        bundle_map: str | Path | None = None,
        roots: str | Path | None = None,
        interval: float = INTERVAL,
        clock: Clock | None = None,
        executor: Callable[[], Executor] | None = None,
    ) -> None:
        """Raises: ConfigError: files that belong together are not given together. IdentityError: not a trust domain."""
        if (certificate is None) != (private_key is None):
            raise ConfigError("certificate and private_key belong together: give both or none")
        if sum(item is not None for item in (bundle, bundle_map, roots)) > 1:
            raise ConfigError("give one of bundle, bundle_map and roots")
        if bundle is not None and certificate is None and trust_domain is None:
            raise ConfigError("a bundle without a certificate needs trust_domain")
        if federated and bundle is None:
            raise ConfigError("federated bundles belong to a bundle")
        if certificate is None and bundle is None and bundle_map is None and roots is None:
            raise ConfigError("no file is given")
        for name in (*([trust_domain] if trust_domain else ()), *(federated or ())):
            check_trust_domain(name)
        self._certificate = certificate
        self._private_key = private_key
        self._bundle = bundle
        self._trust_domain = trust_domain
        self._federated = dict(federated or {})
        self._bundle_map = bundle_map
        self._roots = roots
        self._files = Files()
        self._poller = Poller(self._look, clock=clock or SystemClock(), interval=interval, executor=executor)
        self._looking = threading.Lock()
        self._on_update: Callable[[IdentityUpdate], None] | None = None
        self._last: IdentityUpdate | None = None
        self._failures = 0

    @classmethod
    def of_folder(
        cls, folder: str | Path, *, interval: float = INTERVAL, clock: Clock | None = None
    ) -> FileIdentity:
        """From `tls.crt` and `tls.key`, with `bundles.json` where it exists, else `ca.crt`.

        Raises:
            ConfigError: the folder does not exist.
        """
        place = Path(folder)
        if not place.is_dir():
            raise ConfigError(f"{folder} is not a folder with tls.crt, tls.key, and bundles.json or ca.crt")
        map_file = place / "bundles.json"
        federates = map_file.exists()
        return cls(
            certificate=place / "tls.crt",
            private_key=place / "tls.key",
            bundle_map=map_file if federates else None,
            bundle=None if federates else place / "ca.crt",
            interval=interval,
            clock=clock,
        )

    def start(self, on_update: Callable[[IdentityUpdate], None]) -> None:
        """Reads the files at once, on this thread, then looks at them again and again on another."""
        self._on_update = on_update
        self._looking = threading.Lock()  # another process's thread may have held the one that was here
        self._look(first=True)
        self._poller.start()

    def close(self) -> None:
        self._on_update = None
        self._poller.close()

    def _look(self, *, first: bool = False) -> None:
        with self._looking:
            update = self._next(first)
            if update is not None and self._on_update is not None:
                self._on_update(update)

    def _next(self, first: bool) -> IdentityUpdate | None:
        """What is to be told, None when nothing is new."""
        if first:
            self._last, self._failures = None, 0
        elif not self._failures and not self._files.changed():
            return None
        self._files.next_pass()
        try:
            update = self._read()
        except IdentityError as error:
            self._failures += 1
            if self._last is None or self._failures == PATIENCE:
                return IdentityUpdate(error=str(error))
            return None
        self._failures = 0
        if update == self._last:
            return None
        self._last = update
        return update

    def _read(self) -> IdentityUpdate:
        svids: tuple[Svid, ...] = ()
        if self._certificate is not None and self._private_key is not None:
            chain = self._files.read(str(self._certificate))
            svids = (Svid.from_pem(chain, self._files.read(str(self._private_key))),)
        roots = () if self._roots is None else certificates_from_pem(self._files.read(str(self._roots)))
        return IdentityUpdate(svids=svids, bundles=self._bundles(svids), roots=roots)

    def _bundles(self, svids: tuple[Svid, ...]) -> BundleSet:
        if self._bundle_map is not None:
            return bundle_map(self._files.read(str(self._bundle_map)))
        if self._bundle is None:
            return BundleSet()
        own = self._trust_domain
        if own is None:
            spiffe_id = svids[0].spiffe_id
            if spiffe_id is None:
                raise IdentityError(
                    "the certificate has no SPIFFE id: give trust_domain, or roots instead of a bundle"
                )
            own = spiffe_id.trust_domain
        found = {own: self._bundle, **self._federated}
        return BundleSet(
            TrustBundle.from_pem(name, self._files.read(str(path))) for name, path in found.items()
        )

    def __repr__(self) -> str:
        return f"<FileIdentity {self._certificate or self._bundle or self._bundle_map or self._roots}>"
