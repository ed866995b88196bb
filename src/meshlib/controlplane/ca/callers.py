"""Who may have which identity: entries with selectors, and callers as the kernel describes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from meshlib.errors import ConfigError
from meshlib.identity.spiffe import SpiffeId

__all__ = ["Caller", "Entry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The process at the other end of a Unix socket (SO_PEERCRED): ids of the moment in which it connected."""

    pid: int
    uid: int
    gid: int

    @property
    def exe(self) -> str:
        """The path of its program; empty when it has gone, or is another user's and hidden from us."""
        try:
            return str(Path(f"/proc/{self.pid}/exe").readlink())
        except OSError:
            return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An identity and who may have it. A selector that is None admits everybody; all the others must fit.

    exe: the whole path of the caller's program. dns_names: DNS SANs beside the id. hint: tells several identities of one workload
    apart. ttl (seconds), key_type: None takes the CA's.
    """

    spiffe_id: str
    dns_names: tuple[str, ...] = ()
    hint: str = ""
    ttl: float | None = None
    key_type: str | None = None
    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    exe: str | None = None

    @property
    def selective(self) -> bool:
        """Whether it is for some callers only."""
        return (self.uid, self.gid, self.pid, self.exe) != (None, None, None, None)

    def admits(self, caller: Caller | None) -> bool:
        """Whether this caller may have it. None is a caller of whom nothing is known: one over TCP."""
        if caller is None:
            return not self.selective
        return (
            self.uid in (None, caller.uid)
            and self.gid in (None, caller.gid)
            and self.pid in (None, caller.pid)
            and (self.exe is None or self.exe == caller.exe)
        )

    @classmethod
    def parse(cls, text: str) -> Entry:
        """Read `SPIFFE_ID[,NAME=VALUE]...` with the names uid, gid, pid, exe, dns (may be repeated), hint, ttl and key-type.

        Raises:
            IdentityError: not a SPIFFE ID.
            ConfigError: an unknown name, or a value that is no number where one is needed.
        """
        first, *rest = text.split(",")
        values: dict[str, str] = {}
        dns_names: list[str] = []
        for part in rest:
            name, equals, value = part.partition("=")
            if not equals or name not in _NAMES or name in values:
                raise ConfigError(
                    f"{text!r}: {part!r} is not one of {', '.join(sorted(_NAMES))} with a value, once each"
                )
            if name == "dns":
                dns_names.append(value)
            else:
                values[name] = value
        try:
            numbers = {name: int(values[name]) for name in ("uid", "gid", "pid") if name in values}
            ttl = float(values["ttl"]) if "ttl" in values else None
        except ValueError as error:
            raise ConfigError(f"{text!r}: {error}") from None
        return cls(
            spiffe_id=str(SpiffeId.parse(first)),
            dns_names=tuple(dns_names),
            hint=values.get("hint", ""),
            ttl=ttl,
            key_type=values.get("key-type"),
            exe=values.get("exe"),
            **numbers,
        )


_NAMES = frozenset({"uid", "gid", "pid", "exe", "dns", "hint", "ttl", "key-type"})
