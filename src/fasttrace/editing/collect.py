"""Collects second moments: every layer in one pass over a corpus, or from the released code's files.

In a folder of `moments`, checkpoints `partial-….safetensors` contain the running sums of layers that are not done and
the number of sequences read.
"""

import copy
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fasttrace.cache import cache_root, content_key, load_tensors, metadata_of, save_tensors
from fasttrace.editing.corpus import Corpus, Progress, sampled_corpus, text_corpus
from fasttrace.editing.cost import MomentCost, moment_cost
from fasttrace.editing.moments import Moments, Place, free_bytes, layer_file, places_of, singular, width_of
from fasttrace.editing.moments_npz import KeySum, is_key_sums, key_sums
from fasttrace.errors import UserError
from fasttrace.memory import parse_bytes
from fasttrace.models.adapter import Decoder, Model
from fasttrace.models.experts import SHARED
from fasttrace.models.keys import Keys
from fasttrace.models.modes import with_autograd
from fasttrace.models.packed import batches, forward, pack
from fasttrace.ops.second_moment import second_moment_
from fasttrace.runs import describe_run
from fasttrace.settings.arguments import checked, takes
from fasttrace.settings.base import argument, carried, refusal, replaced, run_settings, settings
from fasttrace.settings.moments import CORPUS_TOKENS, MomentSettings

log = logging.getLogger("fasttrace.editing")
CHECKPOINT_SECONDS = 20.0
# A float32 sum is rounded once per batch, by at most 2⁻²⁴ of the entry. Over n batches this adds up to about
# 3.4e-8 · sqrt(n / 3), which is 3e-7 for 256 batches. Longer sums are float64.
FLOAT32_BATCHES = 256
FORMAT = 1
WRITERS = 4  # layers that are written at once, each with a copy in the CPU's memory


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

    Where the corpus is second moments in .npz files, they are read instead, as by `import_moments`.

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
    model.check_moments("second_moments")
    root = cache_root(given.cache_dir)
    if (source := _key_sums(given)) is not None:
        return _imported(model, source, carried(MomentSettings, given), root)
    asked = replaced(carried(MomentSettings, given), layers=_layers(model, given))
    return collected(model, asked, routed_experts(model, asked), root, given.progress)


def collected(
    model: Decoder,
    asked: MomentSettings,
    experts: Mapping[int, Sequence[int]],
    root: Path,
    progress: Callable[[str, int, int], None] | None = None,
) -> Moments:
    """`second_moments` with settings that are checked.

    experts: layer → those to collect, at layers that have any. root: the folder of the cache.
    """
    begun = time.perf_counter()
    if (source := _key_sums(asked)) is not None:
        return _imported(model, source, asked, root)
    layers = list(asked.layers or ())
    places = places_of(layers, experts)
    text = _corpus(model, asked, root)
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
    missing = [place for place in places if metadata_of(layer_file(folder, *place)) is None]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        if log.isEnabledFor(logging.INFO):
            cost = planned_moments(model, asked, layers, places=missing, text=text)
            log.info("second moments of %s; about %.0f s", cost, cost.seconds(model))
        _collect(model, text, missing, folder, asked.batch_rows, _budget(model, asked), progress)
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
        experts={layer: sorted(found) for layer, found in experts.items()},
    )


@checked
def import_moments(
    model: Model,
    path: str | Path,
    *,
    layers: Sequence[int] | None = None,
    ridge: float = 0.0,
    cache_dir: str | Path | None = None,
) -> Moments:
    """Read second moments from the released code's files, check them, and keep them in the cache.

    path: an .npz file, or a folder that has them, also in subfolders. `moments_npz` describes the layout. A file's name
        has the module, which says the layer. The identity of the moments follows from the sums and counts of all files.
    layers: those to read; by default all that have a file. ridge, cache_dir: as in `second_moments`.

    The result's `n_tokens` is the least of the files' counts.

    Raises UserError where a file cannot be read, is not a second moment, or is not of this model as far as the file
    shows: the name of the module, the width, and the model's hash in files that fasttrace wrote. Also where a layer has
    no file.
    """
    asked = MomentSettings(corpus=path, ridge=ridge, layers=layers)
    return _imported(model, Path(path).expanduser(), asked, cache_root(cache_dir))


def _imported(model: Decoder, source: Path, asked: MomentSettings, root: Path) -> Moments:
    begun = time.perf_counter()
    files, n_tokens = _files(model, source, asked)
    layers = sorted(files if asked.layers is None else set(asked.layers))
    sums = {str(layer): file.digest() for layer, file in files.items()}
    corpus_hash = content_key(sums)
    identity = {"format": FORMAT, "model": model.model_hash, "sums": corpus_hash}
    key = content_key(identity)
    folder = root / "moments" / key
    run = describe_run(
        "moments",
        model,
        {**identity, **run_settings(replaced(asked, layers=layers))},
        seed=asked.seed,
        protocol="paper",
    )
    for layer in layers:
        if metadata_of(layer_file(folder, layer)) is None:
            note = {"layer": layer, "n_tokens": files[layer].n_tokens, "model": model.model_hash, "corpus": corpus_hash}
            C = files[layer].mean()  # before the folder, as it may be refused
            folder.mkdir(parents=True, exist_ok=True)
            save_tensors(layer_file(folder, layer), {"C": C}, note)
    run["seconds"] = time.perf_counter() - begun
    return Moments(
        run=run,
        key=key,
        model_hash=model.model_hash,
        corpus=f"second moments in '{asked.corpus}'",
        corpus_hash=corpus_hash,
        n_tokens=n_tokens,
        requested_tokens=n_tokens,
        layers=layers,
        path=folder,
        ridge=asked.ridge,
        source=str(asked.corpus),
    )


