"""What a run is: every setting that changes a number, hashed into its name, so that the same command goes on
where it stopped and different settings never share rows."""

import datetime
import hashlib
import json
from typing import Any

import torch

from fasttrace.models.adapter import Decoder
from fasttrace.version import VERSION


def describe_run(kind: str, model: Decoder, settings: dict[str, Any], *, seed: int, protocol: str) -> dict[str, Any]:
    """The `runs` row of a computation.

    run_id: first 16 hex digits of SHA-256 over kind, model hash, dtype, protocol, seed, settings and fasttrace's
    version; device, torch and times are recorded but do not name the run.
    """
    text = json.dumps(settings, sort_keys=True)
    identity = json.dumps([kind, model.model_hash, model.dtype_name, protocol, seed, text, VERSION])
    return {
        "run_id": hashlib.sha256(identity.encode()).hexdigest()[:16],
        "kind": kind,
        "model": model.name,
        "model_hash": model.model_hash,
        "dtype": model.dtype_name,
        "device": str(model.device),
        "seed": seed,
        "protocol": protocol,
        "settings": text,
        "fasttrace_version": VERSION,
        "torch_version": torch.__version__,
        "created_at": datetime.datetime.now(datetime.UTC),
        "seconds": 0.0,
    }
