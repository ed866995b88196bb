"""What modules that are compiled ahead of time say to the compiler; without it, nothing.

`scripts/compiled.py` compiles them with mypyc, which knows `mypy_extensions.mypyc_attr` by its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["mypyc_attr"]

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr
else:

    def mypyc_attr(**attributes):
        return lambda cls: cls
