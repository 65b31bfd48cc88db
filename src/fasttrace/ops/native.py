"""The compiled extension: loaded once, and where it cannot be, why, in words a user can act on."""

import functools
import importlib

import torch

from fasttrace.errors import UserError


@functools.cache
def _import_problem(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return f"{module} is not built in this installation (pip install . builds it)"
    except ImportError as error:
        return f"{module} is built and cannot be loaded ({error})"
    return None


def problem(device: torch.device | str = "cpu") -> str | None:
    """Why the compiled ops cannot run on `device`, or None where they can.

    The CPU ops and every schema are in fasttrace._C; the CUDA ones in fasttrace._C_cuda, which is built only
    where nvcc is there and torch has CUDA.
    """
    kind = torch.device(device).type
    if kind not in ("cpu", "cuda"):
        return f"the compiled ops run on CPU and CUDA tensors and these are on {kind}"
    if (why := _import_problem("fasttrace._C")) is not None or kind == "cpu":
        return why
    return _import_problem("fasttrace._C_cuda")


def row_op_problem(*tensors: torch.Tensor) -> str | None:
    """Why the compiled CPU ops on rows cannot take these tensors, or None where they can."""
    first = tensors[0]
    if first.device.type != "cpu":
        return f"the compiled kernel is the CPU's and these are on {first.device}"
    if (why := problem()) is not None:
        return why
    if first.dtype not in (torch.float32, torch.bfloat16):
        return f"the compiled kernel takes float32 and bfloat16 and these are {first.dtype}"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "the compiled kernel has no gradient and one is asked for"
    return None


def refuse_gradients(op: str, **tensors: torch.Tensor) -> None:
    """Raises UserError, naming the argument, where autograd would need a gradient that `op` does not have."""
    if torch.is_grad_enabled():
        for name, tensor in tensors.items():
            if tensor.requires_grad:
                why = "requires grad and this op has no gradient"
                raise UserError(f"{op}: {name} {why}, torch.no_grad() was wanted")
