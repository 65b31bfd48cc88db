"""Quantised layers: which they are, and their weights as plain floats while they are used.

A layer stays packed. While its block runs (`in_use`), its `weight` is a plain tensor of the model's dtype, dequantised
when the block is brought and freed with it, so that the families' blocks read it like any other. Where only shapes are
read, its `weight` is a tensor without values (`as_shapes`).

What is computed is the product with the dequantised weight, whatever product the format's own package computes: some
also quantise the activations (bitsandbytes' LLM.int8(), torchao's dynamic configs, W8A8), which fasttrace does not.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fasttrace.models.packing import PackedLinear

META = torch.device("meta")


@dataclass(frozen=True)
class Format:
    """A kind of quantised layer.

    kind(module): its words in a run, such as "nf4". shape(module): (out, in), where there is no weight of this shape.
    dequantise(module, dtype): its weight, (out, in), in any float dtype; dtype is that in which it will be used.
    parts(module): what its weight is made of, by name, where that is more than its parameters. refusal(module): what it
    has that cannot be used, and the way out.
    """

    kind: Callable[[Any], str]
    shape: Callable[[Any], tuple[int, ...]]
    dequantise: Callable[[Any, torch.dtype], Tensor]
    parts: Callable[[Any], dict[str, Tensor]]
    refusal: Callable[[Any], tuple[str, str] | None] = lambda module: None


def _four_bits(module: Any, dtype: torch.dtype) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    state = copy.copy(module.weight.quant_state)
    # bitsandbytes rounds to the dtype that the weights had before. Its products on a CPU round once to that of x.
    state.dtype = torch.float32 if dtype == torch.float64 else dtype
    return dequantize_4bit(module.weight.data.reshape(-1, 1), state)


def _rearranged(module: Any) -> tuple[str, str] | None:
    if getattr(module.weight.quant_state, "packing_format_for_cpu", False):
        what = "4-bit weights that bitsandbytes rearranged and rounded in a pass on this CPU"
        return what, "load the model again, and wrap it before its first pass"
    return None


def _scales(module: Any) -> Tensor:
    """(out,) float32, which a first pass of bitsandbytes moves from the weight to the module's state."""
    scales: Tensor | None = getattr(module.weight, "SCB", None)
    if scales is None:
        scales = module.state.SCB
    assert scales is not None
    return scales


def _eight_bits(module: Any, dtype: torch.dtype) -> Tensor:
    from bitsandbytes.functional import int8_vectorwise_dequant

    found: Tensor = int8_vectorwise_dequant(module.weight.data, _scales(module))
    return found


def _inner(weight: Any) -> dict[str, Tensor]:
    """The tensors that a tensor subclass is made of, those inside of them included."""
    names, _ = weight.__tensor_flatten__()
    found: dict[str, Tensor] = {}
    for name in names:
        part = getattr(weight, name)
        if type(part) is Tensor:
            found[name] = part
        else:
            found |= {f"{name}.{inside}": tensor for inside, tensor in _inner(part).items()}
    return found


def _torchao_kind(weight: Any) -> str:
    kind, bits = type(weight).__name__, getattr(weight, "target_dtype", None)
    return f"torchao-{kind.removesuffix('Tensor').lower() if bits is None else str(bits).removeprefix('torch.')}"


BITS_4 = Format(
    kind=lambda module: str(module.weight.quant_state.quant_type),
    shape=lambda module: tuple(module.weight.quant_state.shape),
    dequantise=_four_bits,
    # as_dict has every tensor and, as bytes, every setting of the state.
    parts=lambda module: {"weight": module.weight.data, **module.weight.quant_state.as_dict(packed=True)},
    refusal=_rearranged,
)
BITS_8 = Format(
    kind=lambda module: "llm.int8",
    shape=lambda module: tuple(module.weight.shape),
    dequantise=_eight_bits,
    parts=lambda module: {"weight": module.weight.data, "SCB": _scales(module)},
)
TORCHAO = Format(
    kind=lambda module: _torchao_kind(module.weight),
    shape=lambda module: tuple(module.weight.shape),
    dequantise=lambda module, dtype: module.weight.dequantize(),
    parts=lambda module: _inner(module.weight.data),
)
PACKED = Format(
    kind=lambda module: module.kind,
    shape=lambda module: (module.out_features, module.in_features),
    dequantise=lambda module, dtype: module.dequantised(),
    parts=lambda module: {},
)


def format_of(module: nn.Module) -> Format | None:
    """The format of a quantised layer, or None for any other module, and for a layer that is in use."""
    if "_packed_weight" in vars(module):
        return None
    if isinstance(module, PackedLinear):
        return PACKED
    weight: Any = module._parameters.get("weight")
    kind = type(weight)
    if weight is None or (kind is nn.Parameter and type(weight.data) is Tensor):
        return None
    if kind.__module__.startswith("bitsandbytes."):
        if kind.__name__ == "Params4bit" and weight.quant_state is not None:
            return BITS_4
        return BITS_8 if kind.__name__ == "Int8Params" and weight.dtype == torch.int8 else None
    return TORCHAO if _is_torchao(weight) else None


def _is_torchao(weight: Tensor) -> bool:
    of_torchao = any(kind.__module__.startswith("torchao.") for kind in type(weight.data).__mro__)
    return of_torchao and hasattr(weight, "dequantize") and hasattr(weight, "__tensor_flatten__")


def quantised(root: nn.Module) -> Iterator[tuple[str, nn.Module, Format]]:
    """(name, module, format) of every quantised layer of a module, itself included, that is not in use."""
    for name, module in root.named_modules():
        if (how := format_of(module)) is not None:
            yield name, module, how


