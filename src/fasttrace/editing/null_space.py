"""The null space of a layer's preserved keys (AlphaEdit): computed from second moments, or read from a file."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fasttrace.errors import UserError
from fasttrace.models.adapter import Decoder

# Bounds of `load_projection`: of |P − Pᵀ|, whose entries are at most 1, and of ‖PP − P‖ / ‖P‖ (Frobenius). P = U Uᵀ
# from a float32 decomposition reaches 3e-6 at m = 3072. With its product in TF32, it reaches 8e-4.
ASYMMETRY = 1e-3
IDEMPOTENCE = 1e-3
PROBES = 64  # random vectors that estimate ‖PP − P‖, to about a tenth


def null_space(C: Tensor, threshold: float, of: Literal["absolute", "trace"] = "absolute") -> Tensor:
    """U₀, the eigenvectors of C whose eigenvalue is below the threshold: (m, r) float64 with r ≥ 1.

    The columns are orthonormal, in ascending order of their eigenvalues, on C's device. P = U₀U₀ᵀ projects a row of an
    update onto the directions that the keys behind C hardly use.

    C: (m, m) of any float dtype, symmetric. The lower triangle is read.
    threshold: bound of an eigenvalue, which is not included.
    of: what the bound is. "absolute": the threshold itself, as in the released code (2e-2 for Llama-3 and GPT-J), so it
        depends on the scale of the keys. "trace": the threshold times trace(C), the sum of all eigenvalues.

    Raises UserError where C is not a square matrix of finite numbers, and where no eigenvalue is below the bound.
    Source: Fang et al. 2024 (arXiv 2410.02355), section 3.2; `get_project` in the released code.
    """
    if C.ndim != 2 or C.shape[0] != C.shape[1]:
        raise UserError(f"null_space: C: expected a square matrix, got shape {tuple(C.shape)}")
    if not bool(torch.isfinite(C).all()):
        raise UserError("null_space: C: expected finite numbers, got NaN or infinity")
    values, vectors = torch.linalg.eigh(C.double())
    bound = threshold if of == "absolute" else threshold * float(values.sum())
    below = values < bound
    if not bool(below.any()):
        share = "" if of == "absolute" else f" ({threshold:g} of the trace)"
        raise UserError(
            f"null_space: expected an eigenvalue of C below {bound:.4g}{share}, got none: the least is "
            f"{float(values[0]):.4g}, so use a larger threshold"
        )
    return vectors[:, below].contiguous()


def has_null_space(C: Tensor, threshold: float, of: Literal["absolute", "trace"] = "absolute") -> bool:
    """Whether C has an eigenvalue below the threshold, without computing any: whether C − threshold · I has no Cholesky
    factor. Arguments as in `null_space`."""
    shifted = C.double().clone()
    shifted.diagonal().sub_(threshold if of == "absolute" else threshold * float(shifted.trace()))
    return bool(torch.linalg.cholesky_ex(shifted).info)


def load_projection(path: str | Path, model: Decoder, layers: Sequence[int]) -> Tensor:
    """The projections P onto the null space of each layer, as AlphaEdit publishes them: (n, m, m) on the CPU.

    The file is AlphaEdit's `null_space_project.pt`, one tensor (n, m, m) of float32 or float64 that `torch.save` wrote,
    or a .safetensors file with one such tensor. It is loaded without unpickling any object. It does not say which
    layers it is for: P[i] is taken for layers[i]. The tensor keeps its dtype.

    Every P is checked: finite, not zero, max |P − Pᵀ| ≤ 1e-3, and ‖PP − P‖ ≤ 1e-3 ‖P‖ (Frobenius). ‖PP − P‖ is
    estimated in float64, from PPx − Px of 64 seeded random vectors x.

    Raises UserError where the file is missing, incomplete or of another kind, where the tensor is not (number of
    layers, m, m) for keys of the model's width m, where the model lacks a layer, and where a P fails a check.
    """
    what = f"null-space projection '{path}'"
    if outside := [layer for layer in layers if not 0 <= layer < model.n_layers]:
        raise UserError(f"{what}: expected layers from 0 to {model.n_layers - 1}, got {outside[0]}")
    stored = _only_tensor(Path(path).expanduser(), what)
    if stored.dtype not in (torch.float32, torch.float64):
        raise UserError(f"{what}: expected float32 or float64, got {str(stored.dtype).removeprefix('torch.')}")
    n, m = len(layers), model.key_width
    if stored.shape != (n, m, m):
        wanted = f"a tensor ({n}, {m}, {m}), a projection of '{model.name}' for each of {n} layers"
        raise UserError(f"{what}: expected {wanted}, got one of shape {tuple(stored.shape)}")
    # A copy, because the file is mapped: a later change of the file would change the tensor.
    projections = stored.clone(memory_format=torch.contiguous_format)
    for layer, P in zip(layers, projections, strict=True):
        if (fault := _fault(P.double())) is not None:
            raise UserError(f"{what}, layer {layer}: expected {fault}")
    return projections


def _only_tensor(path: Path, what: str) -> Tensor:
    """The one tensor of a .safetensors or .pt file."""
    if not path.is_file():
        raise UserError(f"{what}: expected a .pt or .safetensors file, got {'a folder' if path.is_dir() else 'none'}")
    is_safetensors = path.suffix == ".safetensors"
    if not is_safetensors and not zipfile.is_zipfile(path):
        raise UserError(f"{what}: expected a complete file of torch.save or a .safetensors file, got another")
    found: Any
    try:
        if is_safetensors:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                found = file.get_tensor(names[0]) if len(names) == 1 else f"{len(names)} tensors"
        else:
            found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except UnpicklingError:  # its text has several lines
        raise UserError(f"{what}: expected one tensor, got a file with other objects, which are not loaded") from None
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{what}: expected a complete file, got one that cannot be read ({first})") from None
    except Exception:  # whatever a malformed pickle makes of its stack
        raise UserError(f"{what}: expected one tensor, got a file whose pickle is damaged") from None
    if not isinstance(found, Tensor):
        raise UserError(f"{what}: expected one tensor, got {found if isinstance(found, str) else type(found).__name__}")
    if found.layout != torch.strided:
        raise UserError(f"{what}: expected a dense tensor, got a sparse one")
    if found.is_meta:
        raise UserError(f"{what}: expected a tensor with its numbers, got one without (of the device meta)")
    return found.detach()


def _fault(P: Tensor) -> str | None:
    """What a projection was expected to be and is not, or None. P: (m, m) float64."""
    if not bool(torch.isfinite(P).all()):
        return "finite numbers, got NaN or infinity"
    if not bool(P.any()):
        return "a projection, got zero: the null space is empty"
    if (off := float((P - P.T).abs().max())) > ASYMMETRY:
        return f"a symmetric matrix (to {ASYMMETRY:g}), got an entry that differs by {off:.3g} from its mirror image"
    x = torch.randn(len(P), PROBES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    once = P @ x
    off = float((P @ once - once).norm()) / PROBES**0.5 / float(P.norm())
    if off > IDEMPOTENCE:
        return f"a projection, ‖PP − P‖ ≤ {IDEMPOTENCE:g} ‖P‖, got {off:.3g} ‖P‖"
    return None
