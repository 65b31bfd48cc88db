"""What a folder or file is that is not the model it was taken for, and the way out, as clauses of one sentence.

Only names, sizes and first bytes are read. Nothing is unpickled, and no code of a repository runs.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fasttrace.errors import ModelError, shown

POINTER = b"version https://git-lfs"  # how the text begins that git-lfs leaves in place of a file
AGAIN = "download the folder again (a download that stopped continues where it was)"
ORIGINAL = "take the original weights as safetensors"
PART = re.compile(r"-0*(\d+)-of-0*(\d+)\.gguf$")  # of a GGUF file that is split
MULTIMODAL = ("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")  # transformers' lists of types that hold a text decoder
FEW_ENTRIES = 10_000  # of a folder that are looked at
TASK_HEADS = re.compile(
    r"(SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice|NextSentencePrediction"
    r"|ImageClassification|Reward(Model)?)$"
)

# ---- folders without the weights of a model ------------------------------------------------------------------------


def instead_of_weights(folder: Path) -> str:
    """What a folder without model.safetensors, its index and a .gguf file has instead, and the way out.

    The end of "expected .safetensors or .gguf weights, got …".
    """
    files = _Files(folder)
    for look in (_adapter, _delta, _unfinished, _cache, _parts, *_FORMATS, _models_below):
        if (found := look(files)) is not None:
            return found
    if not files.names:
        return "an empty folder"
    return f"neither among its {len(files.names)} entries (such as {files.names[0]}): name the folder of a model"


class _Files:
    """The first names in a folder, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = sorted(path.name for path, _ in zip(folder.iterdir(), range(FEW_ENTRIES), strict=False))

    def first(self, *patterns: str) -> str | None:
        """The first name that one of the patterns (of regular expressions) covers in full."""
        return next((name for name in self.names if any(re.fullmatch(one, name) for one in patterns)), None)


def _adapter(files: _Files) -> str | None:
    return adapter(path, str(files.folder)) if (path := files.folder / "adapter_config.json").is_file() else None


def _delta(files: _Files) -> str | None:
    for name in files.names:
        if name.endswith(".safetensors") and is_delta(files.folder / name):
            return f"a delta that fasttrace wrote ({name}): {_WITH_DELTA}"
    return None


def _unfinished(files: _Files) -> str | None:
    found = unfinished(files.folder)
    return None if found is None else f"a download that has not finished ({found}): {AGAIN}"


def _cache(files: _Files) -> str | None:
    if not {"blobs", "snapshots"} <= {*files.names}:
        return None
    name = files.folder.name.removeprefix("models--").replace("--", "/")
    whole = [one for one in sorted((files.folder / "snapshots").glob("*")) if one.is_dir()]
    ways = [f"name its snapshot {whole[-1]}"] if whole else []
    ways += [f"give the hub id {name}"] if files.folder.name.startswith("models--") else []
    return f"a folder of the hub's cache: {' or '.join(ways) or AGAIN}"


def _parts(files: _Files) -> str | None:
    name = files.first(r"model-\d+-of-\d+\.safetensors")
    return None if name is None else f"parts such as {name} without the index that names them: {AGAIN}"


def _of(what: str, way: str, *patterns: str, pickled: bool = False) -> Callable[[_Files], str | None]:
    """A look for a format by the names of its files. FOLDER in the way out is the folder."""

    def look(files: _Files) -> str | None:
        name = files.first(*patterns)
        never = _NEVER if pickled else ""
        return None if name is None else f"{what} ({name}){never}: {way.replace('FOLDER', str(files.folder))}"

    return look


