"""`python -m meshlib.cli`, the same as `meshlib`."""

from __future__ import annotations

from meshlib.cli import main

main()
