"""How the quantised weights of a folder or hub repository are read, by the quant_method in its config.json.

bitsandbytes and torchao models are loaded by transformers with their packages. GPTQ, AWQ, compressed-tensors and FP8
layers are kept as the checkpoint packs them (`packing.py`), without a package. transformers dequantises MXFP4 when it
loads it.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fasttrace.errors import ModelError, shown
from fasttrace.models.configs import keeps_float32
from fasttrace.models.packing import PackedLinear
from fasttrace.models.quantised import packed_parameters, quantised
from fasttrace.optional import require

PACKAGES = {"bitsandbytes": "bitsandbytes", "torchao": "torchao"}  # method → the package that transformers needs
READ_HERE = ("gptq", "awq", "compressed-tensors", "fp8")
DEQUANTISED = ("mxfp4",)
METHODS = (*PACKAGES, *READ_HERE, *DEQUANTISED)
# What the name of a packed tensor has in it.
SIGNS = {
    "bitsandbytes": (".SCB", ".quant_state."),
    "torchao": ("_qdata",),
    "gptq": (".qweight",),
    "awq": (".qweight",),
    "compressed-tensors": (".weight_packed", ".weight_scale"),
    "fp8": (".weight_scale_inv",),
    "mxfp4": ("_blocks",),
}
READER = "fasttrace"  # the name among transformers' quantisation methods of what reads the layers here

TORCH = {
    **{"I8": torch.int8, "U8": torch.uint8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
    **{"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64},
}
# The tensors of a packed layer, of whichever format.
PARTS = (
    "qweight", "qzeros", "scales", "g_idx", "weight", "weight_packed", "weight_shape", "weight_scale",
    "weight_zero_point", "weight_g_idx", "weight_scale_inv",
)  # fmt: skip
# Tensors beside the weights that say how a package quantises activations and caches, which fasttrace does not.
OF_ACTIVATIONS = re.compile(
    r"\.(input_scale|input_zero_point|input_global_scale|output_scale|[qkv]_scale|weight_format)$"
)

# A tensor of one expert that says how its weights are packed.
PACKED_EXPERT = re.compile(r"\.experts\.\d+\..*(weight_scale_inv|weight_scale|qweight|qzeros|weight_packed|scales)$")
Headers = Mapping[str, tuple[tuple[int, ...], str]]  # tensor name → (shape, dtype as safetensors spells it)


def method_of(config: Mapping[str, Any], where: str) -> str | None:
    """The quantisation method of a config.json, or None for plain weights.

    Raises ModelError for a method or a variant of one that fasttrace does not read, and PackageError for one whose
    package is missing.
    """
    how = config.get("quantization_config", config.get("compression_config"))
    if how is None and isinstance(text := config.get("text_config"), dict):
        how = text.get("quantization_config")
    if how is None:
        return None
    given = how.get("quant_method") if isinstance(how, dict) else None
    method = "bitsandbytes" if given is None and isinstance(how, dict) and _is_bitsandbytes(how) else given
    if method not in METHODS:
        raise ModelError(
            f"model '{where}': expected plain weights, or weights quantised by {', '.join(METHODS)}, got "
            f"{shown(method or how)} in config.json: save the model dequantised (hf.dequantize()), or take the original"
        )
    if (variant := _variant(method, how)) is not None:
        raise ModelError(
            f"model '{where}': expected {variant} (quantization_config in config.json): save the model dequantised, or "
            "take the original"
        )
    if method in PACKAGES:
        require(PACKAGES[method])
    return str(method)


def _is_bitsandbytes(how: Mapping[str, Any]) -> bool:
    return bool(how.get("load_in_4bit") or how.get("load_in_8bit"))


def _variant(method: str, how: Mapping[str, Any]) -> str | None:
    """What was expected of a method's settings, and what was found, where fasttrace does not read them, or None."""
    if method == "gptq" and (found := how.get("checkpoint_format", "gptq")) not in ("gptq", "gptq_v2"):
        return f"a GPTQ checkpoint_format gptq or gptq_v2, got {shown(found)}"
    if method == "awq" and (found := str(how.get("version", "gemm")).lower()) != "gemm":
        return f"AWQ weights of version gemm, got {shown(found)}"
    if method == "compressed-tensors":
        formats = {how.get("format"), *(g.get("format") for g in dict(how.get("config_groups") or {}).values())} - {
            None
        }
        read = {"pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "dense"}
        if formats - read - {"mixed-precision"}:
            return f"compressed-tensors of the formats {', '.join(sorted(read))}, got {shown(sorted(formats - read))}"
        if dict(how.get("sparsity_config") or {}).get("format", "dense") != "dense":
            return "compressed-tensors without sparsity, got a sparse format"
    return None


def prepare(
    config: Any, method: str, headers: Headers, placed: Mapping[str, Any], device: str, where: str
) -> dict[str, Any]:
    """The keywords with which transformers loads a quantised model, beside those of `placed`.

    config: its transformers config. headers: of its tensors. device: where its weights go, unless `placed` says more.
    Raises ModelError where none of the tensors is packed, where experts are, and for a method whose weights cannot be
    on disk.
    """
    if method in READ_HERE and (experts := [name for name in headers if PACKED_EXPERT.search(name)]):
        raise ModelError(
            f"model '{where}': expected experts with plain weights, got packed ones ({method}, such as "
            f"'{experts[0]}'), which fasttrace does not read: take the weights before they were quantised"
        )
    places = placed.get("device_map")
    if method in PACKAGES and isinstance(places, Mapping) and "disk" in places.values():
        raise ModelError(
            f"model '{where}': expected weights that {method} has packed to be in memory, got the device 'disk': take "
            "the weights before they were quantised, or another device"
        )
    if not any(sign in name for name in headers for sign in SIGNS[method]):
        raise ModelError(
            f"model '{where}': expected weights that {method} has packed, as config.json says, got plain ones: remove "
            "quantization_config from config.json, or take the quantised weights"
        )
    # Packages that can use a GPU would take it unasked.
    keywords = {"device_map": {"": device}, **placed}
    if method in READ_HERE:
        settings = _settings(config)
        config.quantization_config = _reader()(method=method, settings=settings, headers=dict(headers))
        keywords["config"] = config
    elif method == "mxfp4":
        from transformers import Mxfp4Config

        keywords["quantization_config"] = Mxfp4Config(dequantize=True)
    return keywords


def finish(hf: Any, method: str, dtype: torch.dtype) -> None:
    """Give a loaded model the settings of its config.json back in the place of `prepare`'s, and its plain weights
    `dtype`, but for those that stay float32: transformers leaves them as a bitsandbytes checkpoint has them."""
    packed = {id(part) for _, module, _ in quantised(hf) for part in packed_parameters(module)}
    for path, weight in hf.named_parameters():
        if id(weight) not in packed and weight.is_floating_point() and not keeps_float32(hf, path):
            weight.data = weight.data.to(dtype)
    if method in READ_HERE:
        found = hf.config.quantization_config
        hf.config.quantization_config = {**found.settings, "quant_method": method}
        del hf.hf_quantizer


def forget(hf: Any) -> None:
    """Take from a model what transformers did to its weights when it read them packed, and would undo to write them."""
    if (steps := getattr(hf, "_weight_conversions", None)) is not None:
        own = [step for step in steps if not any(hasattr(op, "hf_quantizer") for op in getattr(step, "operations", ()))]
        hf._weight_conversions = own


def _settings(config: Any) -> dict[str, Any]:
    own = getattr(config, "quantization_config", None) or getattr(config, "compression_config", None)
    return dict(own) if isinstance(own, dict) else dict(own.to_dict())  # type: ignore[union-attr]


@functools.cache
def _reader() -> Any:
    """The class of the quantisation config that names READER, once transformers knows it."""
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    @register_quantization_config(READER)
    class Settings(QuantizationConfigMixin):
        def __init__(self, **settings: Any) -> None:
            self.__dict__.update(settings, quant_method=READER)

        def get(self, name: str, default: Any = None) -> Any:
            return getattr(self, name, default)

    @register_quantizer(READER)
    class Reader(HfQuantizer):
        requires_calibration = True

        def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
            asked = self.quantization_config
            ready = torch.empty(0)
            ready._is_hf_initialized = True  # type: ignore[attr-defined]
            for name, packed in packed_layers(model, asked.method, asked.settings, asked.headers):
                if "weight" not in packed._parameters:
                    vars(packed)["weight"] = ready  # for families that initialise weights by their names
                model.set_submodule(name, packed)

        def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
            for module in model.modules():
                if isinstance(module, PackedLinear):
                    vars(module).pop("weight", None)

        def is_serializable(self) -> bool:
            return False

        @property
        def is_trainable(self) -> bool:
            return False

    return Settings


def packed_layers(
    model: nn.Module, method: str, settings: Mapping[str, Any], headers: Headers
) -> Iterator[tuple[str, PackedLinear]]:
    """(name, the empty layer that takes its place) of every linear layer whose weight the checkpoint packs."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) and type(module).__name__ != "Conv1D":
            continue
        for stored in (name, name.removeprefix(prefix)):
            found = {part: headers[f"{stored}.{part}"] for part in PARTS if f"{stored}.{part}" in headers}
            if set(found) - {"weight"}:
                with torch.device("meta"):
                    yield name, _layer(name, module, method, settings, found)
                break


def _layer(
    name: str, module: Any, method: str, settings: Mapping[str, Any], found: dict[str, tuple[tuple[int, ...], str]]
) -> PackedLinear:
    parts: dict[str, Tensor] = {part: torch.empty(shape, dtype=TORCH[dtype]) for part, (shape, dtype) in found.items()}
    transposed = type(module).__name__ == "Conv1D"
    out, width = module.weight.shape if not transposed else module.weight.shape[::-1]
    needed: tuple[str, ...]
    if method in ("gptq", "awq"):
        layout, needed, bits = method, ("qweight", "qzeros", "scales"), int(settings.get("bits", 4))
        shape = (width, out * bits // 32) if method == "awq" else (-(-width * bits // 32), out)
    elif "weight_packed" in parts:
        layout, needed = "packed", ("weight_packed", "weight_scale")
        bits = 32 * parts["weight_packed"].shape[-1] // width
        shape = (out, -(-width * bits // 32))
    else:
        layout, needed, bits, shape = "scaled", ("weight",), 8, (out, width)
    if missing := [part for part in needed if part not in parts]:
        raise ModelError(f"the quantised layer '{name}': expected the tensors {', '.join(needed)}, got no {missing[0]}")
    if (got := tuple(parts[needed[0]].shape)) != shape or not 1 <= bits <= 8:
        raise ModelError(f"the quantised layer '{name}': expected {needed[0]} of shape {shape}, got {got}")
    number = "fp8" if layout == "scaled" and parts["weight"].is_floating_point() else f"int{bits}"
    kind = "fp8" if method == "fp8" else f"{method}-{number}"
    bias = None if module.bias is None else torch.empty_like(module.bias)
    packed = PackedLinear(kind, layout, (out, width), bits, parts, bias, _block(settings), _one_less(method, settings))
    if transposed:
        packed.source_cls = type(module)  # type: ignore[assignment]
    return packed


def _block(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of a scale's block, where the settings name them."""
    groups = dict(settings.get("config_groups") or {}).values()
    named = [dict(group.get("weights") or {}).get("block_structure") for group in groups]
    block = settings.get("weight_block_size") or next((one for one in named if one), None)
    return None if block is None else (int(block[0]), int(block[1]))


def _one_less(method: str, settings: Mapping[str, Any]) -> bool:
    return method == "gptq" and settings.get("checkpoint_format", "gptq") == "gptq"