_NEVER = ", which fasttrace never unpickles"
_CONVERT = (
    'if you trust it, convert it once with transformers.AutoModelForCausalLM.from_pretrained("FOLDER")'
    '.save_pretrained("NEW"), and copy the tokenizer\'s files there'
)
_ORIGINAL_LAYOUT = "take the folder in transformers' format, which has a config.json, or convert it with transformers'"
_WITH_DELTA = "load the model that it was made for, and apply it with ft.apply_delta(model, path) or --delta"
_FORMATS = (
    _of(
        "a checkpoint in Meta's own format",
        f"{_ORIGINAL_LAYOUT} convert_llama_weights_to_hf.py",
        r"consolidated\.\d+\.pth",
        pickled=True,
    ),
    _of(
        "a checkpoint in Mistral's own format",
        f"{_ORIGINAL_LAYOUT} convert_mistral_weights_to_hf.py",
        r"consolidated.*\.safetensors",
    ),
    _of("shards of a distributed checkpoint", "save the whole model with save_pretrained", r".*\.distcp"),
    _of(
        "a checkpoint of DeepSpeed",
        "make one file of it with zero_to_fp32.py and its --safe_serialization",
        r"global_step\d+",
        "zero_to_fp32.py",
    ),
    _of(
        "pickled weights",
        _CONVERT,
        r"pytorch_model.*\.bin",
        r".*\.(pt|pth|ckpt|pkl)",
        r"model.*\.bin",
        pickled=True,
    ),
    _of("weights in ExLlama's format", ORIGINAL, r"output(-\d+-of-\d+)?\.safetensors"),
    _of("an ONNX export", ORIGINAL, r".*\.onnx(_data)?", "onnx"),
    _of("an MLX export", ORIGINAL, r"weights.*\.npz", r".*\.npz"),
    _of(
        "weights of TensorFlow or Flax",
        f"{ORIGINAL}, or convert them with an older transformers (4.x)",
        r".*\.h5",
        r".*\.msgpack",
        r".*\.ckpt\.index",
    ),
    _of("an engine of TensorRT-LLM", ORIGINAL, r".*\.engine"),
    _of("an OpenVINO export", ORIGINAL, r"openvino_model\.(bin|xml)"),
    _of("a file in an older format of llama.cpp", "take its .gguf file", r".*ggml.*\.bin"),
    _of("a pipeline of diffusers", "fasttrace needs a language model", "model_index.json"),
    _of("parts of a model", AGAIN, r"model\.safetensors\.index\.json"),
)


def _models_below(files: _Files) -> str | None:
    below = [
        one.name
        for name in files.names
        if (one := files.folder / name).is_dir() and ((one / "config.json").is_file() or any(one.glob("*.gguf")))
    ]
    original = files.folder / "original"
    if original.is_dir() and (found := _FORMATS[0](_Files(original)) or _FORMATS[1](_Files(original))) is not None:
        return f"in 'original' {found}"
    if not below:
        return None
    many = "a folder" if len(below) == 1 else f"{len(below)} folders"
    return f"{many} with models: name one of them, such as {files.folder / below[-1]}"


def unfinished(folder: Path) -> str | None:
    """The name of a file whose download has not finished, as hf, curl and browsers name it, or None."""
    below = (folder, folder / ".cache" / "huggingface" / "download", folder / "blobs", folder.parent.parent / "blobs")
    # The hub's cache has its files in blobs/, beside the snapshot that links to them.
    for where in below if folder.parent.name == "snapshots" else below[:3]:
        for ending in ("incomplete", "part", "crdownload", "aria2"):
            if (found := next(iter(sorted(where.glob(f"*.{ending}"))), None)) is not None:
                return str(found.relative_to(folder)) if found.is_relative_to(folder) else str(found)
    return None


def adapter(config: Path, where: str) -> str:
    """What an adapter is an adapter of, and the way to a model. config: its adapter_config.json, in `where`."""
    about = _read(config)
    base, modules = about.get("base_model_name_or_path"), about.get("target_modules")
    of = f" of {shown(base)}" if isinstance(base, str) and base else ""
    name = base if isinstance(base, str) and base else "BASE"
    # An edit that fasttrace exported: whole names of down-projections, and a scale of 1.
    own = isinstance(modules, list) and bool(modules) and all(re.search(r"\.\d+\.", str(one)) for one in modules)
    delta = ", or apply the delta that it was exported from (ft.apply_delta)" if own else ""
    return (
        f"a PEFT adapter{of} (adapter_config.json): merge it into its base model, as in peft.PeftModel.from_pretrained("
        f'transformers.AutoModelForCausalLM.from_pretrained("{name}"), "{where}").merge_and_unload()'
        f'.save_pretrained("merged"){delta}'
    )


