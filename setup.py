"""Generate the gRPC stubs from protos/ while the project is installed; all else stands in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent / "protos"))


class GenerateStubsThenBuild(build_py):
    """The standard step, preceded by protoc (also run by an editable install)."""

    def run(self) -> None:
        from generate import generate

        generate()
        super().run()


setup(cmdclass={"build_py": GenerateStubsThenBuild})
