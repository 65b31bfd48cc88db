"""Second moments in the files of the released code: one .npz of each layer, read, checked and written.

kmeng01/rome, MEMIT, EasyEdit and AlphaEdit share the layout. `<folder>/<model>/<data set>_stats/` has a file of each
layer, `<module>_<precision>_mom2_<sample size>.npz`, for example
`data/stats/gpt2-xl/wikipedia_stats/transformer.h.17.mlp.c_proj_float32_mom2_100000.npz`. Its arrays:

- `mom2.mom2`: (m, m), the sum Σ k kᵀ (not the mean), in the precision of the file's name.
- `mom2.count`: N, the number of tokens summed over, a whole number.
- `mom2.constructor`: a text, which is not read.
- `sample_size`: number of texts that the tokens are of. The released reader compares it with what it asks for.

Files that fasttrace writes also have the texts `fasttrace.model`, the model's hash, and `fasttrace.corpus`. No array is
of pickled objects, and none is unpickled.
"""

import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fasttrace.errors import UserError, shown
from fasttrace.models.adapter import Decoder
from fasttrace.places import replacing

# A name as the released code makes it. Its "_t{batch_tokens}" is a slip that is in file names as it stands.
NAME = re.compile(
    r"(?P<module>.+)_(?:b?float16|float32|float64)_(?:\w+-)*mom2(?:-\w+)*(?:_t(?:\{batch_tokens\}|\d+))?(?:_\d+)?\.npz"
)
SUM, COUNT, OF_MODEL = "mom2.mom2", "mom2.count", "fasttrace.model"
MOST_COUNT = 2**53  # a float64 has every whole number up to it
# Relative to the diagonal: float32 sums of millions of tokens, with products in TF32, differ by less.
SLACK = 1e-3
ROWS = 1024  # rows of a matrix that are checked at once


@dataclass(frozen=True)
class KeySum:
    """A layer's file, whose names and shapes are checked. n_tokens: N."""

    path: Path
    layer: int
    n_tokens: int

    def digest(self) -> str:
        """SHA-256, in hex, of the sum and the count. Raises UserError where the file is damaged."""
        found = hashlib.sha256()
        with _opened(self.path) as archive:
            for name in (COUNT, SUM):
                with archive.open(f"{name}.npy") as member:
                    while piece := member.read(1 << 20):
                        found.update(piece)
        return found.hexdigest()

    def mean(self) -> Tensor:
        """C = Σ k kᵀ / N, (m, m) float32 on the CPU, symmetric. It is computed in float64 and rounded once.

        A sum that is not symmetric to the last bit is replaced by the mean of itself and its transpose.

        Raises UserError where the sum is not that of outer products: it has NaN or infinity, a negative or only zeros
        on its diagonal, or entries that differ from their mirror images, or exceed √(S_ii S_jj), by more than a
        thousandth of that.
        """
        with _opened(self.path) as archive:
            S = torch.from_numpy(_array(archive, SUM))
        fault = _where(self.path)
        scale = S.diagonal().double()
        if not bool(torch.isfinite(S).all()):
            raise UserError(f"{fault}: expected finite numbers, got NaN or infinity")
        if bool((scale < 0).any()) or not bool(scale.any()):
            raise UserError(f"{fault}: expected a positive diagonal, got {float(scale.min()):.4g} on it")
        scale = scale.sqrt()
        C = torch.empty(S.shape, dtype=torch.float32)
        for begin in range(0, len(S), ROWS):
            rows = slice(begin, begin + ROWS)
            part, mirror = S[rows].double(), S[:, rows].T.double()
            bound = scale[rows, None] * scale
            if bool(((part - mirror).abs() > SLACK * bound).any()):
                raise UserError(f"{fault}: expected a symmetric matrix, got one with other numbers below the diagonal")
            if bool((part.abs() > (1 + SLACK) * bound).any()):
                raise UserError(f"{fault}: expected a sum of k kᵀ, got entries larger than its diagonal allows")
            C[rows] = ((part + mirror) / (2 * self.n_tokens)).float()
        return C


def is_key_sums(source: Path) -> bool:
    """Whether a path is second moments, rather than a text: an .npz file, or a folder that has some and no .txt file.

    Raises UserError for a folder that has both.
    """
    if not source.is_dir():
        return source.suffix == ".npz"
    if not any(source.rglob("*.npz")):
        return False
    if any(source.glob("*.txt")):
        raise UserError(f"folder '{source}': expected texts (.txt) or second moments (.npz), got both")
    return True


def check_key_sums(source: str | Path) -> None:
    """Raise UserError where a path is neither an .npz file nor a folder that has some, before a model is loaded."""
    path = Path(source).expanduser()
    if not path.exists() or not is_key_sums(path):
        files = sorted(path.rglob("*.npz")) if path.is_dir() else [path]
        raise UserError(f"{_where(path)}: expected an .npz file or a folder of them, got {_other(path, files)}")