def is_delta(path: Path) -> bool:
    """Whether a safetensors file is an edit that fasttrace wrote. Its header is read, no tensor."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            head = file.read(min(size, 2**20))
        return b'"__metadata__"' in head and b'\\"kind\\": \\"delta\\"' in head
    except OSError:
        return False


# ---- files --------------------------------------------------------------------------------------------------------


def instead_of_folder(path: Path) -> str:
    """What a file is that was given as a model, and the way out."""
    if path.suffix == ".safetensors":
        if is_delta(path):
            return f"a delta that fasttrace wrote: {_WITH_DELTA}"
        return f"one of a model's files: name its folder, {path.parent}"
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        return f"pickled weights{_NEVER}: {_CONVERT.replace('FOLDER', str(path.parent))}"
    if path.name in ("config.json", "model.safetensors.index.json", "tokenizer.json"):
        return f"one of a model's files: name its folder, {path.parent}"
    return "another file"


def check_parts(path: Path) -> None:
    """Raise ModelError for a part of a split .gguf file."""
    if (part := PART.search(path.name)) is not None:
        first = PART.sub(f"-{1:05}-of-{int(part[2]):05}.gguf", path.name)
        raise ModelError(
            f"model file '{path}': expected a whole .gguf file, got part {int(part[1])} of {int(part[2])}: join them "
            f"with llama.cpp's `llama-gguf-split --merge {first} whole.gguf`"
        )


def damage(path: Path) -> str | None:
    """What stands in place of a file's content, and the way out, or None where its beginning says nothing."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(100)
    except OSError:
        return None
    if not size:
        return "an empty one (0 bytes): download it again"
    if head.startswith(POINTER):
        return f"a git-lfs pointer of {size} bytes in its place: run `git lfs pull` in its folder, or download it again"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "a web page in its place: download the file itself"
    if path.suffix == ".safetensors" and size > 8 and (whole := _whole_size(path)) is not None and size < whole:
        return f"{size:,} of its {whole:,} bytes: download it again"
    return None


