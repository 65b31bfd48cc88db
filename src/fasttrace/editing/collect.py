"""Collects second moments: every layer in one pass over a corpus, or from the released code's files.

The process that collects writes the files. What needs the model is asked of a crew, whose members may be elsewhere.
"""

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fasttrace.cache import cache_root, content_key, metadata_of, save_tensors
from fasttrace.cluster.crew import Alone, Crew
from fasttrace.cluster.pool import crew_of
from fasttrace.editing.corpus import Corpus, Progress, sampled_corpus, text_corpus
from fasttrace.editing.cost import MomentCost, moment_cost
from fasttrace.editing.lanes import GroupSums, checkpoints, cut_of, tidy
from fasttrace.editing.moments import Moments, Place, free_bytes, layer_file, places_of, singular, sum_bytes, width_of
from fasttrace.editing.moments_npz import KeySum, is_key_sums, key_sums
from fasttrace.errors import UserError
from fasttrace.memory import parse_bytes
from fasttrace.models.adapter import Decoder, Model
from fasttrace.models.experts import SHARED
from fasttrace.models.modes import with_autograd
from fasttrace.models.packed import batches
from fasttrace.runs import Run, describe_run
from fasttrace.settings.arguments import checked, takes
from fasttrace.settings.base import argument, carried, refusal, replaced, run_settings, settings
from fasttrace.settings.cluster import WorkerSettings
from fasttrace.settings.moments import CORPUS_TOKENS, MomentSettings
from fasttrace.show.watched import HELP, watched

log = logging.getLogger("fasttrace.editing")
# A float32 sum is rounded once per batch, by at most 2⁻²⁴ of the entry. In one sum over n batches this adds up to about
# 3.4e-8 · sqrt(n / 3), which is 3e-7 for 256 batches, and in lanes to less. Longer sums are float64.
FLOAT32_BATCHES = 256
FORMAT = 2  # raised where the same corpus gets other bits
WRITERS = 4  # layers that are written at once, each with a copy in the CPU's memory


@settings("second_moments")
class MomentArguments(MomentSettings, WorkerSettings):
    """Keywords of `second_moments`."""

    settings: MomentSettings | None = argument(
        default=None, help="Settings object; keywords add settings that it does not give"
    )
    cache_dir: str | Path | None = argument(
        default=None, help="Folder of the cache; by default $XDG_CACHE_HOME/fasttrace or ~/.cache/fasttrace"
    )
    progress: Progress | bool | None = argument(
        default=None, help=f"Called as progress(stage, done, total), in tokens; stage is sampling or moments; {HELP}"
    )


@takes(MomentArguments)
@with_autograd
def second_moments(model: Model, given: MomentArguments) -> Moments:
    """Compute C_l = Σ k kᵀ / N over a corpus for the layers asked for, in one pass if memory allows.

    Where the corpus is second moments in .npz files, they are read instead, as by `import_moments`.

    Layers that are in the cache are not computed again. After an interruption, a call resumes from the last checkpoint
    (one every 20 s). On the same processor its sums are the same bit for bit, because they are added in one fixed order
    (`editing.lanes`). If the corpus has fewer tokens than asked for, all are used, as the result's `n_tokens` and
    `corpus` show. The ridge is not part of the files. `Moments.inverse_key` adds it.

    The relative error of C (Frobenius) against float64 sums of the same keys is below 1e-6. Keys of a float64 model
    are rounded to float32 first.

    Raises UserError for a missing, empty or non-UTF-8 corpus, a layer that the model lacks, or a number out of range,
    and ModelError for a float16 model.
    Source: docs/algorithms.md, section 10.
    """
    root = cache_root(given.cache_dir)
    watching = watched(given.progress, by_stage=True)
    with watching as watch, crew_of(model, carried(WorkerSettings, given), watch.tick) as crew:
        asked, experts = crew.ask(resolved, carried(MomentSettings, given))
        with watch.stages() as report:
            return collected(crew, asked, experts, root, report)


def resolved(model: Decoder, asked: MomentSettings) -> tuple[MomentSettings, dict[int, tuple[int, ...]]]:
    """The settings with the layers that they mean, and layer → experts to collect, at layers that have any.

    Raises the errors of `second_moments` for settings that do not fit the model.
    """
    model.check_moments("second_moments")
    if _key_sums(asked) is not None:
        return asked, {}
    asked = replaced(asked, layers=_layers(model, asked))
    return asked, routed_experts(model, asked)


