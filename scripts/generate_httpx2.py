"""Write src/meshlib/httpx2.py from src/meshlib/httpx.py: the same code for the other library.

`python scripts/generate_httpx2.py` writes it; with `--check` it only says whether it is up to date (exit code 1 if not).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "meshlib"
NOTE = "# Written by scripts/generate_httpx2.py from httpx.py: change that one, then run the script.\n"


def generate(source: str) -> str:
    """The text of httpx2.py for this text of httpx.py."""
    return NOTE + re.sub(r"\bhttpx\b", "httpx2", source)


def main(arguments: list[str]) -> int:
    wanted = generate((PACKAGE / "httpx.py").read_text())
    target = PACKAGE / "httpx2.py"
    if target.exists() and target.read_text() == wanted:
        return 0
    if "--check" in arguments:
        print(f"{target} is out of date: run python scripts/generate_httpx2.py")
        return 1
    target.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
