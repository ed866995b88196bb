"""IP addresses and the ranges that they are matched with (config.core.v3.CidrRange)."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

__all__ = ["CidrRange", "IpAddress", "ip_address"]

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class CidrRange:
    """core.v3.CidrRange. Bits of the address beyond the length of the prefix do not count, as in Envoy."""

    network: ipaddress.IPv4Network | ipaddress.IPv6Network

    @property
    def length(self) -> int:
        """Bits of the prefix."""
        return self.network.prefixlen

    def contains(self, address: IpAddress | None) -> bool:
        """Whether the address lies in the range; one of the other family, or none (a Unix socket), does not."""
        return address is not None and address.version == self.network.version and address in self.network


def ip_address(text: str) -> IpAddress | None:
    """The address, without the scope of a link-local one; None for what is none."""
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
