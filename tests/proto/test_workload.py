"""The Workload API's messages: the table makes what the specification says."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2

from meshlib import proto
from meshlib.proto import workload


def test_a_response_survives_the_wire() -> None:
    response = workload.message("X509SVIDResponse")(crl=[b"crl"], federated_bundles={"spiffe://b": b"roots"})
    response.svids.add(
        spiffe_id="spiffe://a/x", x509_svid=b"chain", x509_svid_key=b"key", bundle=b"b", hint="h"
    )
    again = workload.parse("X509SVIDResponse", response.SerializeToString())
    assert again == response
    assert again.svids[0].hint == "h"
    assert dict(again.federated_bundles) == {"spiffe://b": b"roots"}


def test_field_numbers_are_those_of_the_specification() -> None:
    # tag 0x0a: field 1, 0x12: 2, 0x1a: 3, 0x22: 4, 0x2a: 5, all length-delimited
    svid = workload.message("X509SVID")(
        spiffe_id="a", x509_svid=b"b", x509_svid_key=b"c", bundle=b"d", hint="e"
    )
    assert svid.SerializeToString() == b"\x0a\x01a\x12\x01b\x1a\x01c\x22\x01d\x2a\x01e"
    bundles = workload.message("X509BundlesResponse")(crl=[b"c"], bundles={"k": b"v"})
    assert bundles.SerializeToString() == b"\x0a\x01c\x12\x06\x0a\x01k\x12\x01v"
    request = workload.message("JWTSVIDRequest")(audience=["x", "y"], spiffe_id="z")
    assert request.SerializeToString() == b"\x0a\x01x\x0a\x01y\x12\x01z"


def test_claims_are_a_struct() -> None:
    response = workload.message("ValidateJWTSVIDResponse")(spiffe_id="spiffe://a/x")
    response.claims["aud"] = ["one"]
    assert workload.parse("ValidateJWTSVIDResponse", response.SerializeToString()).claims["aud"][0] == "one"


def test_messages_stand_beside_those_of_the_default_pool() -> None:
    descriptor = workload.message("X509SVIDResponse").DESCRIPTOR
    assert descriptor.file.package == ""
    assert descriptor.file.pool is not descriptor_pb2.DESCRIPTOR.pool
    file = descriptor_pb2.FileDescriptorProto()
    descriptor.file.CopyToProto(file)
    assert {message.name for message in file.message_type} >= {
        "X509SVID",
        "JWTSVID",
        "ValidateJWTSVIDRequest",
    }


def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(proto.DecodeError):
        workload.parse("X509SVIDResponse", b"\xff")
    with pytest.raises(KeyError):
        workload.message("X509SVIDs")
