"""Second moments of the keys, C = Σ k kᵀ / N, of every layer in one pass over a corpus, stored on disk.

The folder `<cache>/moments/<key>/` has a file `layer-00005.safetensors` for each layer that is done. Checkpoints
`partial-….safetensors` contain the running sums of other layers and the number of sequences read. <key> is a hash of
everything that C depends on.
"""

import copy
import os
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor

from fasttrace.cache import cache_root, content_key, load_tensors, metadata_of, save_tensors
from fasttrace.editing.corpus import Corpus, Progress, sampled_corpus, text_corpus
from fasttrace.editing.null_space import null_space
from fasttrace.errors import UserError
from fasttrace.memory import parse_bytes
from fasttrace.models.adapter import Decoder, Model
from fasttrace.models.modes import with_autograd
from fasttrace.models.packed import batches, forward, pack
from fasttrace.ops.second_moment import second_moment_
from fasttrace.runs import Run, describe_run
from fasttrace.settings.arguments import takes
from fasttrace.settings.base import argument, carried, refusal, replaced, run_settings, settings
from fasttrace.settings.moments import MomentSettings

CHECKPOINT_SECONDS = 20.0
# A float32 sum is rounded once per batch, by at most 2⁻²⁴ of the entry. Over n batches this adds up to about
# 3.4e-8 · sqrt(n / 3), which is 3e-7 for 256 batches. Longer sums are float64.
FLOAT32_BATCHES = 256
FACTOR_BYTES = 2 << 30  # Cholesky factors kept in memory; or a quarter of the free memory, if more; at least one
FORMAT = 1
WRITERS = 4  # layers that are written at once, each with a copy in the CPU's memory


