"""Second moments of the keys, C = Σ k kᵀ / N, as files on disk, and solves with them.

The folder `<cache>/moments/<key>/` has a file `layer-00005.safetensors` for each layer that is done. <key> is a hash of
everything that C depends on. `collect` computes the files from a corpus, or imports them.
"""

import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from fasttrace.cache import load_tensors, metadata_of
from fasttrace.editing.moments_npz import write_key_sum
from fasttrace.editing.null_space import has_null_space, null_space
from fasttrace.errors import UserError
from fasttrace.models.adapter import Decoder, Model
from fasttrace.models.experts import SHARED
from fasttrace.places import check_folder
from fasttrace.runs import Run
from fasttrace.settings.arguments import checked
from fasttrace.show.words import count, title_of

FACTOR_BYTES = 2 << 30  # Cholesky factors kept in memory; or a quarter of the free memory, if more; at least one
SAMPLE_SIZE = 100_000  # of the published files, and in the names of exported ones


class Place(NamedTuple):
    """A down-projection: a layer's, or that of one of a layer's experts (`models.experts.SHARED` is the shared one)."""

    layer: int
    expert: int | None = None

    @property
    def name(self) -> str:
        """As in 5, 5.3 and 5.shared."""
        expert = {None: "", SHARED: ".shared"}.get(self.expert, f".{self.expert}")
        return f"{self.layer}{expert}"

    @classmethod
    def named(cls, name: str) -> "Place":
        """The place of a `name`."""
        layer, _, expert = name.partition(".")
        return cls(int(layer), SHARED if expert == "shared" else int(expert) if expert else None)

    def __str__(self) -> str:
        of = {None: "", SHARED: "the shared expert of "}.get(self.expert, f"expert {self.expert} of ")
        return f"{of}layer {self.layer}"


def width_of(model: Decoder, place: Place) -> int:
    """m, the width of the keys of a down-projection."""
    return model.blocks[place.layer].down_shape_of(() if place.expert is None else (place.expert,))[1]


def sum_bytes(model: Decoder, place: Place, itemsize: int) -> int:
    """Bytes of the running sums of a down-projection where the model is: those of a lane (`editing.lanes`), and on a
    CPU the total too. itemsize: bytes of a number."""
    return width_of(model, place) ** 2 * itemsize * (2 if model.device.type == "cpu" else 1)


def places_of(layers: Iterable[int], experts: Mapping[int, Sequence[int]]) -> list[Place]:
    """The down-projections of some layers, ascending. experts: layer → its experts, at layers that have any."""
    found: list[Place] = []
    for layer in sorted(layers):
        of = sorted(experts.get(layer, ()))
        found += [Place(layer, expert) for expert in of] if of else [Place(layer)]
    return found


