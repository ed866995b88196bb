"""What C-core is told of rotations."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from meshlib.server.grpc import credentials
from meshlib.server.inbound import Inbound
from tests.server.identities import identities


def test_c_core_is_told_once_of_each_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    """It frees the certificate that it had, whoever uses it: telling it at each handshake crashed servers."""
    asked: list[Callable[[], object]] = []
    monkeypatch.setattr(
        grpc, "dynamic_ssl_server_credentials", lambda _first, changed, _require: asked.append(changed)
    )
    with identities() as known:
        credentials(Inbound(known.mesh))
        (changed,) = asked
        assert changed() is None
        known.source.turn(known.update())
        assert isinstance(changed(), grpc.ServerCertificateConfiguration)
        assert changed() is None
