"""Header edits as configuration gives them (config.core.v3.HeaderValueOption and the removal lists)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from meshlib.resources.format import Format

__all__ = ["AppendAction", "HeaderEdits", "HeaderValueOption"]


class AppendAction(Enum):
    """What to do when the header is there already."""

    APPEND_IF_EXISTS_OR_ADD = 0
    ADD_IF_ABSENT = 1
    OVERWRITE_IF_EXISTS_OR_ADD = 2
    OVERWRITE_IF_EXISTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderValueOption:
    """One header to add. name is lower case; value may hold access-log formatters such as `%REQ(x-user)%`.

    keep_empty_value: whether a value that comes out empty is added (default: it is not).
    """

    name: str
    value: Format
    action: AppendAction = AppendAction.APPEND_IF_EXISTS_OR_ADD
    keep_empty_value: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderEdits:
    """The edits of one level (weighted cluster, route, virtual host, route configuration) for one direction.

    remove: lower-case names, applied first. add: in configuration order.
    """

    add: tuple[HeaderValueOption, ...] = ()
    remove: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.add or self.remove)
