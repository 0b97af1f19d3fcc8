"""Everything is declared in pyproject.toml; here only: a build starts from an empty folder.

setuptools packs whatever lies in build/lib, also what a module that has since been removed left there.
"""

import shutil

from setuptools import setup
from setuptools.command.build_py import build_py


class CleanBuild(build_py):
    """Copies the package's files into an empty folder."""

    def run(self) -> None:
        """Empty the folder, except for an editable install, which copies nothing."""
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """The modules of a package; this file lies in the folder of the outermost one and is none of it."""
        return [module for module in super().find_package_modules(package, package_dir) if module[1] != "setup"]


setup(cmdclass={"build_py": CleanBuild})
