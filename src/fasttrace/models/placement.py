"""Weights on several devices, in CPU memory or on disk, as placed by accelerate's hooks.

accelerate loads an offloaded module's weights onto its device when the module's `forward` is called. fasttrace drives
blocks through their parameters and calls no `forward`, so it calls the same hooks itself, for a whole block at a time:
a wave reads each layer once.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fasttrace.errors import ModelError
from fasttrace.models.quantised import META, change_quantised, in_use, is_quantised, packed_parts


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


def is_frozen(root: nn.Module) -> bool:
    """Whether any weight is offloaded or quantised, so that it is read-only, and not there as it is computed with."""
    return is_offloaded(root) or any(is_quantised(part) for part in root.modules())


@contextmanager
def present(*roots: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """The weights of these modules and their submodules are on their devices while the body runs, as plain tensors.

    Weights that are already on their devices, such as those of an outer `present`, are left alone. Quantised ones are
    dequantised in `dtype`.
    """
    loaded = []
    try:
        for root in roots:
            for part in root.modules():
                for hook in _hooks(part):
                    if any(weight.device == META for weight in part.parameters(recurse=hook.place_submodules)):
                        loaded.append((hook, part))
                        hook.pre_forward(part)
        with in_use(*roots, dtype=dtype):
            yield
    finally:
        for hook, part in loaded:
            hook.post_forward(part, None)


def stored_weights(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter's name and value, sorted by name, wherever it is stored. Values are read one at a time.

    The names are those of a model with all its weights in memory. Of tied weights only the first appears. A quantised
    weight is given as the tensors that it is packed in.
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
    packed = dict(packed_parts(root))
    for name in sorted(names):
        if parts := packed.get(name):
            yield from ((f"{name}.{part}", tensor) for part, tensor in sorted(parts.items()))
        else:
            yield name, _stored(root, name)


def finite_weights(root: nn.Module, model: str) -> Iterator[tuple[str, Tensor]]:
    """`stored_weights`, each checked. model: its name. Raises ModelError at a weight that is NaN or infinite."""
    for name, weight in stored_weights(root):
        # torch sums no floats of 8 bits, and a packed integer is always finite.
        numbers = weight.float() if weight.element_size() == 1 else weight
        # A sum is finite only if every number is, unless the sum itself is too large for the dtype.
        if not bool(numbers.sum().isfinite()) and not bool(numbers.isfinite().all()):
            bad = int((~numbers.isfinite()).sum())
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
    if (home := _home_of(root, name)) is None:
        raise KeyError(name)
    hook, key = home
    value: Tensor = hook.weights_map[key]
    return value.to(weight.dtype)


def is_stored(root: nn.Module, name: str) -> bool:
    """Whether a parameter is read-only: stored elsewhere or quantised, and brought when it is needed."""
    return _home_of(root, name) is not None or _is_quantised_weight(root, name)


def _is_quantised_weight(root: nn.Module, name: str) -> bool:
    module, _, own = name.rpartition(".")
    return own == "weight" and is_quantised(root.get_submodule(module))


def _home_of(root: nn.Module, name: str) -> tuple[Any, str] | None:
    """The nearest hook that stores a parameter, and the parameter's name in its map. None where none does."""
    parts = name.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        for hook in _hooks(root.get_submodule(".".join(parts[:depth]))):
            key = ".".join(parts[depth:])
            if hook.weights_map is not None and key in hook.weights_map:
                return hook, key
    return None


def keep_beside(root: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """From now on, a parameter that `is_stored` is what `change` makes of it, whenever its value is read.

    So a pass of fasttrace, a `forward` of the module itself, `stored_weights` and what saves the module all see the
    change. The stored value stays as it is.

    change: gets the value in its dtype and on the device on which it is computed with, and returns a new tensor.
    Returns a function that takes the change away. Of several changes of a parameter, the last is taken away first.
    """
    if _is_quantised_weight(root, name):
        return change_quantised(root.get_submodule(name.rpartition(".")[0]), change)
    home = _home_of(root, name)
    if home is None:  # a parameter in memory beside one that is stored, such as the bias of a quantised layer
        return _change_in_place(root.get_parameter(name).detach(), change)
    hook, key = home
    stored, dtype = hook.weights_map, root.get_parameter(name).dtype
    hook.weights_map = _Changed(stored, key, lambda value: change(value.to(hook.execution_device, dtype)))

    def undo() -> None:
        hook.weights_map = stored

    return undo


def _change_in_place(weight: Tensor, change: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    before = weight.clone()
    weight.copy_(change(weight))

    def undo() -> None:
        weight.copy_(before)

    return undo


class _Changed(Mapping[str, Tensor]):
    """The weights that a hook brings, one of them as it is changed whenever it is read."""

    def __init__(self, stored: Mapping[str, Tensor], key: str, change: Callable[[Tensor], Tensor]) -> None:
        self.stored, self.key, self.change = stored, key, change

    def __getitem__(self, key: str) -> Tensor:
        value = self.stored[key]
        return self.change(value) if key == self.key else value

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)
