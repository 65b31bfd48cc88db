"""Weights on several devices, in CPU memory or on disk, as placed by accelerate's hooks.

accelerate loads an offloaded module's weights onto its device when the module's `forward` is called. fasttrace drives
blocks through their parameters and calls no `forward`, so it calls the same hooks itself, for a whole block at a time:
a wave reads each layer once.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from fasttrace.errors import ModelError

META = torch.device("meta")


def _hooks(module: nn.Module) -> list[Any]:
    """The accelerate hooks of a module that load and unload weights."""
    hook = getattr(module, "_hf_hook", None)
    # A SequentialHook contains several hooks of one module.
    return [h for h in getattr(hook, "hooks", (hook,)) if getattr(h, "offload", False)]


def device_of(module: nn.Module) -> torch.device:
    """Device on which a module computes: that of its weights, or its hook's execution device if they are offloaded."""
    first = next(module.parameters(), None)
    if first is None or first.device != META:
        return torch.device("cpu") if first is None else first.device
    for part in module.modules():
        for hook in _hooks(part):
            if hook.execution_device is not None:
                return torch.device(hook.execution_device)
    return META


def is_offloaded(root: nn.Module) -> bool:
    """Whether any weight is in CPU memory or on disk and must be loaded onto a device before use."""
    return any(_hooks(part) for part in root.modules())


@contextmanager
def present(*roots: nn.Module) -> Iterator[None]:
    """The weights of these modules and their submodules are on their devices while the body runs.

    Weights that are already on their devices, such as those of an outer `present`, are left alone.
    """
    loaded = []
    try:
        for root in roots:
            for part in root.modules():
                for hook in _hooks(part):
                    if any(weight.device == META for weight in part.parameters(recurse=hook.place_submodules)):
                        loaded.append((hook, part))
                        hook.pre_forward(part)
        yield
    finally:
        for hook, part in loaded:
            hook.post_forward(part, None)


def stored_weights(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter's name and value, sorted by name, wherever it is stored. Values are read one at a time.

    The names are those of a model with all its weights in memory. Of tied weights only the first appears.
    """
    tied: dict[str, str] = getattr(root, "all_tied_weights_keys", {})
    seen: set[str] = set()
    names = []
    offloaded = is_offloaded(root)
    # Loading and unloading weights unties them, so object identity no longer shows which are tied.
    for name, _ in root.named_parameters(remove_duplicate=not offloaded):
        group = tied.get(name, name) if offloaded else name
        if group not in seen:
            seen.add(group)
            names.append(name)
    for name in sorted(names):
        yield name, _stored(root, name)


def finite_weights(root: nn.Module, model: str) -> Iterator[tuple[str, Tensor]]:
    """`stored_weights`, each checked. model: its name. Raises ModelError at a weight that is NaN or infinite."""
    for name, weight in stored_weights(root):
        # A sum is finite only if every number is, unless the sum itself is too large for the dtype.
        if not bool(weight.sum().isfinite()) and not bool(weight.isfinite().all()):
            bad = int((~weight.isfinite()).sum())
            raise ModelError(
                f"model '{model}': expected finite weights, got {bad:,} of {weight.numel():,} numbers of '{name}' that "
                "are NaN or infinite"
            )
        yield name, weight


def _stored(root: nn.Module, name: str) -> Tensor:
    """The value of one parameter. If the parameter is empty, the value comes from the nearest hook that stores it."""
    weight = root.get_parameter(name)
    if weight.device != META:
        return weight
    parts = name.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        for hook in _hooks(root.get_submodule(".".join(parts[:depth]))):
            key = ".".join(parts[depth:])
            if hook.weights_map is not None and key in hook.weights_map:
                value: Tensor = hook.weights_map[key]
                return value.to(weight.dtype)
    raise KeyError(name)


def bit_sums(weight: Tensor) -> Tensor:
    """weight: any shape → (n,) int64, a sum of each 4,096 words of its bits, every word times a random number.

    The numbers are the same for every call, and sums are modulo 2⁶⁴. If words change, their sum stays as it was with a
    probability of at most 2⁻³², whichever they are (universal hashing: Carter and Wegman, 1979).
    """
    flat, factors = weight.reshape(-1).contiguous(), _factors(weight.device)
    narrow = {1: torch.int8, 2: torch.int16}.get(flat.element_size(), torch.int32)
    even = all(n % 2 == 0 for n in (flat.numel(), flat.storage_offset()))
    words = flat.view(torch.int32 if narrow is torch.int16 and even else narrow)
    rows = words[: len(words) // WORDS * WORDS].view(-1, WORDS)
    last = words[rows.numel() :]
    # The products of one part stay in a cache of the CPU, or fill a GPU.
    parts = rows.split(2**5 if weight.device.type == "cpu" else 2**13)
    return torch.cat([*((part * factors).sum(1) for part in parts), (last * factors[: len(last)]).sum()[None]])


WORDS = 4096


@lru_cache
def _factors(device: torch.device) -> Tensor:
    """(WORDS,) int64 random numbers."""
    fixed = torch.Generator().manual_seed(0)
    return torch.randint(-(2**63), 2**63 - 1, (WORDS,), generator=fixed).to(device)


@contextmanager
def exact_products(tf32: bool) -> Iterator[None]:
    """While the body runs, matrix products have the dtype of their operands, or use TF32 on CUDA where it is asked for.

    What the caller set with `torch.autocast` and `torch.set_float32_matmul_precision` is restored afterwards.
    """
    mkldnn: Any = torch.backends.mkldnn
    wanted = ((torch.backends.cuda.matmul, "tf32" if tf32 else "ieee"), (mkldnn.matmul, "ieee"))
    now = [matmul.fp32_precision for matmul, _ in wanted]
    # "none" is a setting that was never made, and is as exact as "ieee".
    changes = [
        (matmul, new, old)
        for (matmul, new), old in zip(wanted, now, strict=True)
        if new != old and {new, old} != {"ieee", "none"}
    ]
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        try:
            # Unlike allow_tf32, this setting can be restored to "never set".
            for matmul, new, _ in changes:
                matmul.fp32_precision = new
            yield
        finally:
            for matmul, _, old in changes:
                matmul.fp32_precision = old
