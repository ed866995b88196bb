"""The interoperability test cases through a blocking channel: plain grpcio's, which shows that a case is right, and the mesh's,
in plaintext and with mutual TLS.

compute_engine_creds, jwt_token_creds, oauth2_auth_token, per_rpc_creds and their kin need Google's credentials and servers;
cacheable_unary needs a caching proxy and a GET that no Python client sends; orca_per_rpc and orca_oob are about load reports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc
import pytest

import meshlib.grpc
from tests.transport.grpc.interop.conftest import HOST
from tests.transport.grpc.interop.sync_cases import CASES
from tests.transport.grpc.interop.tap import Tap


@pytest.fixture(params=["grpcio", "mesh", "secure_mesh"])
def channel(request: pytest.FixtureRequest, tap: Tap) -> Iterator[grpc.Channel]:
    if request.param == "grpcio":
        made = grpc.insecure_channel(f"ipv4:{tap.address}")
    else:
        made = meshlib.grpc.channel(HOST, mesh=request.getfixturevalue(request.param))
    with made:
        yield made


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_case(case: Callable[[grpc.Channel, Tap], None], channel: grpc.Channel, tap: Tap) -> None:
    case(channel, tap)
