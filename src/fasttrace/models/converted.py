"""The copy of a GGUF model as safetensors that the cache keeps, since transformers takes half a minute to read GGUF."""

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from fasttrace.cache import cache_root, content_key
from fasttrace.errors import ModelError, UserError
from fasttrace.models.adapter import Decoder
from fasttrace.packaged import sha256_of
from fasttrace.places import replacing

SUMS = "sha256.json"  # SHA-256 of every other file of a copy


def copy_of(gguf: Path, dtype: torch.dtype) -> Path | None:
    """The folder for a GGUF file's copy in a dtype, named after the file's SHA-256 and the packages that read it.

    None where the cache folder cannot be created. The copy itself may be missing.
    """
    try:
        folder = cache_root(None) / "models"
    except UserError:
        return None
    readers = {name: importlib.metadata.version(name) for name in ("transformers", "gguf")}
    return folder / content_key({"file": sha256_of(gguf), "dtype": str(dtype), **readers})


def is_whole(folder: Path) -> bool:
    """Whether a copy is there, and every file has the SHA-256 that it was written with."""
    return sums_of(folder) is not None


def sums_of(folder: Path) -> dict[str, str] | None:
    """SHA-256 of every file of a copy, or None where it is not whole."""
    try:
        found = _sums(folder)
        return found if json.loads((folder / SUMS).read_text(encoding="utf-8")) == found else None
    except (OSError, ValueError, RecursionError):
        return None


def keep(folder: Path, model: Decoder, read: Callable[[Path], Decoder]) -> None:
    """Write the copy of a model, if the disk has room for twice as much.

    read: loads the copy. Raises ModelError where it finds another model, and what transformers, safetensors and the
    system raise. Then there is no copy.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if is_whole(folder):  # another process was faster
        return
    shutil.rmtree(folder, ignore_errors=True)  # one that is damaged
    weights = {name: weight.detach() for name, weight in model.hf.named_parameters()}
    if shutil.disk_usage(folder.parent).free < 2 * sum(weight.nbytes for weight in weights.values()):
        return
    with replacing(folder, keep=True) as draft:
        draft.mkdir()
        model.hf.config.to_json_file(draft / "config.json")
        model.hf.generation_config.save_pretrained(draft)
        model.tokenizer.save_pretrained(draft)
        on_cpu = {name: weight.cpu().contiguous() for name, weight in weights.items()}
        save_file(on_cpu, draft / "model.safetensors", metadata={"format": "pt"})
        if read(draft).model_hash != model.model_hash:
            raise ModelError(f"the copy of '{model.name}' is another model")
        (draft / SUMS).write_text(json.dumps(_sums(draft), indent=1), encoding="utf-8")


def _sums(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name != SUMS:
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
