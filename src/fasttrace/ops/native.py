"""The compiled extension: loaded once, or the reason why it cannot be, in words a user can act on."""

import functools
import importlib

import torch

from fasttrace.errors import UserError


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


def row_op_reason(*tensors: torch.Tensor) -> str | None:
    """Why the compiled CPU ops on rows cannot take these tensors, or None where they can."""
    first = tensors[0]
    if first.device.type != "cpu":
        return f"the compiled kernel is for the CPU, these are on {first.device}"
    if (reason := unavailable_reason()) is not None:
        return reason
    if first.dtype not in (torch.float32, torch.bfloat16):
        return f"the compiled kernel takes float32 and bfloat16, these are {first.dtype}"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "the compiled kernel has no gradient, and one is required"
    return None


def refuse_gradients(op: str, **tensors: torch.Tensor) -> None:
    """Raises UserError, naming the argument, where autograd would need a gradient that `op` does not have."""
    if torch.is_grad_enabled():
        for name, tensor in tensors.items():
            if tensor.requires_grad:
                raise UserError(
                    f"{op}: {name} requires grad, but this op has no gradient: expected a call under torch.no_grad()"
                )
