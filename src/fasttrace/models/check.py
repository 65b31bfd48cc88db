"""Whether a model computes what fasttrace computes from its weights.

A block reads weights and calls no `forward`. Whatever else a module does, such as an adapter, a hook or a replaced
layer, would be left out without a word. `check_modules` finds these by their kind and names the way out.
`check_outputs` compares numbers: every layer and the logits, with those of the model itself.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize

from fasttrace.errors import ModelError
from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Block
from fasttrace.models.configs import keeps_float32
from fasttrace.models.hooked import HookedDecoder, hooked, whole_logits
from fasttrace.models.packed import bring, embed, layer_output, pack, row_logits, row_logprob
from fasttrace.models.placement import META, finite_weights, is_offloaded
from fasttrace.models.quantised import format_of, is_settled, packed_parameters, quantised
from fasttrace.models.sublayers import Sublayer

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
PROMPTS = ("The Eiffel Tower is located in the city of", "In 1969, two people walked on")

# Where the forward of a module may come from: classes whose weights the families' blocks read.
FORWARDS = (
    "torch.nn.modules.",
    "transformers.activations",
    "transformers.modeling_",
    "transformers.models.",
    "transformers.pytorch_utils",
    "transformers.utils.",
    "transformers_modules.",  # code of a model's own, with trust_remote_code
)
# Packages whose layers contain packed integers instead of weights, beside torch's own. quantised.py dequantises some.
QUANTIZERS = (
    "aqlm",
    "auto_gptq",
    "autoawq",
    "awq",
    "bitsandbytes",
    "compressed_tensors",
    "eetq",
    "gptqmodel",
    "hqq",
    "optimum",
    "quanto",
    "torch.ao",
    "torch.nn.quantiz",
    "torchao",
    "transformers.integrations",
)
DEQUANTIZE = (
    "load its folder with fasttrace.load_model, which reads GPTQ, AWQ, compressed-tensors and FP8 by itself, or give a "
    "model with plain weights: hf.dequantize(), or load it without quantization"
)


def check_modules(hf: nn.Module, name: str) -> None:
    """Raise ModelError where a module of the model computes something else than its class does with its weights.

    That is a LoRA layer or another PEFT layer, a forward hook or pre-hook (accelerate's own, which move weights, are
    allowed, and so are transformers' own, which only record), a parametrization, weight norm or pruning mask, a
    quantised or replaced layer, a replaced forward, or weights that are not plain tensors of one float dtype. The
    message names the first module and the way out.
    """
    for hooks in (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks):
        for hook in hooks.values():
            raise ModelError(
                f"model '{name}': expected no hooks on all modules of torch, got {_named(hook)}: remove it, since "
                "fasttrace calls no forward"
            )
    for path, module in hf.named_modules():
        if (found := _difference(module, whole=not path)) is not None:
            what, way_out = found
            where = f"module '{path}'" if path else "the model"
            raise ModelError(f"model '{name}': {where} has {what}, which fasttrace does not compute: {way_out}")
    _check_dtypes(hf, name)


def _difference(module: nn.Module, whole: bool) -> tuple[str, str] | None:
    """(what a module computes beside its own forward, the way out), or None.

    whole: whether this is the whole model. Its class may be the user's own, such as one with another loss, since
    `check_outputs` compares its logits.
    """
    for look in (_adapter, _parametrization, *([] if whole else [_replaced]), _patched, _hooked):
        if (found := look(module)) is not None:
            return found
    return None


def _adapter(module: nn.Module) -> tuple[str, str] | None:
    of_peft = any(_from(kind.__module__, ("peft",)) for kind in type(module).__mro__)
    if of_peft or isinstance(getattr(module, "base_layer", None), nn.Module):
        return f"an adapter ({type(module).__name__})", "merge it with peft's merge_and_unload() and wrap the result"
    return None


def _parametrization(module: nn.Module) -> tuple[str, str] | None:
    if parametrize.is_parametrized(module):
        names = ", ".join(module.parametrizations)  # type: ignore[arg-type]
        way_out = "remove it with torch.nn.utils.parametrize.remove_parametrizations(module, name)"
        return f"a parametrization of {names}", way_out
    for hook in module._forward_pre_hooks.values():
        kinds = {kind.__module__ for kind in type(hook).__mro__}
        if "torch.nn.utils.prune" in kinds:
            return "a pruning mask", "make it permanent with torch.nn.utils.prune.remove(module, name)"
        if kinds & {"torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm"}:
            kind = type(hook).__module__.rpartition(".")[2]
            return f"a {kind.replace('_', ' ')}", f"remove it with torch.nn.utils.remove_{kind}(module)"
    return None


def _replaced(module: nn.Module) -> tuple[str, str] | None:
    if (how := format_of(module)) is not None:
        return how.refusal(module)
    home = next((kind.__module__ for kind in type(module).__mro__ if "forward" in vars(kind)), "")
    if _from(home, QUANTIZERS) or hasattr(module, "quantization_scheme"):  # the latter by compressed-tensors
        return f"a quantised layer ({type(module).__name__})", DEQUANTIZE
    if not home.startswith(FORWARDS):
        return f"the class {home}.{type(module).__name__}", "put the layer of transformers in its place"
    if not (where := _home(type(module).forward)).startswith(FORWARDS):
        return f"a forward from {where}", "restore the forward of its class"
    return None


def _patched(module: nn.Module) -> tuple[str, str] | None:
    # accelerate replaces the forward of a module whose weights it moves, and keeps the module's own.
    kept = "_old_forward" if hasattr(module, "_hf_hook") else "forward"
    own = vars(module).get(kept)
    if own is not None and getattr(own, "__func__", None) is not type(module).forward and not is_settled(own):
        return "a forward of its own", "delete it (del module.forward), or change the weights instead"
    return None


def _hooked(module: nn.Module) -> tuple[str, str] | None:
    for kind, hooks in (("hook", module._forward_hooks), ("pre-hook", module._forward_pre_hooks)):
        for hook in hooks.values():
            if not _from(_home(hook), ("transformers",)):
                return f"a forward {kind} ({_named(hook)})", "remove it with the handle that register_… returned"
    moved = getattr(module, "_hf_hook", None)
    for hook in [] if moved is None else getattr(moved, "hooks", (moved,)):
        if not _from(type(hook).__module__, ("accelerate",)):
            return f"a hook ({type(hook).__name__})", "remove it with accelerate.hooks.remove_hook_from_module(module)"
    return None


def _check_dtypes(hf: nn.Module, name: str) -> None:
    """Raise ModelError where the weights are not plain tensors of one float dtype that gradients pass through."""
    first = ""
    packed = {id(part) for _, module, _ in quantised(hf) for part in packed_parameters(module)}
    for path, weight in hf.named_parameters():
        if id(weight) in packed:
            continue
        if type(weight.data) is not Tensor or weight.dtype not in FLOATS:
            kind = str(weight.dtype) if type(weight.data) is Tensor else type(weight.data).__name__
            raise ModelError(f"model '{name}': the weight '{path}' is quantised or packed ({kind}): {DEQUANTIZE}")
        if weight.is_inference():
            raise ModelError(
                f"model '{name}': the weight '{path}' was made under torch.inference_mode, and no gradient passes "
                "through such weights: make the model outside of it"
            )
        if weight.dtype == torch.float32 and keeps_float32(hf, path):
            continue
        first = first or str(weight.dtype)
        if str(weight.dtype) != first:
            raise ModelError(
                f"model '{name}': expected weights of one dtype, got {first} and, in '{path}', {weight.dtype}: convert "
                "them with hf.float() or hf.bfloat16()"
            )


def check_weights(model: Decoder) -> None:
    """Raise ModelError where a weight has no values (device "meta"), or is NaN or infinite.

    This reads every weight once, which takes a tenth of the time of `model_hash`. Offloaded weights are checked when
    they are read for `model_hash`.
    """
    if is_offloaded(model.hf):
        return
    for path, weight in model.hf.named_parameters():
        if weight.device == META:
            raise ModelError(f"model '{model.name}': the weight '{path}' has no values (device 'meta')")
    for _ in finite_weights(model.hf, model.name):
        pass


@torch.no_grad()
def check_outputs(model: Decoder) -> None:
    """Raise ModelError where fasttrace does not compute what `model.hf` computes on two prompts.

    Compared are the embeddings, every layer's output for the input that it has in `model.hf`, and the logits and log p
    of the last residual. The difference of a row, as a 2-norm relative to its layer's input and output, may be at most
    16 ε in bfloat16 and float16, and 256 ε of float32 in float32 and float64 (in which transformers rounds some steps
    to float32). Sound models differ by up to 2 ε and 15 ε. A mixture's router chooses by its input in `model.hf`, since
    a rounding may turn its choice. A quantised layer of `model.hf` multiplies with its dequantised weight
    (`quantised.settle`), so the tolerance is the same. Its package's own product may also quantise the activations,
    which no tolerance of rounding covers.

    It costs two forward passes of some 10 tokens by `model.hf` and by fasttrace. A `HookedDecoder` computes nothing
    itself; for it this is `check_forward`.
    """
    rows = model.embed_weight.shape[0]
    for text in PROMPTS:
        ids = list(model.tokenizer(text).input_ids)[: model.positions] or [0]
        if max(ids) >= rows:
            raise ModelError(
                f"model '{model.name}': expected token ids below {rows}, the rows of its embeddings, got {max(ids)} "
                "from its tokenizer: give the tokenizer that the weights were trained with"
            )
        if isinstance(model, HookedDecoder):
            check_forward(model, ids)
        else:
            _check_prompt(model, ids)


def check_forward(model: HookedDecoder, ids: Sequence[int]) -> None:
    """Raise ModelError where transformers' forward of a prompt is not what hooks take it for.

    Every layer, and the embedding, must run once and give a vector a token. The logits must be finite, and those of a
    token the same whatever follows it, up to rounding (`check_outputs` states the tolerance).
    """
    runs: dict[str, int] = {}

    def count(name: str) -> Callable[[Tensor], None]:
        def change(x: Tensor) -> None:
            if x.ndim != 3 or x.shape[:2] != (1, len(ids)):
                raise ModelError(
                    f"model '{model.name}': expected {name} to give a vector for each of {len(ids)} tokens, got values "
                    f"of shape {tuple(x.shape)}"
                )
            runs[name] = runs.get(name, 0) + 1

        return change

    parts = {"the embedding": model.hf.get_input_embeddings()}
    parts |= {f"layer {number}": layer for number, layer in enumerate(model.layer_modules)}
    tokens = torch.tensor([list(ids)], dtype=torch.int64, device=model.device)
    with hooked([(Sublayer(part), count(name)) for name, part in parts.items()]):
        logits = whole_logits(model, tokens, len(ids))[0]
    if not bool(logits.isfinite().all()):
        raise ModelError(f"model '{model.name}': expected finite logits, got NaN or infinite ones for {PROMPTS[0]!r}")
    for name in parts:
        if runs.get(name, 0) != 1:
            raise ModelError(f"model '{model.name}': expected {name} to run once a pass, got {runs.get(name, 0)} times")
    before = whole_logits(model, tokens[:, :-1], len(ids))[0] if len(ids) > 1 else logits[:0]
    difference = (before.double() - logits[: len(before)].double()).norm(dim=1)
    error = float((difference / logits[: len(before)].double().norm(dim=1)).max()) if len(before) else 0.0
    if not error <= _tolerance(model):
        raise ModelError(
            f"model '{model.name}': expected a causal decoder, got logits of a token that change with what follows it "
            f"(by {error:.2g})"
        )


def _check_prompt(model: Decoder, ids: Sequence[int]) -> None:
    with model.products(), _recorded(model) as (inputs, outputs, routed):
        batch = pack(model, [ids])
        logits = model.causal(input_ids=batch.ids[None], use_cache=False).logits[0]
    if not bool(logits.isfinite().all()):
        raise ModelError(f"model '{model.name}': expected finite logits, got NaN or infinite ones for {PROMPTS[0]!r}")
    if len(inputs) < model.n_layers:
        raise ModelError(f"model '{model.name}': expected every layer to run, got {len(inputs)} of {model.n_layers}")
    most = _tolerance(model)
    _compare(model, "the embeddings", embed(model, batch.ids, batch.positions), inputs[0], inputs[0], most)
    rotary = model.rotary(batch.positions)
    for layer, block in model.layers():
        h, rotary = inputs[layer].to(block.device), bring(rotary, block.device)
        out = layer_output(block, h, rotary, batch.sequences, chosen_by=_on(routed.get(layer), block))
        _compare(model, f"layer {layer}", out, outputs[layer], h, most)
    last = outputs[model.n_layers - 1]
    _compare(model, "the logits", row_logits(model, last), logits, logits, most)
    following = batch.ids.roll(-1).to(logits.device)
    ours = row_logprob(model, last, following)
    theirs = logits.double().log_softmax(-1).gather(1, following[:, None])[:, 0]
    # log p is compared on the scale of the logits that it is computed from.
    scale = logits.double().abs().amax(1)
    _compare(model, "log p", ours[:, None], theirs[:, None], scale[:, None], most)


def _on(recorded: Tensor | None, block: Block) -> Tensor | None:
    return None if recorded is None else recorded.to(block.device)


@contextmanager
def _recorded(model: Decoder) -> Iterator[tuple[dict[int, Tensor], dict[int, Tensor], dict[int, Tensor]]]:
    """While the body runs, the input and output (N, d) of every layer of `model.hf`, and the input of every mixture of
    experts, are recorded by layer."""
    inputs: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}
    routed: dict[int, Tensor] = {}

    def before(layer: int, inputs: dict[int, Tensor] = inputs) -> Callable[..., None]:
        def keep(module: Any, args: Any, named: Any) -> None:
            inputs[layer] = (args[0] if args else named["hidden_states"])[0].clone()

        return keep

    def after(layer: int) -> Callable[..., None]:
        def keep(module: Any, args: Any, out: Any) -> None:
            outputs[layer] = (out[0] if isinstance(out, tuple) else out).reshape(inputs[layer].shape).clone()

        return keep

    handles = []
    try:
        for layer, block in enumerate(model.blocks):
            handles.append(block.layer.register_forward_pre_hook(before(layer), with_kwargs=True))
            handles.append(block.layer.register_forward_hook(after(layer)))
            if block.experts is not None:
                mixture = block.mixture
                handles.append(mixture.register_forward_pre_hook(before(layer, routed), with_kwargs=True))
        yield inputs, outputs, routed
    finally:
        for handle in handles:
            handle.remove()


def _tolerance(model: Decoder) -> float:
    """The largest relative difference of a row that rounding explains."""
    if model.dtype in (torch.bfloat16, torch.float16):
        return 16 * torch.finfo(model.dtype).eps
    return 256 * torch.finfo(torch.float32).eps


def _compare(model: Decoder, part: str, ours: Tensor, theirs: Tensor, entering: Tensor, most: float) -> None:
    """Raise ModelError where a row of `ours` differs from `theirs` by more than `most`. All are (N, …)."""
    ours, theirs, entering = (x.double().cpu() for x in (ours, theirs, entering))
    scale = torch.maximum(theirs.norm(dim=1), entering.norm(dim=1))
    error = float(((ours - theirs).norm(dim=1) / scale.clamp_min(torch.finfo(torch.float64).tiny)).max())
    if not error <= most:
        raise ModelError(
            f"model '{model.name}': fasttrace computes {part} differently from the model itself: expected a relative "
            f"difference of at most {most:.1g}, got {error:.2g}; a part of the model was changed, or it is a variant "
            "that its family's adapter does not know (check=False wraps it all the same)"
        )


def _from(module_name: str, packages: Sequence[str]) -> bool:
    return any(module_name == package or module_name.startswith(f"{package}.") for package in packages)


def _home(function: Any) -> str:
    """The module that defines a function, a bound method or the class of a callable object."""
    return str(getattr(function, "__module__", None) or type(function).__module__)


def _named(hook: Any) -> str:
    return str(getattr(hook, "__qualname__", type(hook).__name__))
