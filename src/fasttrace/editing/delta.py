"""An edit as a delta: applied to a copy of the weights and written as a model plain transformers loads."""

import copy
from pathlib import Path

import torch

from fasttrace.editing.rome import RankOne
from fasttrace.errors import UserError
from fasttrace.models.adapter import Decoder


def export_model(model: Decoder, edits: list[RankOne], folder: str | Path) -> Path:
    """Write the model with `edits` in its weights as a folder (safetensors, config, tokenizer).

    The model in memory is not changed. Raises UserError where the folder exists and is not empty.
    """
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"export: '{folder}' exists and is not an empty folder, a new folder was wanted")
    names = {weight.data_ptr(): name for name, weight in model.hf.named_parameters()}
    state = dict(model.hf.state_dict())
    for edit in edits:
        down = model.blocks[edit.layer].down
        name = names[down.data_ptr()]
        # `down` is the (d, m) view of a parameter stored either way round.
        transposed = state[name].shape != down.shape or state[name].stride() != down.stride()
        update = torch.outer(edit.value.to(down.device), edit.key.to(down.device))
        weight = state[name].float() + (update.t() if transposed else update)
        state[name] = weight.to(down.dtype)
    hf = copy.copy(model.hf)
    hf.config = copy.deepcopy(model.hf.config)
    # Weights read from GGUF are written as what they are now: plain tensors.
    if hasattr(hf.config, "quantization_config"):
        del hf.config.quantization_config
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        hf.__dict__.pop(name, None)
    hf.save_pretrained(path, state_dict=state, safe_serialization=True)
    model.tokenizer.save_pretrained(path)
    return path