def _files(model: Decoder, source: Path, asked: MomentSettings) -> tuple[dict[int, KeySum], int]:
    """The files of all layers, and the least of their counts. Raises UserError for tokens that are not read from files,
    and for a layer without a file."""
    files = key_sums(source, model)
    n_tokens = min(file.n_tokens for file in files.values())
    if asked.tokens not in (CORPUS_TOKENS, n_tokens):
        raise refusal(asked, "tokens", f"no value with second moments from files ({n_tokens} tokens)", asked.tokens)
    if missing := sorted(set(asked.layers or ()) - set(files)):
        have, wanted = (", ".join(map(str, some)) for some in (files, missing))
        raise UserError(f"second moments '{source}': expected files of layers {wanted} too, got only those of {have}")
    return files, n_tokens


def _key_sums(asked: MomentSettings) -> Path | None:
    """The corpus's path where it is second moments in files, else None."""
    source = None if asked.corpus is None else Path(asked.corpus).expanduser()
    return source if source is not None and is_key_sums(source) else None


def _corpus(model: Decoder, asked: MomentSettings, root: Path) -> Corpus:
    if asked.corpus is None:
        return sampled_corpus(model, asked.tokens, asked.sequence_length, asked.seed, root)
    return text_corpus(model, Path(asked.corpus).expanduser(), asked.tokens, asked.sequence_length)


