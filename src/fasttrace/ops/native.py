"""The compiled extension: loaded once, or the reason why it cannot be, in words a user can act on."""

import functools
import importlib
from collections.abc import Sequence

import torch

from fasttrace.errors import UserError
from fasttrace.ops.dispatch import records, transformed_reason, wrapped_reason


@functools.cache
def _import_reason(module: str) -> str | None:
    """Why a module of the extension cannot be imported, or None where it can."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return f"{module} is not built in this installation (pip install . builds it)"
    except ImportError as error:
        return f"{module} is built but cannot be loaded ({error})"
    return None


def unavailable_reason(device: torch.device | str = "cpu") -> str | None:
    """Why the compiled ops cannot run on `device`, or None where they can.

    The CPU ops and every schema are in fasttrace._C. The CUDA ops are in fasttrace._C_cuda, which is built only
    where nvcc is installed and torch has CUDA.
    """
    kind = torch.device(device).type
    if kind not in ("cpu", "cuda"):
        return f"the compiled ops run on CPU and CUDA tensors, these are on {kind}"
    if (reason := _import_reason("fasttrace._C")) is not None or kind == "cpu":
        return reason
    return _import_reason("fasttrace._C_cuda")


def row_op_reason(*tensors: torch.Tensor, frozen: Sequence[torch.Tensor] | None = None) -> str | None:
    """Why the compiled CPU ops on rows cannot take these tensors, or None where they can.

    frozen: those for which the op has no gradient, by default all of them.
    """
    first = tensors[0]
    if first.device.type != "cpu":
        return f"the compiled kernel is for the CPU, these are on {first.device}"
    if (reason := unavailable_reason()) is not None:
        return reason
    if first.dtype not in (torch.float32, torch.bfloat16):
        return f"the compiled kernel takes float32 and bfloat16, these are {first.dtype}"
    if records(*(tensors if frozen is None else frozen)):
        return "the compiled kernel has no gradient, and one is required"
    if (reason := transformed_reason()) is not None or not records(*tensors):
        return reason
    return wrapped_reason(first)


def refuse_gradients(op: str, **tensors: torch.Tensor) -> None:
    """Raises UserError, naming the argument, where autograd would need a gradient that `op` does not have."""
    if torch.is_grad_enabled():
        for name, tensor in tensors.items():
            if tensor.requires_grad:
                raise UserError(
                    f"{op}: {name} requires grad, but this op has no gradient: expected a call under torch.no_grad()"
                )
