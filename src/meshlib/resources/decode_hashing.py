"""RING_HASH and MAGLEV: from protobuf to dataclasses, in the older and in the newer form."""

from __future__ import annotations

from math import isqrt

from meshlib.resources.cluster import HashFunction, HashingConfig, MaglevConfig, RingHashConfig
from meshlib.resources.decode_hash_policy import hash_policies
from meshlib.resources.reader import Reader

__all__ = ["hashing", "maglev", "ring_hash"]

_FUNCTIONS = {0: HashFunction.XX_HASH, 1: HashFunction.XX_HASH, 2: HashFunction.MURMUR_HASH_2}
_OLDER_FUNCTIONS = {0: HashFunction.XX_HASH, 1: HashFunction.MURMUR_HASH_2}
_OLDER_RING = "envoy.config.cluster.v3.Cluster.RingHashLbConfig"


def hashing(reader: Reader | None) -> HashingConfig:
    """What all of them have in common, from whichever message has its fields. Raises ResourceError."""
    if reader is None:
        return HashingConfig()
    has_policy = "hash_policy" in reader.message.DESCRIPTOR.fields_by_name
    return HashingConfig(
        use_hostname_for_hashing=reader.flag("use_hostname_for_hashing"),
        hash_balance_factor=reader.boxed("hash_balance_factor") or 0,
        hash_policy=hash_policies(reader) if has_policy else (),
    )


def ring_hash(reader: Reader | None, shared: HashingConfig) -> RingHashConfig:
    """RingHashLbConfig of a Cluster or the RingHash extension. Raises ResourceError."""
    default = RingHashConfig()
    low = high = None
    function = default.hash_function
    if reader is not None:
        low, high = reader.boxed("minimum_ring_size"), reader.boxed("maximum_ring_size")
        older = reader.type_name == _OLDER_RING
        function = reader.enum("hash_function", _OLDER_FUNCTIONS if older else _FUNCTIONS)
    minimum = default.minimum_ring_size if low is None else low
    maximum = default.maximum_ring_size if high is None else high
    if reader is not None and minimum > maximum:
        raise reader.fail("minimum_ring_size", f"{minimum} is more than maximum_ring_size ({maximum})")
    return RingHashConfig(
        use_hostname_for_hashing=shared.use_hostname_for_hashing,
        hash_balance_factor=shared.hash_balance_factor,
        hash_policy=shared.hash_policy,
        minimum_ring_size=minimum,
        maximum_ring_size=maximum,
        hash_function=function,
    )


def maglev(reader: Reader | None, shared: HashingConfig) -> MaglevConfig:
    """MaglevLbConfig of a Cluster or the Maglev extension. Raises ResourceError."""
    size = None if reader is None else reader.boxed("table_size")
    if reader is not None and size is not None and not _is_prime(size):
        raise reader.fail("table_size", f"{size} is not a prime number")
    return MaglevConfig(
        use_hostname_for_hashing=shared.use_hostname_for_hashing,
        hash_balance_factor=shared.hash_balance_factor,
        hash_policy=shared.hash_policy,
        table_size=MaglevConfig().table_size if size is None else size,
    )


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, isqrt(number) + 1))
