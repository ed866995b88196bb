"""The folder itself loads no framework."""

from __future__ import annotations

import subprocess
import sys


def test_importing_the_folder_loads_no_framework() -> None:
    code = "import sys, meshlib.server; sys.exit(bool({'grpc', 'asyncio', 'httpx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=50).returncode == 0
