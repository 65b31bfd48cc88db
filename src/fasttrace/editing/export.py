"""An edit as a folder: the whole edited model, or only the edit as a LoRA adapter in PEFT's format.

An adapter adds B A x to what a down-projection computes of x, so an edit of rank r is an adapter of rank r.
"""

import copy
import json
import logging
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from fasttrace.editing.applied import changed_bias, changed_parameter, kept_beside, places
from fasttrace.editing.delta import LowRank, Update, check_updates
from fasttrace.errors import UserError
from fasttrace.models import reading
from fasttrace.models.adapter import Decoder
from fasttrace.models.files import processor_files
from fasttrace.models.load import without_bars
from fasttrace.models.placement import is_offloaded
from fasttrace.models.quantised import plain_state
from fasttrace.places import replacing
from fasttrace.settings.base import argument, settings
from fasttrace.settings.export import ExportSettings

# A change is a sum of float32 numbers, whose rounding has full rank. What is left out of an adapter is at most this
# part of the change (Frobenius norms). One rounding to float32 is 3e-8 of it, and mass edits round after every group.
TOLERANCE = 1e-6
SHARD = 10**9  # most bytes of a file of an offloaded model

log = logging.getLogger(__name__)


@settings("export")
class ExportOneArguments(ExportSettings):
    """Keywords of `EditResult.export`."""

    fact_id: str | None = argument(default=None, help="Which edit, if the result has several")
    layer: int | None = argument(default=None, help="Which edit, if the result has several")


@dataclass(frozen=True)
class Exported:
    """A folder that was written. Of an adapter also its rank, and the largest part of a layer's change that it lacks
    (Frobenius norms); None for a whole model."""

    folder: Path
    rank: int | None = None
    relative_error: float | None = None


def export_edit(model: Decoder, updates: Mapping[int, Update], folder: str | Path, asked: ExportSettings) -> Exported:
    """Write an edit as a folder, in the format of the settings. The model in memory does not change.

    Raises UserError where the folder exists and is not empty.
    """
    if asked.format == "model":
        return Exported(export_model(model, updates, folder))
    return _export_adapter(model, updates, folder, asked.rank)


def export_model(model: Decoder, updates: Mapping[int, Update], folder: str | Path) -> Path:
    """Write the model with an edit in its weights as a folder (safetensors, config, tokenizer).

    A multimodal model is written whole, with the files of its processor where it was loaded from a folder or hub id.
    The model in memory does not change. Offloaded weights are read and written shard by shard, at most SHARD bytes of
    them at a time, or one weight if it is larger. A quantised model is written dequantised, which takes the memory of
    its weights in the model's dtype. Raises UserError where the folder exists and is not empty, and where quantised
    weights are offloaded.
    """
    path = _checked(model, updates, folder)
    if model.quantisation is not None and is_offloaded(model.hf):
        raise UserError(
            f"export: expected the {model.quantisation} weights of '{model.name}' in memory, to write them plain, "
            'got offloaded ones: load it on one device, or write the edit alone (format="peft", or save_delta)'
        )
    hf = copy.copy(model.hf)
    hf.config = copy.deepcopy(model.hf.config)
    # Quantised weights are written as plain tensors, so the config must not describe them as quantized.
    if hasattr(hf.config, "quantization_config"):
        del hf.config.quantization_config
    for name in ("hf_quantizer", "is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        hf.__dict__.pop(name, None)
    options: dict[str, Any] = {}
    state: dict[str, Tensor] = hf.state_dict()
    if is_offloaded(hf):
        # What tells transformers to read weights as it writes them, also where accelerate alone moved them.
        hf.hf_device_map, options["max_shard_size"] = {"": "disk"}, SHARD
        state = {name: weight for name, weight in state.items() if name not in getattr(hf, "all_tied_weights_keys", ())}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft, kept_beside(model, updates) as left, warnings.catch_warnings(), without_bars():
        warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
        if model.quantisation is not None:
            state = plain_state(model.hf, model.dtype)
            reading.forget(hf)
        hf.save_pretrained(draft, state_dict={**state, **_changed_state(model, left)}, **options)
        model.tokenizer.save_pretrained(draft)
        origin = getattr(model.hf.config, "_name_or_path", "")
        for file in processor_files(origin) if origin and model.is_multimodal else []:
            if not (draft / file.name).exists():  # the tokenizer has a chat template, too
                shutil.copyfile(file, draft / file.name)
    return path


def _changed_state(model: Decoder, updates: Mapping[int, Update]) -> dict[str, Tensor]:
    """Name → value of every parameter that the updates change. All of them are in memory."""
    state: dict[str, Tensor] = {}
    for layer, block in model.layers(updates):
        update = updates[layer]
        for name, views in places(model, block, update).items():
            state[name] = changed_parameter(model.hf.get_parameter(name), views)
        if update.bias is not None and block.down_bias is not None:
            bias = changed_bias(block, update)
            assert bias is not None
            state[model.name_of(block.down_bias)] = bias
    return state


def _checked(model: Decoder, updates: Mapping[int, Update], folder: str | Path) -> Path:
    """The folder as a path. Raises the errors of `export_edit`."""
    path = check_export_folder(folder)
    check_updates(model, updates, "export")
    return path


def check_export_folder(folder: str | Path) -> Path:
    """The folder as a path. Raises UserError where it exists and is not an empty folder."""
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"export: expected a new folder, got '{folder}', which exists and is not an empty folder")
    return path


