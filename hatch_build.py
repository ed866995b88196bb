"""The wheel's build hook: with MESHLIB_COMPILE=1 the wheel is for one platform, with compiled modules beside the sources."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompileHook(BuildHookInterface[Any]):
    """Without MESHLIB_COMPILE=1, and for editable installations, it does nothing."""

    _folder: tempfile.TemporaryDirectory[str] | None = None

    def _wanted(self) -> bool:
        return os.environ.get("MESHLIB_COMPILE") == "1"

    def dependencies(self) -> list[str]:
        if not self._wanted():
            return []
        tools = ["mypy>=2.4", "setuptools>=75", "types-PyYAML>=6.0.12", "types-protobuf>=6.30"]
        # The training makes calls with what it compiles.
        return [*tools, *self.metadata.core.dependencies]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or not self._wanted():
            return
        sys.path.insert(0, self.root)
        from scripts.compiled import build

        self._folder = tempfile.TemporaryDirectory()
        for path in build(Path(self._folder.name)):
            build_data["force_include"][str(Path(self._folder.name) / path)] = path.as_posix()
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._folder is not None:
            self._folder.cleanup()