class _Identity(NamedTuple):
    """What names second moments: the `runs` row, and the fields of `Moments`."""

    run: Run
    key: str
    model_hash: str


def _identity(model: Decoder, asked: MomentSettings, parts: Mapping[str, Any]) -> _Identity:
    """parts: what C depends on, besides the model."""
    whole = {**parts, "format": FORMAT, "model": model.model_hash}
    run = describe_run("moments", model, {**whole, **run_settings(asked)}, seed=asked.seed, protocol="paper")
    return _Identity(run, content_key(whole), model.model_hash)


def collected(
    crew: Crew,
    asked: MomentSettings,
    experts: Mapping[int, Sequence[int]],
    root: Path,
    progress: Progress | None = None,
) -> Moments:
    """`second_moments` with settings that are `resolved`, computed by a crew. This process needs no model.

    experts: layer → those to collect, at layers that have any. root: the folder of the cache, in this process.
    """
    begun = time.perf_counter()
    if (source := _key_sums(asked)) is not None:
        return _imported(crew, source, asked, root)
    layers = list(asked.layers or ())
    text, about = crew.ask(_corpus_named, asked)
    folder = root / "moments" / about.key
    missing = [place for place in places_of(layers, experts) if metadata_of(layer_file(folder, *place)) is None]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        if log.isEnabledFor(logging.INFO):
            cost, seconds = crew.ask(_told_cost, asked, missing, text.n_tokens, text.to_sample(root))
            log.info("second moments of %s; about %.0f s", cost, seconds)
        note = {"model": about.model_hash, "corpus": text.corpus_hash}
        _collect(crew, asked, text.sequences(crew, root, progress), missing, folder, note, progress)
    about.run["seconds"] = time.perf_counter() - begun
    return Moments(
        run=about.run,
        key=about.key,
        model_hash=about.model_hash,
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


def _corpus_named(model: Decoder, asked: MomentSettings) -> tuple[Corpus, _Identity]:
    """The corpus, and what names its second moments."""
    if asked.corpus is None:
        text: Corpus = sampled_corpus(model, asked.tokens, asked.sequence_length, asked.seed)
    else:
        text = text_corpus(model, Path(asked.corpus).expanduser(), asked.tokens, asked.sequence_length)
    parts = {"n_tokens": text.n_tokens, "sequence_length": asked.sequence_length, "dtype": model.dtype_name}
    return text, _identity(model, asked, {**text.identity, **parts})


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
    return _imported(Alone(model), Path(path).expanduser(), asked, cache_root(cache_dir))


def _imported(crew: Crew, source: Path, asked: MomentSettings, root: Path) -> Moments:
    begun = time.perf_counter()
    files, n_tokens, corpus_hash, about = crew.ask(_files_named, source, asked)
    layers = sorted(files if asked.layers is None else set(asked.layers))
    folder = root / "moments" / about.key
    for layer in layers:
        if metadata_of(layer_file(folder, layer)) is None:
            note = {"layer": layer, "n_tokens": files[layer].n_tokens, "model": about.model_hash, "corpus": corpus_hash}
            C = files[layer].mean()  # before the folder, as it may be refused
            folder.mkdir(parents=True, exist_ok=True)
            save_tensors(layer_file(folder, layer), {"C": C}, note)
    about.run["seconds"] = time.perf_counter() - begun
    return Moments(
        run=about.run,
        key=about.key,
        model_hash=about.model_hash,
        corpus=f"second moments in '{asked.corpus}'",
        corpus_hash=corpus_hash,
        n_tokens=n_tokens,
        requested_tokens=n_tokens,
        layers=layers,
        path=folder,
        ridge=asked.ridge,
        source=str(asked.corpus),
    )


def _files_named(model: Decoder, source: Path, asked: MomentSettings) -> tuple[dict[int, KeySum], int, str, _Identity]:
    """`_files`, the hash of all sums and counts, and what names these second moments."""
    files, n_tokens = _files(model, source, asked)
    layers = sorted(files if asked.layers is None else set(asked.layers))
    corpus_hash = content_key({str(layer): file.digest() for layer, file in files.items()})
    return files, n_tokens, corpus_hash, _identity(model, replaced(asked, layers=layers), {"sums": corpus_hash})


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


def planned_moments(model: Decoder, asked: MomentSettings, layers: Sequence[int]) -> MomentCost:
    """The cost of collecting these layers: nothing where they are read from files."""
    if _key_sums(asked) is not None:
        return moment_cost(model, [], 0, 0)
    places = places_of(layers, routed_experts(model, replaced(asked, layers=layers)))
    return _cost(model, asked, places, asked.tokens, asked.tokens if asked.corpus is None else 0)


def _cost(model: Decoder, asked: MomentSettings, places: Sequence[Place], tokens: int, to_sample: int) -> MomentCost:
    itemsize = _dtype(-(-tokens // asked.batch_rows)).itemsize
    groups = _groups(places, *_room(model, asked, places, itemsize))
    return moment_cost(model, groups, tokens, to_sample, itemsize)


def _told_cost(
    model: Decoder, asked: MomentSettings, places: Sequence[Place], tokens: int, to_sample: int
) -> tuple[str, float]:
    """The cost in words, and the seconds it takes."""
    cost = _cost(model, asked, places, tokens, to_sample)
    return str(cost), cost.seconds(model)


def _dtype(count: int) -> torch.dtype:
    """The dtype of sums over `count` batches."""
    return torch.float32 if count <= FLOAT32_BATCHES else torch.float64


def _room(model: Decoder, asked: MomentSettings, places: Sequence[Place], itemsize: int) -> tuple[int, int]:
    """Bytes of the sums of the largest of the places, and bytes for the sums of all."""
    largest = max((sum_bytes(model, place, itemsize) for place in places), default=1)
    return largest, free_bytes(model.device) // 2 if asked.memory is None else parse_bytes(asked.memory)


def _groups(places: Sequence[Place], largest: int, budget: int) -> list[list[Place]]:
    """The places in their order, in groups whose sums fit together, with at least one each."""
    each = max(1, budget // largest)
    return [list(places[i : i + each]) for i in range(0, len(places), each)]


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
    crew: Crew,
    asked: MomentSettings,
    sequences: list[list[int]],
    missing: list[Place],
    folder: Path,
    about: Mapping[str, str],
    progress: Progress | None,
) -> None:
    """Compute and write what is missing. What has a checkpoint of an interrupted run comes first. about: what the
    metadata of every file has."""
    parts = [sequences[part] for part in batches(sequences, asked.batch_rows)]
    dtype = _dtype(len(parts))
    room = crew.ask(_room, asked, missing, dtype.itemsize)
    work: list[tuple[list[Place], Path | None]] = []
    left = list(missing)
    for file, places in checkpoints(folder, cut_of(parts)):
        if started := [place for place in left if place in places]:
            started = _groups(started, *room)[0]
            work.append((started, file))
            left = [place for place in left if place not in started]
    work += [(group, None) for group in _groups(left, *room)]

    n_tokens = sum(map(len, sequences))
    for number, (group, partial) in enumerate(work):
        done = _Report(progress, n_tokens * number, n_tokens * len(work))
        total = GroupSums(group, parts, dtype, folder, partial, done).collect(crew)
        # Hashing and writing a large layer takes longer than computing it, and needs no lock of Python's.
        with ThreadPoolExecutor(WRITERS) as pool:
            writing: deque[Future[None]] = deque()
            for place in group:
                if len(writing) == WRITERS:
                    writing.popleft().result()
                note = {**about, "layer": place.layer, "n_tokens": n_tokens}
                if place.expert is not None:
                    note |= {"expert": place.expert, "routed": total.routed[place]}
                mean = (torch.from_numpy(total.sums.pop(place)).double() / n_tokens).float()
                writing.append(pool.submit(save_tensors, layer_file(folder, *place), {"C": mean}, note))
            for one in writing:
                one.result()
        tidy(folder)


@dataclass(frozen=True)
class _Report:
    progress: Progress | None
    before: int
    total: int

    def __call__(self, tokens: int) -> None:
        if self.progress is not None:
            self.progress("moments", self.before + tokens, self.total)
