"""The settings import almost nothing, so a report that reads them needs no torch."""

import subprocess
import sys
from pathlib import Path

import fasttrace

PROGRAM = """
import importlib, pkgutil, sys, types
package = types.ModuleType("fasttrace")  # without its __init__, which imports everything
package.__path__ = [{folder!r}]
sys.modules["fasttrace"] = package
settings = importlib.import_module("fasttrace.settings")
for module in pkgutil.iter_modules(settings.__path__):
    importlib.import_module(f"fasttrace.settings.{{module.name}}")
others = sorted(name for name in sys.modules if name.startswith("fasttrace.") and "settings" not in name)
print(*others, *({{"torch", "transformers", "duckdb", "click"}} & sys.modules.keys()))
"""


def test_the_settings_import_only_small_modules():
    program = PROGRAM.format(folder=str(Path(fasttrace.__file__).parent))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["fasttrace.errors", "fasttrace.memory", "fasttrace.packaged", "fasttrace.protocols"]
