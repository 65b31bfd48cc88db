"""Wraps a transformers model that is in memory, and returns its adapter."""

import copy
from typing import Any

from torch import nn

from fasttrace.errors import ModelError, shown
from fasttrace.models.adapter import Decoder
from fasttrace.models.check import check_modules, check_outputs, check_weights
from fasttrace.models.hooked import decoder_for
from fasttrace.models.load import as_model_errors, made_decoder
from fasttrace.models.quantised import shared
from fasttrace.settings.arguments import checked


@checked
def wrap_model(
    hf: Any, tokenizer: Any, name: str = "in-memory", *, weights: str | None = None, check: bool = True
) -> Decoder:
    """The adapter for a transformers model that is already in memory.

    The adapter uses the model's weights in place, so a change of their values in memory is seen, also by
    `model_hash`. It has modules of its own: neither `requires_grad` nor training mode of `hf` changes, no gradient
    reaches its parameters, and hooks that it gets later are not seen. Moving `hf` to another device or dtype makes new
    weights, which takes a new `wrap_model`.

    weights: a unique description of the weights ("EleutherAI/gpt-j-6b at 47e1693"). It replaces their bytes in
        `model_hash`, the model's identity in runs and stores, so that they need not be hashed (ten seconds for 12 GB).
        It is not checked: models with the same description, config and tokenizer count as one model in a store. With
        None, or once they have changed, the weights are hashed when the identity is needed.
    check: compare fasttrace's output of every layer and its logits on two prompts with those of the model itself, in
        two forward passes each (`check_outputs` states the tolerance).

    A causal decoder of a family without an adapter is wrapped as a `HookedDecoder`, as in `load_model`.

    Raises ModelError for a model that attends to an encoder, and for one that computes something else than its weights
    say: adapters (PEFT), forward hooks, parametrizations, quantised or replaced layers, NaN and infinite weights, and,
    with `check`, other layers or logits than fasttrace computes.
    """
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    if weights is not None and not weights.strip():
        raise ModelError(f"wrap_model: weights: expected a description of the weights, got {shown(weights)}")
    if not isinstance(hf, PreTrainedModel):
        raise ModelError(f"wrap_model: expected a transformers model, got {type(hf).__name__}{_way_to_the_model(hf)}")
    if hf.get_output_embeddings() is None:
        raise ModelError(f"wrap_model: expected a causal language model with logits, got {type(hf).__name__}")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(f"wrap_model: expected the model's transformers tokenizer, got {type(tokenizer).__name__}")
    adapter = decoder_for(hf.config)
    check_modules(hf, name)
    with as_model_errors(f"model '{name}': its modules cannot be copied"):
        own = _own_modules(hf)
    model = made_decoder(adapter, own, tokenizer, name)
    check_weights(model)
    if check:
        with as_model_errors(f"model '{name}' cannot be run and compared (check=False leaves that out)"):
            check_outputs(model)
    if weights is not None:
        model.describe_weights(weights)
    return model


def _way_to_the_model(given: Any) -> str:
    """How to get the transformers model out of what wraps it, as the end of a message."""
    if isinstance(given, Decoder):
        return ", which is wrapped already"
    if hasattr(given, "merge_and_unload"):
        return ": give what its merge_and_unload() returns"
    if type(given).__module__.startswith("peft."):
        return ", whose adapter cannot be merged into weights"
    for inside in ("_orig_mod", "module", "model"):
        if isinstance(getattr(given, inside, None), nn.Module):
            return f": give its .{inside}"
    return ""


def _own_modules(hf: Any) -> Any:
    """A copy of a model's modules that has the same weights, buffers and config, and whose weights get no gradient."""
    memo: dict[int, Any] = {}
    for part in hf.modules():
        # Containers and what accelerate attaches refer to modules. All else is shared, large tensors above all.
        attached = ("forward", "_old_forward", "_hf_hook")
        kept = [v for name, v in vars(part).items() if name not in attached and not isinstance(v, dict | list | tuple)]
        hook = getattr(part, "_hf_hook", None)
        for one in [] if hook is None else getattr(hook, "hooks", (hook,)):
            kept += [getattr(one, name, None) for name in ("weights_map", "tied_params_map")]
        memo |= {id(value): value for value in [*kept, *part.buffers(recurse=False)] if value is not None}
        for weight in part.parameters(recurse=False):
            memo.setdefault(id(weight), shared(weight))
    return copy.deepcopy(hf, memo)
