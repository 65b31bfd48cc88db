"""Tensors in CPU memory that are said to be on several accelerators, to test without any that each function is called
with tensors of one device.

Functions run on the CPU. What they return is said to be where their arguments are. Tensors that autograd's engine or a
custom backward makes are not followed. The accelerators are "xpu", for which no kernel is chosen.
"""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

CPU = torch.device("cpu")


class SaidDevices(TorchFunctionMode):
    """While it is active, a function that gets tensors of several devices raises RuntimeError.

    An index, and a tensor without dimensions, may be on the CPU, as CUDA has it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._place = WeakIdKeyDictionary()

    def put(self, tensor: torch.Tensor, device: torch.device) -> None:
        """Say that a tensor is on a device."""
        self._place[tensor] = device

    def of(self, tensor: torch.Tensor) -> torch.device:
        """Where a tensor is said to be."""
        return self._place.get(tensor, CPU)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, args, name = dict(kwargs or {}), list(args), getattr(func, "__name__", "")
        if getattr(func, "__self__", None) is torch.Tensor.device:
            return self.of(args[0])
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        asked = None
        if kwargs.get("device") is not None:
            asked, kwargs["device"] = torch.device(kwargs["device"]), CPU
        if name in ("to", "cpu"):
            asked = CPU if name == "cpu" else asked
            for i, one in enumerate(args[1:], 1):
                if isinstance(one, torch.device | str):
                    asked, args[i] = torch.device(one), CPU
        elif name != "copy_":
            found = {self.of(one) for one in tensors if one.dim()}
            if len(found - {CPU} if name in ("__getitem__", "__setitem__") else found) > 1:
                raise RuntimeError(f"{name}: expected tensors on one device, got {sorted(map(str, found))}")
        made = func(*args, **kwargs)
        if asked is None and tensors:
            asked = next((self.of(one) for one in tensors if one.dim()), self.of(tensors[0]))
        return made if asked is None else tree_map(lambda one: self._said(one, asked, tensors), made)

    def _said(self, made: Any, device: torch.device, given: list[torch.Tensor]) -> Any:
        if not isinstance(made, torch.Tensor) or self.of(made) == device:
            return made
        if any(made is one for one in given):  # a move that moved nothing
            made = made.clone()
        self._place[made] = device
        return made