@dataclass(eq=False)
class Moments:
    """Second moments of a model's keys, on disk. The store's `moments` row is made from these fields.

    run: the `runs` row (kind "moments"). key: hash of everything that C depends on, except the layer. corpus,
    corpus_hash: description and hash of the corpus. n_tokens: N, the tokens used. requested_tokens: the tokens asked
    for, more than N where the corpus was too short. layers: ascending, 0-based. path: the folder. ridge: added to C's
    diagonal by `inverse_key`, as a multiple of the diagonal's mean. source: the corpus's path as given, or None for
    sampled text.
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
    _factors: OrderedDict[tuple[int, float], "_Factor"] = field(default_factory=OrderedDict, repr=False)
    _null_spaces: OrderedDict[tuple[int, float, str], Tensor] = field(default_factory=OrderedDict, repr=False)
    _conditions: dict[int, float] = field(default_factory=dict, repr=False)

    def check(self, model: Decoder, layers: Sequence[int]) -> None:
        """Raise UserError where the moments are of another model or lack one of the layers."""
        if self.model_hash != model.model_hash:
            raise UserError(
                f"moments: expected second moments of '{model.name}' (hash {model.model_hash}), "
                f"got those of a model with hash {self.model_hash}"
            )
        missing = [layer for layer in layers if layer not in self.layers]
        if missing:
            have, wanted = (", ".join(map(str, some)) for some in (self.layers, missing))
            raise UserError(f"moments: expected second moments of layers {wanted} too, got only those of layers {have}")

    def matrix(self, layer: int) -> Tensor:
        """C of a layer, without the ridge: (m, m) float32 on the CPU, symmetric. Every call reads it from disk.

        Raises UserError for a layer that was not collected, and where the file is missing or damaged.
        """
        if layer not in self.layers:
            have = ", ".join(map(str, self.layers))
            raise UserError(f"moments: expected one of the collected layers {have}, got {layer}")
        tensors, _ = load_tensors(layer_file(self.path, layer))
        return tensors["C"]

    def inverse_key(self, layer: int, keys: Tensor, *, added: float = 0.0, extra: Tensor | None = None) -> Tensor:
        """(C + ridge · mean(diag C) · I)⁻¹ k for every row k of keys (n, m), any float dtype: (n, m) float64.

        added: a further number on C's diagonal. extra: (m, m) float64 to add to C, whose factor is not kept.

        The solve uses a float64 Cholesky factor, which is kept for later calls. It is on the keys' GPU if that has
        ample free memory, else on the CPU. The diagonal is scaled to 1 first, because each entry of C is as exact as
        float32 relative to its own row and column.

        Raises UserError where C is singular to that precision, for example with fewer tokens than m or a unit that
        never fires.
        Source: Meng et al. 2022 (arXiv 2202.05262), equation 2; docs/algorithms.md, section 13, u = C⁻¹k*.
        """
        found = (
            self._factor(layer, keys.device, added) if extra is None else self._made(layer, keys.device, added, extra)
        )
        scale, m = found.scale, len(found.scale)
        if keys.ndim != 2 or keys.shape[1] != m:
            raise UserError(f"inverse_key: expected keys (n, {m}), got {tuple(keys.shape)}")
        right = keys.detach().to(scale.device, torch.float64) * scale
        return (torch.cholesky_solve(right.T, found.lower).T * scale).contiguous().to(keys.device)

    def condition(self, layer: int, device: torch.device | str = "cpu") -> float:
        """Condition number of the matrix that `inverse_key` solves with: C plus the ridge, its diagonal scaled to 1.

        device: where the factor is computed if it is not kept, as in `inverse_key` for keys on this device.
        """
        if layer not in self._conditions:
            found = self._factor(layer, torch.device(device))
            self._conditions[layer] = _largest_eigenvalue(found.lower) / found.least
        return self._conditions[layer]

    def null_space(
        self, layer: int, threshold: float, unit: Literal["absolute", "trace"], device: torch.device
    ) -> Tensor:
        """(m, r) float64, `editing.null_space.null_space` of C without the ridge. It is kept as the factors are.

        device: where it is computed, as in `inverse_key`. Raises UserError where no eigenvalue is below the threshold.
        """
        which = layer, threshold, unit
        if which not in self._null_spaces:
            C = self.matrix(layer)
            C = C.to(_roomy(device, len(C)))
            try:
                basis = null_space(C, threshold, unit)
            except UserError as error:
                raise UserError(f"layer {layer}: {error}") from None
            _keep(self._null_spaces, which, basis, len(C) ** 2 * 8, C.device)
        self._null_spaces.move_to_end(which)
        return self._null_spaces[which]

    def _factor(self, layer: int, device: torch.device, added: float = 0.0) -> "_Factor":
        """The layer's factor, which is computed on `device` if that is a GPU with room for it. A factor that is kept is
        returned wherever it is."""
        if (layer, added) not in self._factors:
            made = self._made(layer, device, added)
            _keep(self._factors, (layer, added), made, len(made.scale) ** 2 * 8, made.scale.device)
        self._factors.move_to_end((layer, added))
        return self._factors[layer, added]

    def _made(self, layer: int, device: torch.device, added: float, extra: Tensor | None = None) -> "_Factor":
        """The factor of C plus the ridge, `added` and `extra`."""
        stored = self.matrix(layer)
        m = len(stored)
        if self.ridge == 0.0 and self.n_tokens < m and not added:
            raise self._singular(layer, m)
        device = _roomy(device, m)
        C = stored.to(device).double()
        C.diagonal().add_(self.ridge * C.diagonal().mean() + added)
        if extra is not None:
            C += extra.to(device)
        scale = C.diagonal().rsqrt()
        if not bool(torch.isfinite(scale).all()):
            raise self._singular(layer, m)
        lower, failed = torch.linalg.cholesky_ex(C.mul_(scale).mul_(scale[:, None]))
        least = 0.0 if int(failed) else _least_eigenvalue(lower)
        # Rounding C to float32 moves the eigenvalues of the scaled matrix by about this much.
        if not least >= 2.0**-24 * m**0.5:
            raise self._singular(layer, m)
        return _Factor(scale, lower, least)

    def _singular(self, layer: int, m: int) -> UserError:
        return _singular(layer, m, self.n_tokens, self.ridge)


K = TypeVar("K")
V = TypeVar("V")


def _keep(kept: OrderedDict[K, V], which: K, one: V, size: int, device: torch.device) -> None:
    """Keep a matrix of `size` bytes on `device`, and drop those that were used longest ago where they take too much."""
    most = max(FACTOR_BYTES, (size * len(kept) + _free_bytes(device)) // 4)
    while kept and size * (len(kept) + 1) > most:
        kept.popitem(last=False)
    kept[which] = one


def _roomy(device: torch.device, m: int) -> torch.device:
    """The device if it is a GPU with ample memory for matrices of m × m float64, else the CPU."""
    return device if device.type == "cuda" and _free_bytes(device) >= 64 * m * m else torch.device("cpu")


@dataclass(frozen=True, eq=False)
class _Factor:
    """scale: (m,) 1/sqrt(diagonal) of C plus the ridge. lower: (m, m), the lower Cholesky factor of the matrix scaled
    by it on both sides. Both are float64 and on one device. least: upper estimate of that matrix's least eigenvalue."""

    scale: Tensor
    lower: Tensor
    least: float


