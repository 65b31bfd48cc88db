"""Which implementation of an op runs: one rule for every op."""

import functools
import importlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad as fwAD

from fasttrace.errors import UserError, did_you_mean

IMPLEMENTATIONS = ("auto", "reference", "triton", "native", "onednn")
log = logging.getLogger("fasttrace.ops")
_announced: set[tuple[str, str, str]] = set()


@functools.cache
def triton_reason() -> str | None:
    """Why Triton cannot be imported in this process, or None where it can."""
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"Triton cannot be imported here ({error})"
    return None


def _triton_interprets() -> bool:
    """Whether Triton runs its kernels in its own CPU interpreter (its TRITON_INTERPRET=1)."""
    return bool(importlib.import_module("triton").knobs.runtime.interpret)


def _unusable_reason(impl: str, available: Collection[str], device: torch.device) -> str | None:
    """Why `impl` cannot run on `device`, or None where it can."""
    if impl not in available:
        return "this op has no such implementation here"
    if isinstance(available, Mapping) and available[impl] is not None:
        return str(available[impl])
    if impl == "triton":
        if (reason := triton_reason()) is not None:
            return reason
        if device.type != "cuda" and not _triton_interprets():
            return f"Triton needs CUDA tensors, these are on {device}"
    return None


def choose(
    op: str,
    impl: str,
    available: Collection[str] | Mapping[str, str | None],
    *tensors: torch.Tensor | None,
    worthwhile: Callable[[str], bool] = lambda name: True,
) -> str:
    """The implementation of `op` to run: "reference", "triton", "native" or "onednn".

    op: the op's name, for messages.
    impl: "auto" prefers Triton for CUDA tensors if it can be imported, then native and oneDNN if `available` has them,
        then the reference. It logs its choice once per op and device (logger "fasttrace.ops", INFO).
        Any other name is used as given or refused: there is no fallback.
    available: the implementations this op has here. As a mapping: name -> the reason it cannot be used, or None.
    tensors: the op's tensors, which must share one device; None is ignored.
    worthwhile: whether "auto" should take an implementation that can run, for an op whose fastest implementation
        differs from processor to processor. It is called only for implementations that can run.

    Raises UserError for an unknown name, an implementation that cannot run here, and tensors on several devices.
    """
    if impl not in IMPLEMENTATIONS:
        hint = did_you_mean(impl, IMPLEMENTATIONS)
        raise UserError(f"{op}: expected impl to be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}{hint}")
    devices = {tensor.device for tensor in tensors if tensor is not None}
    if len(devices) != 1:
        found = ", ".join(sorted(map(str, devices))) or "none"
        raise UserError(f"{op}: expected all tensors on one device, got {len(devices)} devices ({found})")
    device = devices.pop()

    if impl != "auto":
        if (reason := _unusable_reason(impl, available, device)) is not None:
            usable = (name for name in IMPLEMENTATIONS[1:] if _unusable_reason(name, available, device) is None)
            possible = ", ".join(usable) or "none"
            raise UserError(f"{op}: impl={impl!r} was asked for, but {reason}; possible: {possible}")
        return impl

    order = ("triton", "native", "reference") if device.type == "cuda" else ("native", "onednn", "reference")
    for name in order:
        if _unusable_reason(name, available, device) is None and worthwhile(name):
            _announce(op, device.type, name)
            return name
    found = ", ".join(available) or "none"
    raise UserError(f"{op}: no implementation can run on {device}; available: {found}")


def _announce(op: str, kind: str, name: str) -> None:
    # torch.compile has no place for a log in its graph.
    if not torch.compiler.is_compiling() and (op, kind, name) not in _announced:
        _announced.add((op, kind, name))
        log.info("%s on %s: impl='auto' takes '%s'", op, kind, name)


def transformed_reason() -> str | None:
    """Why only torch's own operations can run now, or None: forward gradients and torch.func see no others."""
    if fwAD._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None:
        return "forward gradients and torch.func need the reference"
    return None


def wrapped_reason(x: torch.Tensor) -> str | None:
    """Why an autograd.Function cannot read the memory of x, or None: fake and wrapped tensors have none."""
    if type(x) not in (torch.Tensor, torch.nn.Parameter) or torch.compiler.is_compiling():
        return "x is not a plain tensor"
    return None


def records(*tensors: torch.Tensor) -> bool:
    """Whether autograd records what is computed from these tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def reference_gradient(
    reference: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], grad: torch.Tensor
) -> tuple[torch.Tensor | None, ...]:
    """The gradient of reference(*inputs) w.r.t. each input, itself differentiable; None where none is required."""
    wanted = [x for x in inputs if x.requires_grad]
    found = iter(torch.autograd.grad(reference(*inputs), wanted, grad, create_graph=True))
    return tuple(next(found) if x.requires_grad else None for x in inputs)


def narrow_triton_reason(*tensors: torch.Tensor) -> str | None:
    """Why a Triton kernel that computes in float32 and has no gradient cannot take these tensors, or None."""
    if tensors[0].dtype == torch.float64:
        return "Triton's kernel computes in float32, these are float64"
    if records(*tensors):
        return "Triton's kernel has no gradient, and one is required"
    return None


def triton_launcher(op: str) -> Callable[..., Any]:
    """`<op>_triton` of fasttrace.kernels.<op>. It is imported only now, so that CPU users never load Triton."""
    launcher: Callable[..., Any] = getattr(importlib.import_module(f"fasttrace.kernels.{op}"), f"{op}_triton")
    return launcher


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy the array to a device. A copy to a GPU goes through pinned memory, so that the host does not wait for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def download(tensor: torch.Tensor) -> Callable[[], np.ndarray]:
    """Return a function that waits for the tensor and returns it as an array. A copy from a GPU is queued at once,
    ahead of later work."""
    if tensor.device.type != "cuda":
        return tensor.cpu().numpy
    copied = torch.cuda.Event()
    with torch.cuda.device(tensor.device):  # the event is recorded on the current GPU's stream
        copy = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
        copied.record()

    def wait() -> np.ndarray:
        copied.synchronize()
        return copy.numpy()

    return wait
