"""What is timed: an op's arguments at some sizes, other ways to compute the same, and the least work it takes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Way = Callable[..., object]


@dataclass(frozen=True)
class Load:
    """One op at one shape.

    op: the public function, which takes `impl`. args: its positional arguments.
    definition: plain torch for torch.compile, or None where it cannot be compiled.
    rivals: library calls that compute the same. yardsticks: calls that do less or other work, for scale only.
    gigabyte: the least that must be read and written (10⁹ bytes). gigaflop: 10⁹ operations, multiply and add one each.
    grad: whether gradients are computed, which excludes inference mode.
    """

    op: Way
    args: tuple[object, ...]
    definition: Way | None
    rivals: Mapping[str, Way] = field(default_factory=dict)
    yardsticks: Mapping[str, Way] = field(default_factory=dict)
    gigabyte: float = 0.0
    gigaflop: float = 0.0
    grad: bool = False


@dataclass(frozen=True)
class Draw:
    """Draws arguments of a dtype on a device, the same for the same seed. On "meta" they have only shapes."""

    dtype: torch.dtype
    device: torch.device
    generator: torch.Generator | None

    @classmethod
    def on(cls, dtype: torch.dtype, device: str | torch.device, seed: int = 0) -> "Draw":
        """A Draw with its own generator on the device."""
        where = torch.device(device)
        generator = None if where.type == "meta" else torch.Generator(where).manual_seed(seed)
        return cls(dtype, where, generator)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Standard normal values."""
        drawn = torch.randn(*shape, generator=self.generator, device=self.device)
        return drawn.to(dtype or self.dtype)

    def below(self, high: int, n: int) -> Tensor:
        """(n,) int64 from 0 … high − 1."""
        return torch.randint(0, high, (n,), generator=self.generator, device=self.device)

    def arange(self, n: int) -> Tensor:
        """(n,) int64."""
        return torch.arange(n, device=self.device)


def traffic(*tensors: Tensor) -> float:
    """Gigabytes (10⁹ bytes) of the tensors, each read or written once."""
    return sum(x.numel() * x.element_size() for x in tensors) / 1e9


def gradient(function: Way, upstream: Tensor | None = None) -> Way:
    """The gradient of a differentiable function with respect to its first argument, which requires grad."""

    def backward(x: Tensor, *rest: object, **options: object) -> Tensor:
        y = function(x, *rest, **options)
        assert isinstance(y, Tensor)
        given = torch.ones_like(y) if upstream is None else upstream
        return torch.autograd.grad(y, x, given)[0]

    return backward