def is_quantised(module: nn.Module) -> bool:
    """Whether a module is a quantised layer, in use or not."""
    return "_packed_weight" in vars(module) or format_of(module) is not None


def quantisation(root: nn.Module) -> str | None:
    """How a model's weights are quantised, such as "nf4", or None where none is."""
    return "+".join(sorted({how.kind(module) for _, module, how in quantised(root)})) or None


def _is_transposed(module: nn.Module) -> bool:
    """Whether a layer took the place of one that stores its weight as (in, out), as GPT-2's do."""
    return getattr(module, "source_cls", nn.Linear).__name__ == "Conv1D"


@torch.no_grad()
def dequantised(module: nn.Module, how: Format, dtype: torch.dtype) -> Tensor:
    """The weight of a quantised layer in `dtype`, in the shape of the layer that it stands for, as `change_quantised`
    has changed it."""
    weight = how.dequantise(module, dtype).to(dtype)
    weight = (weight.t() if _is_transposed(module) else weight).contiguous()
    for change in vars(module).get("_changes", ()):
        weight = change(weight)
    return weight


@contextmanager
def _with(weight_of: Callable[[nn.Module, Format], Tensor], roots: tuple[nn.Module, ...]) -> Iterator[None]:
    changed: list[nn.Module] = []
    try:
        for root in roots:
            for _, module, how in list(quantised(root)):
                plain = nn.Parameter(weight_of(module, how), requires_grad=False)
                vars(module)["_packed_weight"] = module._parameters.get("weight")
                module._parameters["weight"] = plain
                changed.append(module)
        yield
    finally:
        for module in changed:
            packed = vars(module).pop("_packed_weight")
            if packed is None:
                del module._parameters["weight"]
            else:
                module._parameters["weight"] = packed


def in_use(*roots: nn.Module, dtype: torch.dtype) -> AbstractContextManager[None]:
    """While the body runs, the quantised layers of these modules have plain weights in `dtype`.

    Layers that are in use already, such as those of an outer `in_use`, are left alone.
    """
    return _with(lambda module, how: dequantised(module, how, dtype), roots)


def as_shapes(*roots: nn.Module) -> AbstractContextManager[None]:
    """While the body runs, the quantised layers of these modules have weights of the shape of use, without values."""

    def empty(module: nn.Module, how: Format) -> Tensor:
        weight = torch.empty(how.shape(module), device=META)
        return weight.t() if _is_transposed(module) else weight

    return _with(empty, roots)


def change_quantised(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """From now on, the weight of a quantised layer is what `change` makes of it.

    change: gets the dequantised weight, and returns a new tensor. Returns a function that takes the change away. Of
    several changes, the last is taken away first.
    """
    changes = vars(module).setdefault("_changes", [])
    changes.append(change)
    return lambda: changes.remove(change)


def settle(root: nn.Module) -> None:
    """Let every quantised linear layer compute what fasttrace computes: the product with its dequantised weight.

    The layers of bitsandbytes would also, in a pass on a CPU, rearrange and round their weights and change the dtype of
    their biases. A quantised embedding gives its dequantised rows in any case.
    """
    for _, module, _ in quantised(root):
        if not isinstance(module, nn.Embedding):
            # accelerate calls the forward that it has replaced once it has brought the weights.
            name = "_old_forward" if hasattr(module, "_hf_hook") else "forward"
            vars(module)[name] = functools.partial(_plain_forward, module)


def is_settled(forward: Any) -> bool:
    """Whether a layer's forward is the one that `settle` gave it."""
    return getattr(forward, "func", None) is _plain_forward


def _plain_forward(module: Any, x: Tensor) -> Tensor:
    with in_use(module, dtype=x.dtype):
        weight = module.weight.t() if _is_transposed(module) else module.weight
        return functional.linear(x, weight, module.bias)


def packed_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a quantised layer that are packed."""
    if isinstance(module, PackedLinear):
        return [part for name, part in module.named_parameters() if name != "bias"]
    return [module._parameters["weight"]]  # type: ignore[list-item]


def shared(weight: nn.Parameter) -> nn.Parameter:
    """A parameter without gradient that shares a weight's numbers. What happens to the weight's own object, such as
    bitsandbytes' rearranging, leaves it as it is."""
    name = type(weight).__name__
    if name == "Int8Params":
        return weight  # its scales are in it or, after a pass, in the module's state, which is shared too
    if name != "Params4bit":
        return nn.Parameter(weight.detach(), requires_grad=False)
    own: nn.Parameter = copy.copy(weight)
    own.quant_state = copy.copy(own.quant_state)  # type: ignore[attr-defined]
    return own


def plain_state(root: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The state dict of a module in memory, with dequantised weights in the place of the quantised ones."""
    layers = {name: (module, how) for name, module, how in quantised(root)}

    def is_packed(name: str) -> bool:
        parts = name.split(".")
        inside = [n for n in range(1, len(parts)) if ".".join(parts[:n]) in layers]
        return bool(inside) and parts[inside[-1] :] != ["bias"]

    state = {name: weight for name, weight in root.state_dict().items() if not is_packed(name)}
    return state | {f"{name}.weight": dequantised(module, how, dtype) for name, (module, how) in layers.items()}


def packed_parts(root: nn.Module) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(name of the weight, its tensors by name) of every quantised layer that has more tensors than its parameters."""
    for name, module, how in quantised(root):
        if parts := how.parts(module):
            yield f"{name}.weight", parts


def weight_tensors(root: nn.Module) -> Iterator[Tensor]:
    """Every tensor that a model's weights are made of: its parameters, with quantised ones in parts."""
    packed = dict(packed_parts(root))
    for name, weight in root.named_parameters():
        yield from packed[name].values() if name in packed else (weight.detach(),)
