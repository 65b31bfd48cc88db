"""Gradients whatever mode of torch the caller is in."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def with_autograd(function: Callable[P, R]) -> Callable[P, R]:
    """The function or generator, with gradients on also under the caller's `torch.no_grad` or `inference_mode`."""
    return torch.inference_mode(False)(torch.enable_grad()(function))