def _export_adapter(model: Decoder, updates: Mapping[int, Update], folder: str | Path, rank: int | None) -> Exported:
    """Write an edit as adapter_config.json and adapter_model.safetensors.

    All layers have the rank of the highest one, with zeros in the others, and lora_alpha is the rank, so that B A is
    not scaled: vLLM takes one rank and scale for all. Biases that change are PEFT's lora_bias, which vLLM refuses.
    """
    path = _checked(model, updates, folder)
    if routed := [layer for layer, update in updates.items() if update.experts]:
        raise UserError(
            f"export: expected an edit of layers with one down-projection each for an adapter, got one of experts at "
            f"layer {routed[0]}, whose down-projections are one tensor: export the whole model (format=model)"
        )
    modules = {layer: model.down_name(layer) for layer in updates}
    parts = {layer: _factors(update, rank) for layer, update in updates.items()}
    highest = max(1, *(len(a) for a, _, _ in parts.values())) if parts else 1
    error = max((error for *_, error in parts.values()), default=0.0)
    biased = any(update.bias is not None and bool(update.bias.any()) for update in updates.values())
    tensors: dict[str, Tensor] = {}
    for layer, (a, b, _) in parts.items():
        stem = f"base_model.model.{modules[layer]}"
        padding = highest - len(a)
        tensors[f"{stem}.lora_A.weight"] = functional.pad(a, (0, 0, 0, padding)).contiguous()
        tensors[f"{stem}.lora_B.weight"] = functional.pad(b, (0, padding)).contiguous()
        if biased:
            bias = updates[layer].bias
            tensors[f"{stem}.lora_B.bias"] = torch.zeros(len(b)) if bias is None else bias.float().cpu().contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": getattr(model.hf.config, "_name_or_path", "") or model.name,
        "r": highest,
        "lora_alpha": highest,
        "lora_dropout": 0.0,
        "target_modules": sorted(modules.values()),
        "fan_in_fan_out": any(_is_transposed(model, module) for module in modules.values()),
        "bias": "none",
        "inference_mode": True,
        **({"lora_bias": True} if biased else {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        draft.mkdir()
        save_file(tensors, draft / "adapter_model.safetensors", metadata={"format": "pt"})
        (draft / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if error > TOLERANCE:
        log.warning("rank %d leaves out %.2g of the change (Frobenius norm, in its worst layer)", highest, error)
    return Exported(path, highest, error)


def _is_transposed(model: Decoder, module: str) -> bool:
    """Whether a module stores its weight as (m, d), as those of GPT-2 do."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(model.hf.get_submodule(module), Conv1D)


def _factors(update: Update, most: int | None) -> tuple[Tensor, Tensor, float]:
    """A: (r, m), B: (d, r), float32 on the CPU, and ‖ΔW − B A‖ / ‖ΔW‖, with r at most `most`.

    A change in outer products is taken as it is. Any other, and one of too high a rank, is cut by its singular values:
    r is the lowest rank that leaves out at most TOLERANCE of the change.
    """
    if isinstance(update, LowRank) and (most is None or len(update.value) <= most):
        return update.key.float().cpu(), update.value.float().cpu().T, 0.0
    u, s, vh = torch.linalg.svd(update.matrix().cpu(), full_matrices=False)
    # left_out[r]: the norm of what a change of rank r lacks
    left_out = functional.pad(s.square().flip(0).cumsum(0).flip(0).sqrt(), (0, 1))
    rank = int((left_out > TOLERANCE * left_out[0]).sum())
    rank = rank if most is None else min(rank, most)
    root = s[:rank].sqrt()
    error = float(left_out[rank] / left_out[0]) if left_out[0] else 0.0
    return (root[:, None] * vh[:rank]).float(), (u[:, :rank] * root).float(), error