@dataclass(eq=False)
class Moments:
    """Second moments of a model's keys, on disk. The store's `moments` row is made from these fields.

    run: the `runs` row (kind "moments"). key: hash of everything that C depends on, except the layer. corpus,
    corpus_hash: description and hash of the corpus. n_tokens: N, the tokens used. requested_tokens: the tokens asked
    for, more than N where the corpus was too short. layers: ascending, 0-based. path: the folder. ridge: added to C's
    diagonal by `inverse_key`, as a multiple of the diagonal's mean. source: the path of the corpus or of the imported
    files as given, or None for sampled text. experts: layer with experts → those that were collected, ascending.

    At a layer with experts, C is block-diagonal, with a block Σ κ κᵀ / N of each expert. κ are its weighted keys
    (`models.keys.Keys`), and N counts all tokens, also those that do not go to it.
    """

    run: Run
    key: str
    model_hash: str
    corpus: str
    corpus_hash: str
    n_tokens: int
    requested_tokens: int
    layers: list[int]
    path: Path
    ridge: float = 0.0
    source: str | None = None
    experts: Mapping[int, list[int]] = field(default_factory=dict)
    _factors: OrderedDict[tuple[Place, float], "_Factor"] = field(default_factory=OrderedDict, repr=False)
    _null_spaces: OrderedDict[tuple[Place, float, str], Tensor] = field(default_factory=OrderedDict, repr=False)
    _conditions: dict[tuple[int, tuple[int, ...], float], float] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        model, layers = title_of(self.run["model"]), count(len(self.layers), "layer")
        return f"Moments: {layers} of {model}, {count(self.n_tokens, 'token')} of {self.corpus}, {self.path}"

    def __getstate__(self) -> dict[str, Any]:
        """Without what was computed from the files, which is as large as C and is computed again."""
        return {**self.__dict__, "_factors": OrderedDict(), "_null_spaces": OrderedDict()}

    def check(self, model: Decoder, layers: Sequence[int], experts: Mapping[int, Sequence[int]] | None = None) -> None:
        """Raise UserError where the moments are of another model or lack one of the layers or of their experts.

        experts: layer → those that are needed, at layers that have any.
        """
        if self.model_hash != model.model_hash:
            raise UserError(
                f"moments: expected second moments of '{model.name}' (hash {model.model_hash}), "
                f"got those of a model with hash {self.model_hash}"
            )
        missing = [layer for layer in layers if layer not in self.layers]
        if missing:
            have, wanted = (", ".join(map(str, some)) for some in (self.layers, missing))
            raise UserError(f"moments: expected second moments of layers {wanted} too, got only those of layers {have}")
        for layer, wanted_there in (experts or {}).items():
            if lost := sorted(set(wanted_there) - set(self.experts.get(layer, ()))):
                have, wanted = (
                    ", ".join("shared" if one == SHARED else str(one) for one in some) or "none"
                    for some in (self.experts.get(layer, ()), lost)
                )
                raise UserError(
                    f"moments: expected those of experts {wanted} of layer {layer} too, got those of {have}"
                )

    def matrix(self, layer: int, expert: int | None = None) -> Tensor:
        """C of a layer, without the ridge: (m, m) float32 on the CPU, symmetric. Every call reads it from disk.

        expert: whose block of C, at a layer with experts; −1 is the shared one.

        Raises UserError for a layer or expert that was not collected, and where the file is missing or damaged.
        """
        if layer not in self.layers:
            have = ", ".join(map(str, self.layers))
            raise UserError(f"moments: expected one of the collected layers {have}, got {layer}")
        if expert not in self.experts.get(layer, (None,)):
            have = ", ".join(map(str, self.experts.get(layer, ()))) or "none"
            raise UserError(f"moments: expected one of the experts of layer {layer} that were collected ({have}), got "
                            f"{expert}")  # fmt: skip
        tensors, _ = load_tensors(layer_file(self.path, layer, expert))
        return tensors["C"]

    def routed(self, layer: int, expert: int | None = None) -> int:
        """How many of the tokens go to an expert, or to the layer."""
        note = metadata_of(layer_file(self.path, layer, expert)) or {}
        return int(note.get("routed", self.n_tokens))

    @checked
    def export(self, folder: str | Path, model: Model) -> list[Path]:
        """Write every layer as an .npz file that the released code reads (`moments_npz`), and return the paths.

        The files are in `<folder>/<model>/wikipedia_stats/`, with "/" in the model's name as "_". Their names and
        `sample_size` say 100000 samples of Wikipedia, whatever the corpus is, because that is what the released code
        looks for. `mom2.count` is the number of tokens, and `fasttrace.corpus` is `corpus`. A file that exists is
        replaced. Each is written atomically.

        model: the model of these moments, which knows the names of its modules.
        Raises UserError where the moments are of another model, or a file cannot be read or written.
        """
        self.check(model, self.layers)
        if self.experts:
            raise UserError(
                f"moments: expected layers with one down-projection each for files of the released code, got layer "
                f"{min(self.experts)} with experts"
            )
        into = self.export_folder(folder, model)
        check_folder(into)
        into.mkdir(parents=True, exist_ok=True)
        paths = []
        for layer in self.layers:
            tensors, note = load_tensors(layer_file(self.path, layer))
            paths.append(into / f"{model.down_name(layer)}_float32_mom2_{SAMPLE_SIZE}.npz")
            about = {"model": self.model_hash, "corpus": self.corpus}
            write_key_sum(paths[-1], tensors["C"], int(note["n_tokens"]), SAMPLE_SIZE, about)
        return paths

    @staticmethod
    def export_folder(folder: str | Path, model: Decoder) -> Path:
        """The folder under `folder` that `export` writes to."""
        return Path(folder).expanduser() / model.name.strip("/").replace("/", "_") / "wikipedia_stats"

    def inverse_key(
        self,
        layer: int,
        keys: Tensor,
        *,
        experts: Sequence[int] = (),
        added: float = 0.0,
        extra: Tensor | None = None,
    ) -> Tensor:
        """(C + ridge · mean(diag C) · I)⁻¹ k for every row k of keys (n, m), any float dtype: (n, m) float64.

        experts: those whose weighted keys (n, S·m) these are, one after another, at a layer with experts. Each block of
        C has its own ridge. added: a further number on C's diagonal. extra: (m, m) float64 to add to the C of a dense
        layer, whose factor is not kept.

        The solve uses a float64 Cholesky factor, which is kept for later calls. It is on the keys' GPU if that has
        ample free memory, else on the CPU. The diagonal is scaled to 1 first, because each entry of C is as exact as
        float32 relative to its own row and column.

        Raises UserError where C is singular to that precision, for example with fewer tokens than m or a unit that
        never fires.
        Source: Meng et al. 2022 (arXiv 2202.05262), equation 2; docs/algorithms.md, section 13, u = C⁻¹k*.
        """
        if experts:
            parts = zip(experts, keys.chunk(len(experts), dim=1), strict=True)
            return torch.cat([self._inverse_key(Place(layer, expert), one, added) for expert, one in parts], dim=1)
        return self._inverse_key(Place(layer), keys, added, extra)

    def _inverse_key(self, place: Place, keys: Tensor, added: float, extra: Tensor | None = None) -> Tensor:
        found = (
            self._factor(place, keys.device, added) if extra is None else self._made(place, keys.device, added, extra)
        )
        scale, m = found.scale, len(found.scale)
        if keys.ndim != 2 or keys.shape[1] != m:
            raise UserError(f"inverse_key: expected keys (n, {m}), got {tuple(keys.shape)}")
        right = keys.detach().to(scale.device, torch.float64) * scale
        return (torch.cholesky_solve(right.T, found.lower).T * scale).contiguous().to(keys.device)

    def condition(
        self, layer: int, device: torch.device | str = "cpu", *, experts: Sequence[int] = (), added: float = 0.0
    ) -> float:
        """Condition number of the matrix that `inverse_key` solves with: C plus the ridge and `added`, its diagonal
        scaled to 1.

        device: where the factor is computed if it is not kept, as in `inverse_key` for keys on this device.
        """
        which = layer, tuple(experts), added
        if which not in self._conditions:
            found = [self._factor(one, torch.device(device), added) for one in places_of([layer], {layer: experts})]
            largest = max(largest_eigenvalue(one.lower) for one in found)
            self._conditions[which] = largest / min(one.least for one in found)
        return self._conditions[which]

    def null_space(
        self, place: Place, threshold: float, unit: Literal["absolute", "trace"], device: torch.device
    ) -> Tensor:
        """(m, r) float64, `editing.null_space.null_space` of C without the ridge. It is kept as the factors are.

        device: where it is computed, as in `inverse_key`. Raises UserError where no eigenvalue is below the threshold.
        """
        which = place, threshold, unit
        if which not in self._null_spaces:
            C = self.matrix(*place)
            C = C.to(_roomy(device, len(C)))
            try:
                basis = null_space(C, threshold, unit)
            except UserError as error:
                raise UserError(f"alphaedit: null_threshold: {place}: {error}") from None
            _keep(self._null_spaces, which, basis, len(C) ** 2 * 8, C.device)
        self._null_spaces.move_to_end(which)
        return self._null_spaces[which]

    def check_null_space(
        self, place: Place, threshold: float, unit: Literal["absolute", "trace"], device: torch.device
    ) -> None:
        """Raise UserError where `null_space` would, at the cost of one Cholesky factor."""
        C = self.matrix(*place)
        if not has_null_space(C.to(_roomy(device, len(C))), threshold, unit):
            self.null_space(place, threshold, unit, device)

    def _factor(self, place: Place, device: torch.device, added: float = 0.0) -> "_Factor":
        """The factor of a layer's C, or of an expert's block of it.

        It is computed on `device` if that is a GPU with room for it. A factor that is kept is returned wherever it is.
        """
        if (place, added) not in self._factors:
            made = self._made(place, device, added)
            _keep(self._factors, (place, added), made, len(made.scale) ** 2 * 8, made.scale.device)
        self._factors.move_to_end((place, added))
        return self._factors[place, added]

    def _made(self, place: Place, device: torch.device, added: float, extra: Tensor | None = None) -> "_Factor":
        """The factor of C plus the ridge, `added` and `extra`."""
        stored = self.matrix(*place)
        m = len(stored)
        if self.ridge == 0.0 and self.routed(*place) < m and not added:
            raise self._singular(place, m)
        device = _roomy(device, m)
        C = stored.to(device).double()
        C.diagonal().add_(self.ridge * C.diagonal().mean() + added)
        if extra is not None:
            C += extra.to(device)
        scale = C.diagonal().rsqrt()
        if not bool(torch.isfinite(scale).all()):
            raise self._singular(place, m)
        lower, failed = torch.linalg.cholesky_ex(C.mul_(scale).mul_(scale[:, None]))
        least = 0.0 if int(failed) else least_eigenvalue(lower)
        # Rounding C to float32 moves the eigenvalues of the scaled matrix by about this much.
        if not least >= 2.0**-24 * m**0.5:
            raise self._singular(place, m)
        return _Factor(scale, lower, least)

    def _singular(self, place: Place, m: int) -> UserError:
        routed = None if place.expert is None else self.routed(*place)
        return singular(place, m, self.n_tokens, self.ridge, routed)