def key_sums(source: Path, model: Decoder) -> dict[int, KeySum]:
    """{layer: its file}, ascending, of a file or of a folder and its subfolders, whose other files are ignored.

    Only names and shapes are read. Raises UserError where there is no file of second moments, or it cannot be read, or
    is not of this model: another module, width or model hash. Also for two files of one layer.
    """
    dense = [layer for layer, block in enumerate(model.blocks) if block.experts is None]
    if not dense:
        raise UserError(f"{_where(source)}: expected a model with dense layers, got '{model.name}' with experts in all")
    files = sorted(source.rglob("*.npz")) if source.is_dir() else [source]
    named = [(path, match["module"]) for path in files if (match := NAME.fullmatch(path.name)) is not None]
    if not named:
        example = f"{model.down_name(dense[0])}_float32_mom2_100000.npz"
        raise UserError(f"{_where(source)}: expected a file named as in '{example}', got {_other(source, files)}")
    layers = {model.down_name(layer): layer for layer in dense}
    found: dict[int, KeySum] = {}
    for path, module in named:
        if module not in layers:
            first, *_, last = layers
            expected = f"a module of '{model.name}', from '{first}' to '{last}'"
            raise UserError(f"{_where(path)}: expected {expected}, got '{module}'")
        one = KeySum(path, layers[module], _count(path, model, model.blocks[layers[module]].key_width))
        if one.layer in found:
            twice = f"'{found[one.layer].path.name}' and '{path.name}'"
            raise UserError(f"{_where(source)}: expected one file of layer {one.layer}, got {twice}: name one file")
        found[one.layer] = one
    return dict(sorted(found.items()))


def write_key_sum(path: Path, C: Tensor, n_tokens: int, sample_size: int, about: dict[str, str]) -> None:
    """Write a layer's C, (m, m) float32, as the float32 sum over n_tokens. about: {name: text}, after "fasttrace.".

    Raises UserError where the sum is beyond float32's range, and where the file cannot be written.
    """
    total = (C.double() * n_tokens).float()
    if not bool(torch.isfinite(total).all()):
        raise UserError(f"'{path}' cannot be written: the sum over {n_tokens} tokens is too large for float32")
    arrays: dict[str, Any] = {
        "mom2.constructor": np.array("util.runningstats.SecondMoment()"),
        COUNT: np.array(n_tokens, dtype=np.int64),
        SUM: total.numpy(),
        "sample_size": np.array(sample_size, dtype=np.int64),
        **{f"fasttrace.{name}": np.array(text) for name, text in about.items()},
    }
    with replacing(path) as draft:
        np.savez(draft, **arrays)


def _where(path: Path) -> str:
    return f"second moments '{path}'"


def _other(source: Path, files: list[Path]) -> str:
    if not source.is_dir():
        return f"'{source.name}'" if source.exists() else "no such file"
    return f"{len(files)} other .npz files" if files else "a folder without an .npz file"


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The file as an archive of arrays. Raises UserError where it cannot be read, also for errors in the block."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        first = (said or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{_where(path)}: expected a complete .npz file, got one that cannot be read ({first})"
        ) from error


def _count(path: Path, model: Decoder, m: int) -> int:
    """N, after checking the arrays' names, shapes and dtypes, and the model's hash where the file has it. m: the width
    of the keys."""
    what = _where(path)
    with _opened(path) as archive:
        names = set(archive.namelist())
        for name in (SUM, COUNT):
            if f"{name}.npy" not in names:
                raise UserError(f"{what}: expected the array '{name}', got none")
        shape, dtype = _header(archive, SUM)
        if dtype.hasobject:
            raise UserError(f"{what}: expected numbers in '{SUM}', got pickled objects, which are not loaded")
        if shape != (m, m) or dtype.kind != "f" or dtype.itemsize > 8:
            expected = f"({m}, {m}) floating-point numbers in '{SUM}', as the keys of '{model.name}' have width {m}"
            raise UserError(f"{what}: expected {expected}, got {shape} of {dtype}")
        shape, dtype = _header(archive, COUNT)
        if shape not in ((), (1,)) or dtype.kind not in "iuf":
            raise UserError(f"{what}: expected a whole number as '{COUNT}', got {shape} of {dtype}")
        count = float(_array(archive, COUNT).reshape(()))
        if not (count.is_integer() and 0 < count <= MOST_COUNT):
            raise UserError(f"{what}: expected a positive number of tokens as '{COUNT}', got {count:g}")
        if f"{OF_MODEL}.npy" in names and (of := str(_array(archive, OF_MODEL))) != model.model_hash:
            expected = f"those of '{model.name}' (hash {model.model_hash})"
            raise UserError(f"{what}: expected {expected}, got those of another with hash {shown(of)}")
    return int(count)


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an array, which is not read."""
    with archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
    return shape, dtype


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as member:
        found = np.lib.format.read_array(member, allow_pickle=False)
    native: np.ndarray = np.asarray(found, dtype=found.dtype.newbyteorder("="), order="C")
    return native
