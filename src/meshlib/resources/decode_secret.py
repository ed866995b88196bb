"""Secret: from protobuf to dataclasses."""

from __future__ import annotations

from meshlib.resources.decode_certificate import certificate_validation, tls_certificate
from meshlib.resources.reader import Reader
from meshlib.resources.secret import Secret

__all__ = ["decode_secret"]


def decode_secret(reader: Reader) -> Secret:
    """extensions.transport_sockets.tls.v3.Secret. Raises ResourceError.

    Whether a validation context is complete is not known here: it may be the dynamic part of a combined one.
    """
    name = reader.text("name")
    if not name:
        raise reader.fail("name", "must not be empty")
    kind = reader.which("type")
    if kind == "tls_certificate":
        child = reader.required(kind)
        certificate = tls_certificate(child)
        if certificate is None:
            raise child.fail("", "has neither a certificate chain nor a private key")
        return Secret(name=name, certificate=certificate)
    if kind == "validation_context":
        return Secret(name=name, validation=certificate_validation(reader.required(kind)))
    if kind is None:
        raise reader.fail("", "holds no secret")
    reader.unsupported(kind)
    return Secret(name=name)
