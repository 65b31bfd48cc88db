"""On the PYTHONPATH of workers: the pieces that they compute are counted, wait, or lack memory.

Files of the folder $FAULTS say which. pieces: a line for each that is begun, as [pid, keys]. hold: while it is there,
every piece waits. short: the most units for which memory suffices. poison: a fact_id for which it does not.
"""

import functools
import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
from pathlib import Path

FAULTS = Path(os.environ["FAULTS"])


def _fails(computed):
    @functools.wraps(computed)
    def piece(model, plan, whole, keys):
        names = sorted(map(str, keys))
        with (FAULTS / "pieces").open("a") as log:
            log.write(json.dumps([os.getpid(), names]) + "\n")
        while (FAULTS / "hold").exists():
            time.sleep(0.02)
        if (FAULTS / "short").exists() and len(keys) > int((FAULTS / "short").read_text()):
            raise MemoryError("too many units")
        if (FAULTS / "poison").exists() and (FAULTS / "poison").read_text() in " ".join(names):
            raise MemoryError("a unit that is too large")
        return computed(model, plan, whole, keys)

    return piece


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "fasttrace.cluster.pool":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            module._computed = _fails(module._computed)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Finder())