def planned_moments(
    model: Decoder,
    asked: MomentSettings,
    layers: Sequence[int],
    *,
    places: Sequence[Place] | None = None,
    text: Corpus | None = None,
) -> MomentCost:
    """The cost of collecting these layers, or only these down-projections of theirs: nothing where they are read from
    files. text: the corpus, if it is known."""
    if _key_sums(asked) is not None:
        return moment_cost(model, [], 0, 0)
    sampled = asked.tokens if asked.corpus is None else 0
    tokens, to_sample = (asked.tokens, sampled) if text is None else (text.n_tokens, text.to_sample)
    itemsize = 4 if -(-tokens // asked.batch_rows) <= FLOAT32_BATCHES else 8
    if places is None:
        places = places_of(layers, routed_experts(model, replaced(asked, layers=layers)))
    groups = _groups(model, places, _budget(model, asked), itemsize)
    return moment_cost(model, groups, tokens, to_sample, itemsize)


def _groups(model: Decoder, places: Sequence[Place], budget: int, itemsize: int) -> list[list[Place]]:
    """The places in their order, in groups whose sums fit together, with at least one each."""
    size = max(width_of(model, place) for place in places) ** 2 * itemsize if places else 1
    each = max(1, budget // size)
    return [list(places[i : i + each]) for i in range(0, len(places), each)]


def _budget(model: Decoder, asked: MomentSettings) -> int:
    return free_bytes(model.device) // 2 if asked.memory is None else parse_bytes(asked.memory)


def check_moments(model: Decoder, asked: MomentSettings) -> None:
    """Raise what `second_moments`, and a solve with fewer tokens than a key has entries, raise. No pass runs."""
    n_tokens = asked.tokens
    if (source := _key_sums(asked)) is not None:
        files, n_tokens = _files(model, source, asked)
        places = places_of(files, {})
    else:
        layers = _layers(model, asked)
        places = places_of(layers, routed_experts(model, replaced(asked, layers=layers)))
    if asked.corpus is not None and source is None:
        n_tokens = text_corpus(model, Path(asked.corpus).expanduser(), asked.tokens, asked.sequence_length).n_tokens
    for place in places if asked.ridge == 0.0 else ():
        if n_tokens < width_of(model, place):
            raise singular(place, width_of(model, place), n_tokens, asked.ridge)


def _layers(model: Decoder, asked: MomentSettings) -> list[int]:
    """The layers asked for, ascending. Raises UserError for a layer that the model lacks and for a sequence_length
    beyond its positions."""
    longest = model.positions
    if longest is not None and asked.sequence_length > longest:
        raise refusal(asked, "sequence_length", f"2 to {longest}", asked.sequence_length)
    wanted = sorted(set(range(model.n_layers) if asked.layers is None else asked.layers))
    outside = [layer for layer in wanted if layer >= model.n_layers]
    if outside:
        raise refusal(asked, "layers", f"some of 0 to {model.n_layers - 1}", ", ".join(map(str, outside)))
    return wanted


def routed_experts(model: Decoder, asked: MomentSettings) -> dict[int, tuple[int, ...]]:
    """Layer → the experts asked for, at the layers that have any. Raises UserError where none has, or an expert is
    missing."""
    found: dict[int, tuple[int, ...]] = {}
    for layer in asked.layers or ():
        block = model.blocks[layer]
        if block.experts is None:
            continue
        shared = () if block.shared is None else (SHARED,)
        found[layer] = (*shared, *range(block.experts.count))
        if asked.experts != "all":
            wanted = (SHARED,) if asked.experts == "shared" else tuple(sorted(set(asked.experts)))
            if lost := sorted(set(wanted) - set(found[layer])):
                have = f"some of 0 to {block.experts.count - 1}" + (" or shared" if shared else "")
                raise refusal(asked, "experts", have, "shared" if lost[0] == SHARED else lost[-1])
            found[layer] = wanted
    if not found and asked.experts != "all":
        raise refusal(asked, "experts", f"no value, as no layer of '{model.name}' that is asked for has experts", "one")
    return found


def _collect(
    model: Decoder,
    corpus: Corpus,
    missing: list[Place],
    folder: Path,
    batch_rows: int,
    budget: int,
    progress: Progress | None,
) -> None:
    """Compute and write what is missing. What has a checkpoint of an interrupted run comes first."""
    sequences = corpus.sequences(progress)
    parts = list(batches(sequences, batch_rows))
    dtype = torch.float32 if len(parts) <= FLOAT32_BATCHES else torch.float64
    work: list[tuple[list[Place], Path | None]] = []
    left = list(missing)
    for file in sorted(folder.glob("partial-*.safetensors")):
        found = metadata_of(file) or {}
        if started := [place for place in left if place.name in found.get("places", ())]:
            started = _groups(model, started, budget, dtype.itemsize)[0]
            work.append((started, file))
            left = [place for place in left if place not in started]
    work += [(group, None) for group in _groups(model, left, budget, dtype.itemsize)]

    total, model_hash = corpus.n_tokens * len(work), model.model_hash
    for number, (group, partial) in enumerate(work):
        done = _Report(progress, corpus.n_tokens * number, total)
        sums, routed = _group_sums(model, sequences, group, folder, partial, batch_rows, dtype, done)
        # Hashing and writing a large layer takes longer than computing it, and needs no lock of Python's.
        with ThreadPoolExecutor(WRITERS) as pool:
            writing: deque[Future[None]] = deque()
            for place in group:
                if len(writing) == WRITERS:
                    writing.popleft().result()
                note = {"layer": place.layer, "n_tokens": corpus.n_tokens, "model": model_hash}
                if place.expert is not None:
                    note |= {"expert": place.expert, "routed": routed[place]}
                mean = (sums.pop(place).double() / corpus.n_tokens).float().cpu()
                told = {**note, "corpus": corpus.corpus_hash}
                writing.append(pool.submit(save_tensors, layer_file(folder, *place), {"C": mean}, told))
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
    group: list[Place],
    folder: Path,
    partial: Path | None,
    batch_rows: int,
    dtype: torch.dtype,
    report: _Report,
) -> tuple[dict[Place, Tensor], dict[Place, int]]:
    """Σ k kᵀ of a group over all sequences, and how many of their tokens each has keys of, resumed from the checkpoint
    `partial` if given."""
    position = 0
    sums: dict[Place, Tensor] = {}
    routed = dict.fromkeys(group, 0)
    if partial is not None:
        tensors, note = load_tensors(partial)
        position = note["sequences"]
        sums = {place: tensors[place.name].to(model.device, dtype) for place in group}
        routed = {place: note["routed"][place.name] for place in group}
    for place in group:
        m = width_of(model, place)
        sums.setdefault(place, torch.zeros((m, m), dtype=dtype, device=model.device))

    # The pass needs no layer above the group's last, so it runs a view of the model without them.
    lower = copy.copy(model)
    lower.blocks = model.blocks[: group[-1].layer + 1]

    def add(layer: int, keys: Keys) -> None:
        for place in group:
            if place.layer == layer:
                key = keys.of_one(place.expert)
                routed[place] += len(key)
                narrow = key if key.dtype != torch.float64 else key.float()
                second_moment_(sums[place], narrow.to(sums[place].device))

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
            _checkpoint(folder, sums, routed, reached)
            saved = time.monotonic()
    return sums, routed


def _checkpoint(folder: Path, sums: dict[Place, Tensor], routed: dict[Place, int], reached: int) -> None:
    note = {"places": [place.name for place in sums]}
    path = folder / f"partial-{content_key(note)[:8]}.safetensors"
    about = {**note, "sequences": reached, "routed": {place.name: n for place, n in routed.items()}}
    save_tensors(path, {place.name: C for place, C in sums.items()}, about)


def _tidy(folder: Path) -> None:
    """Remove checkpoints that cannot be read or whose sums are all done."""
    for partial in folder.glob("partial-*.safetensors"):
        note = metadata_of(partial) or {}
        if all(layer_file(folder, *Place.named(name)).is_file() for name in note.get("places", ())):
            partial.unlink(missing_ok=True)