K = TypeVar("K")
V = TypeVar("V")


def _keep(kept: OrderedDict[K, V], which: K, one: V, size: int, device: torch.device) -> None:
    """Keep a matrix of `size` bytes on `device`, and drop those that were used longest ago where they take too much."""
    most = max(FACTOR_BYTES, (size * len(kept) + free_bytes(device)) // 4)
    while kept and size * (len(kept) + 1) > most:
        kept.popitem(last=False)
    kept[which] = one


def _roomy(device: torch.device, m: int) -> torch.device:
    """The device if it is a GPU with ample memory for matrices of m × m float64, else the CPU."""
    return device if device.type == "cuda" and free_bytes(device) >= 64 * m * m else torch.device("cpu")


@dataclass(frozen=True, eq=False)
class _Factor:
    """scale: (m,) 1/sqrt(diagonal) of C plus the ridge. lower: (m, m), the lower Cholesky factor of the matrix scaled
    by it on both sides. Both are float64 and on one device. least: upper estimate of that matrix's least eigenvalue."""

    scale: Tensor
    lower: Tensor
    least: float


def singular(place: Place, m: int, n_tokens: int, ridge: float, routed: int | None = None) -> UserError:
    """The error for a C that cannot be solved with. routed: how many of the tokens go to the expert, if it is one's."""
    if routed == 0:
        return UserError(
            f"the second moment C of {place} is 0, as none of the corpus's {n_tokens} tokens goes to this expert: use "
            "a larger corpus, or leave the expert out"
        )
    enough = f"{max(1e-4, 10 * ridge):g}"
    there = "" if routed is None else f", of which {routed} go there,"
    return UserError(
        f"the second moment C of {place} ({m} x {m}) is singular with {n_tokens} tokens{there} and ridge={ridge:g}: "
        f"use a larger corpus or a larger ridge, for example ridge={enough} (--ridge {enough})"
    )


def layer_file(folder: Path, layer: int, expert: int | None = None) -> Path:
    """Path of a layer's C in a folder of moments, or of the block of one of its experts."""
    of = {None: "", SHARED: "-shared"}.get(expert, f"-expert-{expert:05d}" if expert is not None else "")
    return folder / f"layer-{layer:05d}{of}.safetensors"


def free_bytes(device: torch.device) -> int:
    """Free memory of `device`, in bytes; on a GPU with what torch has reserved but does not use. Without /proc/meminfo,
    half of the CPU's memory counts as free."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            free = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(free.split()[1]) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def least_eigenvalue(factor: Tensor, rounds: int = 12) -> float:
    """Upper estimate of the smallest eigenvalue of L Lᵀ, by inverse iteration on four seeded vectors."""
    x = torch.randn(len(factor), 4, dtype=factor.dtype, generator=torch.Generator().manual_seed(0)).to(factor.device)
    size = torch.ones(4, dtype=factor.dtype)
    for _ in range(rounds):
        x = torch.cholesky_solve(x / x.norm(dim=0), factor)
        size = x.norm(dim=0)
    return float(1.0 / size.max())


def largest_eigenvalue(factor: Tensor, rounds: int = 30) -> float:
    """Lower estimate of the largest eigenvalue of L Lᵀ, by power iteration on one vector."""
    x = torch.ones(len(factor), 1, dtype=factor.dtype, device=factor.device)
    size = x.norm()
    for _ in range(rounds):
        x = factor @ (factor.T @ (x / x.norm()))
        size = x.norm()
    return float(size)
