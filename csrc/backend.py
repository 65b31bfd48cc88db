"""The build backend that pyproject.toml names (PEP 517): setuptools', which asks for torch only where none is found.

A build needs torch's headers and nothing that runs, so any torch from 2.11 on will do. Installers build in an
environment of their own. A torch in `requires` would be installed there once more, and from PyPI on Linux that is a
CUDA build of gigabytes, whatever torch the user has. So `build_ext.find_torch` looks where the user may have one.
"""

from typing import Any

import build_ext
from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  the other hooks
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """What an installer has to add before it builds. Raises SystemExit where this machine cannot compile, because then
    nothing need be downloaded."""
    build_ext.check_compiler()
    wanted = build_meta.get_requires_for_build_wheel(config_settings)
    return wanted if build_ext.find_torch() is not None else [*wanted, build_ext.TORCH_WANTED]


get_requires_for_build_editable = get_requires_for_build_wheel
