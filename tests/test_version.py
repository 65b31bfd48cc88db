"""The version is written only in version.py, and the package's metadata reads it from there."""

import re
from pathlib import Path

from setuptools.config.pyprojecttoml import read_configuration

import fasttrace

ROOT = Path(__file__).resolve().parents[1]


def test_the_package_has_the_version_of_the_source():
    assert read_configuration(ROOT / "pyproject.toml")["project"]["version"] == fasttrace.__version__
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r"^version = \"", text, re.MULTILINE) == []
