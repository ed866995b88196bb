"""The extension modules themselves, made by mypyc and the C compiler. For `scripts/compiled.py`, in a copy of the sources:

    python -m scripts.extensions LEVEL ARGUMENTS MODULE...

LEVEL: the C compiler's -O. ARGUMENTS: more of its arguments, in one word. MODULE: a path of a module, relative to the folder.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from mypyc.build import mypycify
from setuptools import setup
from setuptools.command.build_ext import build_ext

MYPY = ("--config-file=", "--ignore-missing-imports")


class BuildModules(build_ext):
    """Compiles as many files at a time as there are processors."""

    def build_extensions(self) -> None:
        self.compiler.compile = partial(_compile, self.compiler)
        super().build_extensions()


def _compile(
    compiler: Any,
    sources: list[str],
    *,
    output_dir: str,
    macros: Any,
    include_dirs: list[str],
    debug: bool,
    extra_postargs: list[str],
    depends: list[str],
) -> list[str]:
    """As `distutils.ccompiler.CCompiler.compile`."""
    _, objects, after, preprocessor, build = compiler._setup_compile(
        output_dir, macros, include_dirs, sources, depends, extra_postargs
    )
    before = compiler._get_cc_args(preprocessor, debug, None)

    def one(made: str) -> None:
        source, suffix = build[made]
        compiler._compile(made, source, suffix, before, after, preprocessor)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(one, objects))
    return list(objects)


def main() -> None:
    level, arguments, *files = sys.argv[1:]
    modules: list[Any] = mypycify([*MYPY, *files], opt_level=level, debug_level="0", multi_file=True)
    for module in modules:
        module.extra_compile_args += arguments.split()
        module.extra_link_args += arguments.split()
    setup(
        name="meshlib",
        packages=[],
        ext_modules=modules,
        cmdclass={"build_ext": BuildModules},
        script_args=["build_ext", "--inplace", "--force"],
    )


if __name__ == "__main__":
    main()
