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


def refuse_gradients(op: str, **tensors: torch.Tensor) -> None:
    """Raises UserError, naming the argument, where autograd would need a gradient that `op` does not have."""
    if torch.is_grad_enabled():
        for name, tensor in tensors.items():
            if tensor.requires_grad:
                why = "requires grad and this op has no gradient"
                raise UserError(f"{op}: {name} {why}, torch.no_grad() was wanted")