@settings("second_moments")
class MomentArguments(MomentSettings):
    """Keywords of `second_moments`."""

    settings: MomentSettings | None = argument(
        default=None, help="Settings object; keywords add settings that it does not give"
    )
    cache_dir: str | Path | None = argument(
        default=None, help="Folder of the cache; by default $XDG_CACHE_HOME/fasttrace or ~/.cache/fasttrace"
    )
    progress: Progress | None = argument(
        default=None, help="Called as progress(stage, done, total), in tokens; stage is sampling or moments"
    )


@takes(MomentArguments)
@with_autograd
def second_moments(model: Model, given: MomentArguments) -> Moments:
    """Compute C_l = Σ k kᵀ / N over a corpus for the layers asked for, in one pass if memory allows.

    Layers that are in the cache are not computed again. After an interruption, a call resumes from the last checkpoint
    (one every 20 s). On the same processor its sums are the same bit for bit. If the corpus has fewer tokens than asked
    for, all are used, as the result's `n_tokens` and `corpus` show. The ridge is not part of the files.
    `Moments.inverse_key` adds it.

    The relative error of C (Frobenius) against float64 sums of the same keys is below 1e-6. Keys of a float64 model
    are rounded to float32 first.

    Raises UserError for a missing, empty or non-UTF-8 corpus, a layer that the model lacks, or a number out of range,
    and ModelError for a float16 model.
    Source: docs/algorithms.md, section 10.
    """
    begun = time.perf_counter()
    model.check_moments("second_moments")
    asked = replaced(carried(MomentSettings, given), layers=_layers(model, given))
    layers = list(asked.layers or ())
    root = cache_root(given.cache_dir)
    if asked.corpus is None:
        text = sampled_corpus(model, asked.tokens, asked.sequence_length, asked.seed, root)
    else:
        text = text_corpus(model, Path(asked.corpus).expanduser(), asked.tokens, asked.sequence_length)
    identity = {
        **text.identity,
        "format": FORMAT,
        "model": model.model_hash,
        "n_tokens": text.n_tokens,
        "sequence_length": asked.sequence_length,
        "dtype": model.dtype_name,
    }
    key = content_key(identity)
    folder = root / "moments" / key
    run = describe_run("moments", model, {**identity, **run_settings(asked)}, seed=asked.seed, protocol="paper")
    missing = [layer for layer in layers if metadata_of(layer_file(folder, layer)) is None]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        budget = None if asked.memory is None else parse_bytes(asked.memory)
        _collect(model, text, missing, folder, asked.batch_rows, budget, given.progress)
    run["seconds"] = time.perf_counter() - begun
    return Moments(
        run=run,
        key=key,
        model_hash=model.model_hash,
        corpus=text.description,
        corpus_hash=text.corpus_hash,
        n_tokens=text.n_tokens,
        requested_tokens=asked.tokens,
        layers=layers,
        path=folder,
        ridge=asked.ridge,
        source=None if asked.corpus is None else str(asked.corpus),
    )