def _whole_size(path: Path) -> int | None:
    """The bytes that a safetensors file should have, by its header, or None for a header that cannot be read."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > 100_000_000:
            return None
        text = file.read(length)
    if len(text) < length:
        return None
    try:
        header = json.loads(text)
        ends = [about["data_offsets"][1] for name, about in header.items() if name != "__metadata__"]
        return 8 + length + int(max(ends, default=0))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def missing_shards(files: Mapping[str, Path | None], folder: Path) -> str:
    """Which files an index names that are missing, and the way out. files: each by its name, None for a missing one."""
    gone = sorted(name for name, path in files.items() if path is None)
    found = unfinished(folder)
    beside = f", and '{found}', which has not finished" if found else ""
    return f"{len(files) - len(gone)} of {len(files)}, without '{gone[0]}'{beside}: {AGAIN}"


def instead_of_config(folder: Path) -> str:
    """What a folder with weights has instead of a config.json, and the way out."""
    files = _Files(folder)
    for look in (_delta, *_FORMATS[:2]):
        if (found := look(files)) is not None:
            return found
    return "none: take it from the model that the weights are of"


def instead_of_tokenizer(folder: Path) -> str:
    """What a folder without a tokenizer.json has instead, and the way out."""
    files = _Files(folder)
    name = files.first(r"tekken\.json", r".*\.tiktoken", r"(tokenizer|spiece|sentencepiece.*)\.model")
    found = "none" if name is None else f"only {name}, which takes sentencepiece, tiktoken or mistral-common to convert"
    return (
        f"{found}: copy the tokenizer's files of the model that it was made from into the folder, or name that model "
        "(tokenizer=…, --tokenizer)"
    )


# ---- configs ------------------------------------------------------------------------------------------------------


def check_kind(config: Mapping[str, Any], where: str, *, embeds: bool, trusted: bool) -> None:
    """Raise ModelError where a config.json is not that of a causal language model which transformers has.

    where: the folder or hub id. embeds: whether the modules.json of a model for embeddings is beside it. trusted:
    whether code of the repository may run.
    """
    if (reason := _other_kind(config, embeds=embeds) or _unknown(config, trusted=trusted)) is not None:
        raise ModelError(f"model '{where}': expected a causal language model of transformers, got {reason}")


def _other_kind(config: Mapping[str, Any], *, embeds: bool) -> str | None:
    """What a config describes that computes no next token, or in another format, and the way out."""
    names = config.get("architectures")
    classes = [one for one in names if isinstance(one, str)] if isinstance(names, list) else []
    if embeds:
        return (
            "a model for embeddings (sentence-transformers): take the language model that it was trained from, or wrap "
            "its transformers model in memory (ft.wrap_model)"
        )
    if classes and all(TASK_HEADS.search(one) for one in classes):
        return f"{_a(classes[0])}, whose head scores texts: take the language model that it was trained from"
    method = config.get("quantization_config")
    method = method.get("quant_method") if isinstance(method, Mapping) else None
    if method in ("exl2", "exl3"):
        return f"weights in ExLlama's format ({method}): {ORIGINAL}"
    if isinstance(config.get("quantization"), Mapping):
        return f"weights that MLX quantised (quantization in config.json): {ORIGINAL}"
    return None


def _unknown(config: Mapping[str, Any], *, trusted: bool) -> str | None:
    """Why no class of transformers computes next tokens with a config, and the way out."""
    import transformers
    from transformers.models.auto import configuration_auto, modeling_auto

    from fasttrace.models.adapter import Decoder

    kind = config.get("model_type")
    if kind in Decoder.registry:
        return None
    own = config.get("auto_map")
    if isinstance(own, Mapping) and own and kind not in configuration_auto.CONFIG_MAPPING_NAMES:
        if trusted:
            return None
        file = str(next(iter(own.values()))).rpartition("--")[2].partition(".")[0]
        return (
            f"model type {shown(kind)}, which only code of its repository computes ({file}.py): read that code, and "
            "give trust_remote_code=True (--trust-remote-code) to run it on this machine"
        )
    if not isinstance(kind, str) or not kind:
        return None if kind is None else f"model type {shown(kind)}"
    if kind not in configuration_auto.CONFIG_MAPPING_NAMES:
        made = config.get("transformers_version")
        newer = isinstance(made, str) and made != transformers.__version__
        by = f" (the model was saved with {made})" if newer else ""
        return (
            f"model type '{kind}', which transformers {transformers.__version__} does not know{by}: "
            "pip install --upgrade transformers, and if that does not know it either, it is misspelt in config.json"
        )
    if any(kind in getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES", {}) for name in MULTIMODAL):
        return None  # `adapter_for` looks at the decoder
    if kind in modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES:
        return f"model type '{kind}', which reads speech"
    if kind in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return f"model type '{kind}', an encoder-decoder, whose next tokens follow from another text"
    if kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_decoder"):
        return f"model type '{kind}', an encoder, which reads tokens in both directions"
    known = kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return None if known else f"model type '{kind}', which continues no text"


def _a(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIO' else 'a'} {name}"


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, empty where the file has none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


# ---- the hub ------------------------------------------------------------------------------------------------------


def hub_fault(error: BaseException, where: str) -> str:
    """Why a hub id could not be read, and the way out, from the errors of huggingface_hub behind `error`."""
    from huggingface_hub import constants, errors

    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__

    def behind(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in chain)

    if behind(errors.GatedRepoError):
        return (
            "its repository is gated: ask for access on its page while logged in, then `hf auth login` on this machine "
            "or set HF_TOKEN"
        )
    if behind(errors.RepositoryNotFoundError):
        return (
            "the hub has no such repository, or a private one: check the spelling (owner/name), or log in with "
            "`hf auth login`; a folder's name must begin with ./ or /"
        )
    if behind(errors.HFValidationError):
        return "expected an existing folder, a .gguf file or a hub id (owner/name), got none of them"
    if behind(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError, TimeoutError):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        return (
            f"there is no folder of this name, {why}, and its cache on this machine lacks the model: copy the model's "
            "folder here and name that, or download it where there is a network"
        )
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"the hub could not be read ({said.rstrip('.')})"
