"""What a model folder or hub repository contains, checked before transformers reads it."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fasttrace.errors import ModelError, shown
from fasttrace.models import faults
from fasttrace.models.configs import text_config
from fasttrace.models.reading import OF_ACTIVATIONS, Headers, method_of
from fasttrace.packaged import PACKAGED, check_name, weights_of

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Tensors that older releases saved with the weights and compute themselves today: causal masks, rotation tables.
COMPUTED = re.compile(
    r"(^|\.)((attn|attention)\.(bias|masked_bias|scale_attn)|masked_bias|inv_freq|cos_cached|sin_cached|position_ids"
    r"|embed_positions|version|_float_tensor)$"
)
LAYER = re.compile(r"(?:^|\.)(\d+)\.")  # the first number in a tensor's name is its layer
# Numbers that transformers may draw for missing tensors before they are refused, 1 GB.
FEW = 2**28
FLOATS = ("F64", "F32", "F16", "BF16")  # of weights that are not quantised
MORE_LAYERS = 100  # that transformers may make before they are refused

# Small JSON files of a folder, each an object.
OBJECTS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")

# Of the processor of a multimodal model, beside its tokenizer.
PROCESSORS = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)


def resolve(source: str) -> tuple[str, str | None]:
    """source → (path or hub id for transformers, name of the GGUF file or None)."""
    if source in PACKAGED:
        file = weights_of(source)
        return str(file.parent), file.name
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"model file '{source}': expected an existing .gguf file, got none")
        faults.check_parts(path)
        return str(path.parent), path.name
    if source and path.is_dir():
        packed = sorted(path.glob("*.gguf"))
        if any(path.glob("*.safetensors")) or (path / INDEX).exists():
            return str(path), None
        if not packed:
            found = faults.instead_of_weights(path)
            raise ModelError(f"model folder '{source}': expected .safetensors or .gguf weights, got {found}")
        faults.check_parts(packed[0])
        if len(packed) > 1:
            raise ModelError(
                f"model folder '{source}': expected one .gguf file, got {len(packed)}: name one of them, such as "
                f"{packed[0]}"
            )
        return str(path), packed[0].name
    if path.is_file():
        raise ModelError(f"model '{source}': expected a folder or a .gguf file, got {faults.instead_of_folder(path)}")
    if not source or path.exists() or source.startswith((".", "/", "~")):
        raise ModelError(f"model '{source}': expected an existing folder or .gguf file, got neither")
    check_name(source)
    return source, None


def is_described(folder: Path) -> bool:
    """Whether a folder has a config.json, with or without weights beside it."""
    return (folder / "config.json").is_file() and not any(folder.glob("*.gguf"))


def processor_files(where: str) -> list[Path]:
    """The files of a folder or hub id that say how a multimodal model is given images, sounds and chats."""
    return [path for name in PROCESSORS if (path := _found(where, name)) is not None]


def reach(where: str) -> None:
    """Raise ModelError where a hub id's config.json can neither be downloaded nor found in the hub's cache."""
    from transformers.utils import cached_file

    try:
        found = cached_file(where, "config.json")
    except (OSError, ValueError) as error:
        raise ModelError(f"model '{where}' could not be loaded: {faults.hub_fault(error, where)}") from error
    if found is None and _found(where, "adapter_config.json") is None:
        raise ModelError(f"model '{where}': expected a config.json, got a repository without one")


def local_files(source: str, tokenizer: str | None = None) -> list[Path] | None:
    """The files that a model, and the tokenizer given for it, are read from, or None where one is a hub id, whose files
    may not be here yet."""
    found: list[Path] = []
    for where, gguf in [resolve(source), *([] if tokenizer is None else [resolve_tokenizer(tokenizer)])]:
        folder = Path(where)
        if gguf is None and not folder.is_dir():
            return None
        found += [folder / gguf] if gguf is not None else sorted(path for path in folder.iterdir() if path.is_file())
    return found


def resolve_tokenizer(source: str) -> tuple[str, str | None]:
    """As `resolve`, for a tokenizer, whose folder needs no weights."""
    path = Path(source).expanduser()
    return (str(path), None) if source and path.is_dir() else resolve(source)


def check_config(where: str, *, trusted: bool = False) -> str | None:
    """How a model's weights are quantised (`reading.METHODS`), or None for plain ones.

    where: a folder or a hub id. trusted: whether code of the repository may run. Raises ModelError where it is not that
    of a whole causal language model: for a config.json that is not a JSON object, adapters (adapter_config.json),
    models of another kind (`faults.check_kind`), weights that are quantised in another way, and weights in files that
    the config names. Raises PackageError where the package of a method is not installed.
    """
    path = _found(where, "config.json")
    if (adapter := _found(where, "adapter_config.json")) is not None:
        raise ModelError(f"model '{where}': expected a whole model, got {faults.adapter(adapter, where)}")
    if path is None:
        found = faults.instead_of_config(Path(where))
        raise ModelError(f"model folder '{where}': expected a config.json, got {found}")
    for name in OBJECTS:
        if (Path(where) / name).is_file():
            _object(Path(where) / name)
    config = _object(path)
    faults.check_kind(config, where, embeds=_found(where, "modules.json") is not None, trusted=trusted)
    method = method_of(config, where)
    if config.get("transformers_weights") is not None:
        raise ModelError(
            f"model '{where}': expected weights in {WEIGHTS} or {INDEX}, got a config.json that names another file "
            f"(transformers_weights: {shown(config['transformers_weights'])})"
        )
    return method


def read_headers(where: str, quantised: bool = False) -> Headers | None:
    """Name, shape and dtype of every tensor in a model's safetensors files. None for a hub id without any.

    where: a folder or a hub id. quantised: whether its weights may be packed. Raises ModelError for a damaged file, and
    where the index names anything but .safetensors files beside it, since transformers would unpickle other files.
    """
    folder = Path(where)
    if folder.is_dir() and any(folder.glob("shard-*.safetensors")):
        raise ModelError(f"model folder '{where}': expected {WEIGHTS} or {INDEX}, got a distributed checkpoint")
    if (whole := _found(where, WEIGHTS)) is not None:
        files = [whole]
    elif (index := _found(where, INDEX)) is not None:
        files = _shards(where, index)
    elif folder.is_dir():
        found = faults.instead_of_weights(folder)
        raise ModelError(f"model folder '{where}': expected {WEIGHTS} or {INDEX}, got {found}")
    else:
        return None
    from safetensors import safe_open

    headers: dict[str, tuple[tuple[int, ...], str]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  it is no dictionary
                    part = tensors.get_slice(name)
                    headers[name] = tuple(part.get_shape()), part.get_dtype()
        except MemoryError:
            raise
        except Exception as error:
            found = faults.damage(file) or f"one that is damaged ({error}): download it again"
            raise ModelError(f"weights file '{file}': expected a complete safetensors file, got {found}") from error
    if not headers:
        raise ModelError(f"model '{where}': expected weights, got safetensors files without tensors")
    packed = [n for n, (size, dtype) in headers.items() if len(size) > 1 and "weight" in n and dtype not in FLOATS]
    if packed and not quantised:
        raise ModelError(
            f"model '{where}': expected weights as float16, bfloat16, float32 or float64, got {headers[packed[0]][1]} "
            f"in {listed(packed)}"
        )
    return headers


def _shards(where: str, index: Path) -> list[Path]:
    """The files that a safetensors index names."""
    content = _object(index)
    names, about = content.get("weight_map"), content.get("metadata")
    if not isinstance(about, dict) or not isinstance(names, dict) or not names:
        raise ModelError(
            f"weights index '{index}': expected metadata and a weight_map from tensors to files, got {shown(content)}"
        )
    files = {}
    for name in dict.fromkeys(map(str, names.values())):
        # A name is a file of the folder. In the hub's cache that file is a link to where its bytes are.
        if re.fullmatch(r"[^/\\\0]+\.safetensors", name) is None:
            raise ModelError(
                f"weights index '{index}': expected names of .safetensors files in its folder, got {shown(name)}"
            )
        files[name] = _found(where, name)
    if None in files.values():
        found = faults.missing_shards(files, index.parent)
        raise ModelError(f"weights index '{index}': expected all files that it names, got {found}")
    return [file for file in files.values() if file is not None]


def check_size(config: Any, headers: Headers, where: str, build: Any, each: int = 1) -> None:
    """Raise ModelError where a config describes a model with more layers, or far more numbers, than the weights have.

    transformers would make them before it reports them. build: a function that makes the model of `config` without
    memory (on the device "meta"). each: how many numbers a number of the files may stand for.
    """
    layers = len({found[1] for name in headers if (found := LAYER.search(name))})
    check_layers(config, layers + MORE_LAYERS, where)
    have = each * sum(_count(shape) for shape, _ in headers.values())
    model = build()
    wanted = sum(weight.numel() for weight in model.parameters())
    if wanted > have + FEW:
        raise ModelError(
            f"model '{where}': expected a config.json that describes its weights ({have:,} numbers), got one that "
            f"describes {wanted:,}"
        )
    check_tables(model, where)


def check_tables(model: Any, where: str) -> None:
    """Raise ModelError where a model, made without memory, has tables (of positions, masks) of far too many numbers."""
    tables = sum(table.numel() for table in model.buffers())
    if tables > FEW:
        raise ModelError(f"model '{where}': expected positions that fit in memory, got tables of {tables:,} numbers")


def check_layers(config: Any, most: int, where: str) -> None:
    """Raise ModelError where the config does not have 1 to `most` layers.

    In a multimodal model, that is the text decoder's number, and no other tower may have more than `most`.
    """
    layers = text_config(config).num_hidden_layers
    towers = [vars(part) for name in config.sub_configs if (part := getattr(config, name, None)) is not None]
    others = [tower.get(name) for tower in towers for name in ("num_hidden_layers", "depth")]
    for number in (layers, *(n for n in others if isinstance(n, int) and n > most)):
        if not 1 <= number <= most:
            raise ModelError(
                f"model '{where}': expected a config of as many layers as the weights, got {shown(number)}"
            )


def check_loaded(hf: Any, info: Mapping[str, Iterable[Any]], where: str) -> None:
    """Raise ModelError where the weights and the config do not fit each other.

    info: what transformers reports (`output_loading_info`). Refused are missing tensors, tensors of another shape, and
    tensors of the model's own modules that it does not have, such as those of a layer more. Heads of other tasks
    (score, v_head) and tables that are computed today (`COMPUTED`) are left out, as transformers does.
    """
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"model '{where}': expected weights for all of its config, got none for {listed(missing)}")
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, wanted = mismatched[0]
        more = f" (and {len(mismatched) - 1} more)" if len(mismatched) > 1 else ""
        raise ModelError(f"model '{where}': expected '{name}' of shape {tuple(wanted)}, got {tuple(found)}{more}")
    own = {hf.base_model_prefix, *(name for name, _ in [*hf.named_children(), *hf.base_model.named_children()])}
    unused = [n for n in info["unexpected_keys"] if COMPUTED.search(n) or OF_ACTIVATIONS.search(n)]
    extra = [n for n in sorted(set(info["unexpected_keys"]) - set(unused)) if n.partition(".")[0] in own]
    if extra:
        raise ModelError(
            f"model '{where}': expected only weights that its config describes, got more in {listed(extra)}"
        )


def explain_tokenizer(where: str) -> None:
    """Raise ModelError where a folder's tokenizer files are missing or damaged, which transformers says vaguely."""
    folder = Path(where)
    if not folder.is_dir():
        return
    if (file := folder / "tokenizer.json").is_file():
        _object(file)
    elif not any(file.name.startswith(("vocab", "merges")) for file in folder.iterdir()):
        raise ModelError(
            f"model folder '{where}': expected a tokenizer.json, got {faults.instead_of_tokenizer(folder)}"
        )


def listed(names: list[str]) -> str:
    """The first names, and how many there are."""
    first = ", ".join(f"'{name}'" for name in names[:3])
    return first if len(names) <= 3 else f"{first} and {len(names) - 3:,} more"


def _count(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _found(where: str, name: str) -> Path | None:
    """The path of a file of a folder or hub repository, or None if there is none."""
    folder = Path(where)
    if folder.is_dir():
        path = folder / name
        return path if path.is_file() else None
    from transformers.utils import cached_file

    found = cached_file(
        where,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def _object(path: Path) -> dict[str, Any]:
    """A JSON file's object. Raises ModelError for any other content."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ModelError(f"file '{path}': expected a JSON object, got brackets too deep to read") from error
    except (ValueError, OSError) as error:
        found = faults.damage(path) or f"a file that is none ({error})"
        raise ModelError(f"file '{path}': expected a JSON object, got {found}") from error
    if not isinstance(content, dict):
        raise ModelError(f"file '{path}': expected a JSON object, got {shown(content)}")
    return content
