"""What a run is: every setting that changes a number, hashed into its name, so that the same command goes on
where it stopped and different settings never share rows."""

import datetime
import hashlib
import json
from typing import Any, NotRequired, TypedDict

import torch

from fasttrace.models.adapter import Decoder
from fasttrace.version import VERSION


class Run(TypedDict):
    """A row of the store's relation `runs`: schema/runs.sql says what each column is.

    A benchmark has no model, seed or protocol. flops are of a tracing sweep alone.
    """

    run_id: str
    kind: str
    model: NotRequired[str]
    model_hash: NotRequired[str]
    dtype: NotRequired[str]
    device: str
    seed: NotRequired[int]
    protocol: NotRequired[str]
    settings: str
    fasttrace_version: str
    torch_version: str
    created_at: datetime.datetime | str
    seconds: float
    flops: NotRequired[float]


def describe_run(kind: str, model: Decoder, settings: dict[str, Any], *, seed: int, protocol: str) -> Run:
    """The `runs` row of a computation.

    run_id: first 16 hex digits of SHA-256 over kind, model hash, dtype, protocol, seed, settings and fasttrace's
    version; device, torch and times are recorded but do not name the run. settings: `settings.base.run_settings` says
    which are there, so that a setting which is added later does not rename the runs made before.
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
