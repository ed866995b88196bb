"""The command line: demo, serve, validate, explain, status, dump, tap, graph, doctor, ca."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command that `sys.argv` names."""
    try:
        from meshlib.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.exit(f"meshlib: the command line needs {error.name}: pip install 'meshlib-xds[cli]'")
    app()
