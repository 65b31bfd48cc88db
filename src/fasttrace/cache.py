"""The files that are kept between runs: content-addressed, and written atomically."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fasttrace.errors import UserError
from fasttrace.places import replacing


def cache_root(cache_dir: str | Path | None) -> Path:
    """cache_dir, or by default `fasttrace` under $XDG_CACHE_HOME or ~/.cache. The folder is created if necessary.

    Raises UserError where it cannot be created.
    """
    root = cache_place(cache_dir)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cache folder '{root}' cannot be made: {error.strerror}") from error
    return root


def cache_place(cache_dir: str | Path | None) -> Path:
    """The folder of `cache_root`, which may not be there yet."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fasttrace"


def content_key(parts: Mapping[str, Any]) -> str:
    """The first 32 hex digits of SHA-256 over the parts, as JSON with sorted names."""
    return hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode()).hexdigest()[:32]


def content_of(path: str | Path) -> str:
    """The first 32 hex digits of SHA-256 over a file. Raises UserError where it cannot be read."""
    try:
        with Path(path).expanduser().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]
    except OSError as error:
        raise UserError(f"file '{path}': expected one that can be read, got {error.strerror}") from None


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a safetensors file atomically. Its metadata contains the SHA-256 of the tensors' bytes."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    # safetensors writes several metadata entries in no fixed order. With one entry, equal content gives equal bytes.
    entry = {"fasttrace": json.dumps({**metadata, "sha256": digest(on_cpu)}, sort_keys=True)}
    with replacing(path) as draft:
        save_file(on_cpu, draft, metadata=entry)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (copies on the CPU) and the metadata of a file that `save_tensors` wrote.

    Raises UserError where the file is missing, truncated or altered.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = _metadata(file)
            # safetensors maps the file, so without a copy a later change to the file would change the tensor.
            tensors = {name: file.get_tensor(name).clone() for name in sorted(file.keys())}
    except (OSError, SafetensorError) as error:
        expected = "expected a complete safetensors file"
        raise UserError(f"file '{path}': {expected}, got one that cannot be read ({error})") from error
    if metadata.get("sha256") != digest(tensors):
        raise UserError(
            f"file '{path}' is damaged (its content does not match the SHA-256 in its metadata): "
            "delete it and compute it again"
        )
    return tensors, metadata


def metadata_of(path: Path) -> dict[str, Any] | None:
    """The metadata of a file that `save_tensors` wrote, or None if it is missing or incomplete. Reads no tensor."""
    try:
        with safe_open(path, framework="pt") as file:
            return _metadata(file)
    except (OSError, SafetensorError):
        return None


def _metadata(file: Any) -> dict[str, Any]:
    """The metadata that `save_tensors` writes, or {} where another program wrote the file."""
    try:
        found = json.loads((file.metadata() or {}).get("fasttrace", "{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, over names, shapes, dtypes and bytes of contiguous tensors on the CPU."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        raw: np.ndarray = tensor.reshape(-1).view(torch.uint8).numpy()
        found.update(raw.data)
    return found.hexdigest()