def check_moments(model: Decoder, asked: MomentSettings) -> None:
    """Raise what `second_moments`, and a solve with fewer tokens than a key has entries, raise. No pass runs."""
    layers, m = _layers(model, asked), model.key_width
    n_tokens = asked.tokens
    if asked.corpus is not None:
        n_tokens = text_corpus(model, Path(asked.corpus).expanduser(), asked.tokens, asked.sequence_length).n_tokens
    if asked.ridge == 0.0 and n_tokens < m:
        raise _singular(layers[0], m, n_tokens, asked.ridge)


def _singular(layer: int, m: int, n_tokens: int, ridge: float) -> UserError:
    return UserError(
        f"the second moment C of layer {layer} ({m} x {m}) is singular with {n_tokens} tokens and ridge={ridge:g}: use "
        "a larger corpus or a larger ridge, for example ridge=1e-4 (--ridge 1e-4)"
    )


def layer_file(folder: Path, layer: int) -> Path:
    """Path of a layer's C in a folder of moments."""
    return folder / f"layer-{layer:05d}.safetensors"


def _layers(model: Decoder, asked: MomentSettings) -> list[int]:
    """The layers asked for, ascending. Raises UserError for a layer that the model lacks and for a sequence_length
    beyond its positions."""
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and asked.sequence_length > longest:
        raise refusal(asked, "sequence_length", f"2 to {longest}", asked.sequence_length)
    wanted = sorted(set(range(model.n_layers) if asked.layers is None else asked.layers))
    outside = [layer for layer in wanted if layer >= model.n_layers]
    if outside:
        raise refusal(asked, "layers", f"some of 0 to {model.n_layers - 1}", ", ".join(map(str, outside)))
    return wanted


