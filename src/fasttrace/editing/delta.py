"""An edit as a delta: applied to a copy of the weights and written as a model plain transformers loads."""

import copy
import tempfile
from pathlib import Path

import torch

from fasttrace.editing.rome import RankOne
from fasttrace.errors import UserError
from fasttrace.models.adapter import Decoder
from fasttrace.ops.rank_one import rank_one_


def export_model(model: Decoder, edits: list[RankOne], folder: str | Path) -> Path:
    """Write the model with `edits` in its weights as a folder (safetensors, config, tokenizer).

    The model in memory is not changed. Raises UserError where the folder exists and is not empty, ModelError
    where the weights are offloaded.
    """
    path = check_export_folder(folder)
    model.check_resident("export")
    names = {weight.data_ptr(): name for name, weight in model.hf.named_parameters()}
    state = dict(model.hf.state_dict())
    for edit in edits:
        down = model.blocks[edit.layer].down
        name = names[down.data_ptr()]
        # `down` is the (d, m) view of a parameter stored either way round.
        transposed = state[name].shape != down.shape or state[name].stride() != down.stride()
        state[name] = state[name].clone()
        weight = state[name].t() if transposed else state[name]
        value, key = edit.value.to(down.device), edit.key.to(down.device)
        if down.dtype == torch.float64:
            weight += torch.outer(value.double(), key.double())
        else:
            rank_one_(weight, value, key)
    hf = copy.copy(model.hf)
    hf.config = copy.deepcopy(model.hf.config)
    # Weights read from GGUF are written as what they are now: plain tensors.
    if hasattr(hf.config, "quantization_config"):
        del hf.config.quantization_config
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        hf.__dict__.pop(name, None)
    # Written beside its place and renamed: a reader finds the whole model or none.
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as draft:
        whole = Path(draft) / path.name
        hf.save_pretrained(whole, state_dict=state)
        model.tokenizer.save_pretrained(whole)
        whole.replace(path)
    return path


def check_export_folder(folder: str | Path) -> Path:
    """The folder as a path. Raises UserError where something other than an empty folder is there."""
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"export: '{folder}' exists and is not an empty folder, a new folder was wanted")
    return path
