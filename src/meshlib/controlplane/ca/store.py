"""The CA's own state in a file, keys and all, so that one CA serves several runs and several commands."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cryptography import x509

from meshlib.controlplane.ca import certificates, keys
from meshlib.controlplane.ca.authority import AuthorityState, Phase
from meshlib.controlplane.ca.root import Root
from meshlib.errors import ConfigError

__all__ = ["STATE", "create_state", "load_state", "save_state"]

STATE = "authority.json"
"""The file's name in the CA's folder; only this user may read it."""


def save_state(folder: Path, trust_domain: str, state: AuthorityState) -> None:
    """Keep the CA, private keys and all, in a file that only this user may read; all or nothing."""
    with _draft(folder, trust_domain, state) as draft:
        draft.replace(folder / STATE)


def create_state(folder: Path, trust_domain: str, state: AuthorityState) -> bool:
    """Keep a new CA, unless another process has put one there meanwhile: False then."""
    with _draft(folder, trust_domain, state) as draft:
        try:
            os.link(draft, folder / STATE)
        except FileExistsError:
            return False
        return True


@contextlib.contextmanager
def _draft(folder: Path, trust_domain: str, state: AuthorityState) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "trust_domain": trust_domain,
        "phase": state.phase.value,
        "signing": state.signing,
        "sequence": state.sequence,
        "revoked": [[number, f"{serial:x}", at] for number, serial, at in state.revoked],
        "federated": {
            domain: certificates.to_pem(roots).decode() for domain, roots in state.federated.items()
        },
        "roots": [_root_to_json(root) for root in state.roots],
    }
    descriptor, name = tempfile.mkstemp(prefix=f".{STATE}.", dir=folder)  # mode 0600
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(content, file, indent=1)
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def load_state(folder: Path, trust_domain: str) -> AuthorityState | None:
    """What `save_state` kept; None when there is nothing yet.

    Raises:
        ConfigError: the file is not one of ours, or of another trust domain.
    """
    path = folder / STATE
    try:
        content = json.loads(path.read_bytes())
        if content["trust_domain"] != trust_domain:
            raise ConfigError(f"{path} is the CA of {content['trust_domain']}, not of {trust_domain}")
        return AuthorityState(
            phase=Phase(content["phase"]),
            roots=tuple(map(_root_from_json, content["roots"])),
            signing=content["signing"],
            sequence=content["sequence"],
            revoked=tuple((number, int(serial, 16), at) for number, serial, at in content["revoked"]),
            federated={
                domain: tuple(x509.load_pem_x509_certificates(pem.encode()))
                for domain, pem in content["federated"].items()
            },
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a CA that meshlib wrote: {error!r}") from None


def _root_to_json(root: Root) -> dict[str, Any]:
    return {
        "number": root.number,
        "certificate": certificates.to_pem([root.certificate]).decode(),
        "key": keys.to_pem(root.key).decode(),
        "intermediate": root.intermediate and certificates.to_pem([root.intermediate]).decode(),
        "intermediate_key": root.intermediate_key and keys.to_pem(root.intermediate_key).decode(),
        "jwt_key": keys.to_pem(root.jwt_key).decode(),
    }


def _root_from_json(content: Mapping[str, Any]) -> Root:
    intermediate, intermediate_key = content["intermediate"], content["intermediate_key"]
    return Root(
        number=content["number"],
        certificate=x509.load_pem_x509_certificate(content["certificate"].encode()),
        key=keys.load_pem(content["key"].encode()),
        intermediate=intermediate and x509.load_pem_x509_certificate(intermediate.encode()),
        intermediate_key=intermediate_key and keys.load_pem(intermediate_key.encode()),
        jwt_key=keys.load_pem(content["jwt_key"].encode()),
    )