def _collect(
    model: Decoder,
    corpus: Corpus,
    missing: list[int],
    folder: Path,
    batch_rows: int,
    memory: int | None,
    progress: Progress | None,
) -> None:
    """Compute and write the missing layers. Layers with a checkpoint of an interrupted run come first."""
    sequences = corpus.sequences(progress)
    parts = list(batches(sequences, batch_rows))
    dtype = torch.float32 if len(parts) <= FLOAT32_BATCHES else torch.float64
    budget = _free_bytes(model.device) // 2 if memory is None else memory
    size = max(1, budget // (model.key_width**2 * dtype.itemsize))
    work: list[tuple[list[int], Path | None]] = []
    left = set(missing)
    for file in sorted(folder.glob("partial-*.safetensors")):
        found = metadata_of(file)
        started = sorted(left & set(found["layers"])) if found else []
        if started:
            work.append((started[:size], file))
            left -= set(started[:size])
    rest = sorted(left)
    work += [(rest[i : i + size], None) for i in range(0, len(rest), size)]

    total, model_hash = corpus.n_tokens * len(work), model.model_hash
    for number, (group, partial) in enumerate(work):
        done = _Report(progress, corpus.n_tokens * number, total)
        sums = _group_sums(model, sequences, group, folder, partial, batch_rows, dtype, done)
        # Hashing and writing a large layer takes longer than computing it, and needs no lock of Python's.
        with ThreadPoolExecutor(WRITERS) as pool:
            writing: deque[Future[None]] = deque()
            for layer in group:
                if len(writing) == WRITERS:
                    writing.popleft().result()
                note = {"layer": layer, "n_tokens": corpus.n_tokens, "model": model_hash}
                mean = (sums.pop(layer).double() / corpus.n_tokens).float().cpu()
                told = {**note, "corpus": corpus.corpus_hash}
                writing.append(pool.submit(save_tensors, layer_file(folder, layer), {"C": mean}, told))
            for one in writing:
                one.result()
        _tidy(folder)


@dataclass(frozen=True)
class _Report:
    progress: Progress | None
    before: int
    total: int

    def __call__(self, tokens: int) -> None:
        if self.progress is not None:
            self.progress("moments", self.before + tokens, self.total)


def _group_sums(
    model: Decoder,
    sequences: list[list[int]],
    group: list[int],
    folder: Path,
    partial: Path | None,
    batch_rows: int,
    dtype: torch.dtype,
    report: _Report,
) -> dict[int, Tensor]:
    """Σ k kᵀ of a group of layers over all sequences, resumed from the checkpoint `partial` if given."""
    m = model.key_width
    position = 0
    sums: dict[int, Tensor] = {}
    if partial is not None:
        tensors, note = load_tensors(partial)
        position = note["sequences"]
        sums = {layer: tensors[str(layer)].to(model.device, dtype) for layer in group}
    for layer in group:
        sums.setdefault(layer, torch.zeros((m, m), dtype=dtype, device=model.device))

    # The pass needs no layer above the group's last, so it runs a view of the model without them.
    lower = copy.copy(model)
    lower.blocks = model.blocks[: group[-1] + 1]

    def add(layer: int, keys: Tensor) -> None:
        if layer in sums:
            narrow = keys if keys.dtype != torch.float64 else keys.float()
            second_moment_(sums[layer], narrow.to(sums[layer].device))

    tokens = sum(len(s) for s in sequences[:position])
    report(tokens)
    saved = time.monotonic()
    for part in list(batches(sequences[position:], batch_rows)):
        batch = sequences[position + part.start : position + part.stop]
        forward(lower, pack(model, batch), on_key=add)
        tokens += sum(map(len, batch))
        report(tokens)
        reached = position + part.stop
        if time.monotonic() - saved >= CHECKPOINT_SECONDS and reached < len(sequences):
            _checkpoint(folder, sums, reached)
            saved = time.monotonic()
    return sums


def _checkpoint(folder: Path, sums: dict[int, Tensor], reached: int) -> None:
    note = {"layers": sorted(sums)}
    path = folder / f"partial-{content_key(note)[:8]}.safetensors"
    save_tensors(path, {str(layer): C for layer, C in sums.items()}, {**note, "sequences": reached})


def _tidy(folder: Path) -> None:
    """Remove checkpoints that cannot be read or whose layers are all done."""
    for partial in folder.glob("partial-*.safetensors"):
        note = metadata_of(partial)
        if note is None or all(layer_file(folder, layer).is_file() for layer in note["layers"]):
            partial.unlink(missing_ok=True)


def _free_bytes(device: torch.device) -> int:
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


def _least_eigenvalue(factor: Tensor, rounds: int = 12) -> float:
    """Upper estimate of the smallest eigenvalue of L Lᵀ, by inverse iteration on four seeded vectors."""
    x = torch.randn(len(factor), 4, dtype=factor.dtype, generator=torch.Generator().manual_seed(0)).to(factor.device)
    size = torch.ones(4, dtype=factor.dtype)
    for _ in range(rounds):
        x = torch.cholesky_solve(x / x.norm(dim=0), factor)
        size = x.norm(dim=0)
    return float(1.0 / size.max())


def _largest_eigenvalue(factor: Tensor, rounds: int = 30) -> float:
    """Lower estimate of the largest eigenvalue of L Lᵀ, by power iteration on one vector."""
    x = torch.ones(len(factor), 1, dtype=factor.dtype, device=factor.device)
    size = x.norm()
    for _ in range(rounds):
        x = factor @ (factor.T @ (x / x.norm()))
        size = x.norm()
    return float(size)
