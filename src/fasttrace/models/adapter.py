"""The interface of a decoder model through which fasttrace drives its blocks (`block.py`).

A family's file in `families/` subclasses `Block` and `Decoder`, and registers itself under transformers'
`config.model_type`.
"""

import functools
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from fasttrace.errors import ModelError
from fasttrace.models.block import Block, Rotary
from fasttrace.models.configs import PLAIN_LOGITS, relevant, text_config
from fasttrace.models.modes import exact_products
from fasttrace.models.placement import device_of, finite_weights, is_frozen, is_offloaded, present
from fasttrace.models.quantised import as_shapes, quantisation, weight_tensors
from fasttrace.models.unfit import is_explained, why_not
from fasttrace.ops.bit_sums import bit_sums
from fasttrace.packaged import full_name
from fasttrace.settings.kinds import Kind, instance
from fasttrace.show.words import count
from fasttrace.windows import default_layer


class Decoder(ABC):
    """A causal language model, as a stack of `Block`s between an embedding and an unembedding.

    hf: the transformers model, whose parameters are used in place, in evaluation mode and without gradients (what
    `wrap_model` returns has its own modules, see there). It may be a multimodal model that holds the decoder.
    tokenizer: its (fast) tokenizer. config: that of the decoder, which is a part of a multimodal model's.
    base: the module that contains the decoder's blocks.
    """

    registry: ClassVar[dict[str, type["Decoder"]]] = {}
    blocks: list[Block]
    final_norm: nn.Module
    norm_kind: str  # "rms" or "layer": how `final_norm` is computed, for the fused log-probability op
    embed_scale: float | None = None  # factor by which the embedding module multiplies its rows
    logit_scale: float = 1.0  # factor of the products with the unembedding
    logit_softcap: float | None = None  # bound of the absolute logits, after that factor
    tf32: bool = False  # whether products of the float32 weights on CUDA use TF32 while fasttrace computes
    # prompts and keywords → text; texts.py sets it, since it drives the blocks and thus imports this file
    generate: ClassVar[Callable[..., Any]]
    origin: Mapping[str, Any] | None = None  # the arguments of `load_model`, if it made the model
    _described: tuple[str, str] | None = None  # bit sums of the weights, and the words that `wrap_model` got for them
    _identity: tuple[str, str] | None = None  # bit sums of the weights, and the model's hash with them

    def __init__(self, hf: Any, tokenizer: Any, name: str) -> None:
        self.hf = hf.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.config = text_config(hf.config)
        self.base = (hf.get_decoder() if self.is_multimodal else hf).base_model
        self.applied: list[Any] = []  # edits, as `apply_delta` returned them, in their order
        self.quantisation = quantisation(hf)
        with self.shapes():
            self.bind()
            if hf.config.model_type in PLAIN_LOGITS:
                self.logit_scale, self.logit_softcap = 1.0, None
        self._entry = self._entry_modules()

    def __repr__(self) -> str:
        kind, layers = self.config.model_type, count(self.n_layers, "layer")
        return f"Model {full_name(self.name)}: {kind}, {layers}, {self.dtype_name}, {self.device}"

    def _entry_modules(self) -> list[nn.Module]:
        """Everything before block 0, whatever its name. Modules that contain others have no weights of their own."""
        inside = {id(part) for layer in self.layer_modules for part in layer.modules()}
        inside |= {id(part) for module in self.exit_modules for part in module.modules()}
        return [m for m in self.base.modules() if id(m) not in inside and next(m.children(), None) is None]

    @classmethod
    def register(cls, *model_types: str) -> Callable[[type["Decoder"]], type["Decoder"]]:
        """Class decorator: use this adapter for these values of `config.model_type`."""

        def add(family: type["Decoder"]) -> type["Decoder"]:
            for model_type in model_types:
                cls.registry[model_type] = family
            return family

        return add

    @classmethod
    def refusal(cls, config: Any) -> str | None:
        """Why the family's blocks cannot compute this config, as a clause for `adapter_for`'s message, or None."""
        return None

    @abstractmethod
    def bind(self) -> None:
        """Set `blocks`, `final_norm` and `norm_kind` from the parts of `self.base`."""

    @property
    def embed_weight(self) -> Tensor:
        """(V, d) token embeddings."""
        weight: Tensor = self.hf.get_input_embeddings().weight
        return weight

    def embed_ids(self, ids: Tensor) -> Tensor:
        """ids: (N,) int64 → (N, d), the embedding module's output, to which noise is added."""
        x = self.embed_weight[ids]
        return x if self.embed_scale is None else x * self.embed_scale

    def enter(self, x: Tensor, positions: Tensor) -> Tensor:
        """x: (N, d) from `embed_ids`, positions: (N,) → (N, d) input of block 0 (learned positions, norms)."""
        return x

    def rotary(self, positions: Tensor) -> Rotary:
        """positions: (N,) int64 → the blocks' position tables: usually cos and sin (N, rotary dims), or () for none."""
        return ()

    def like(self, positions: Tensor) -> Tensor:
        """What transformers' rotary modules read the model's dtype and the device of `positions` from. The embedding
        itself may be on another device, or offloaded."""
        return torch.empty(0, dtype=self.dtype, device=positions.device)

    def products(self) -> AbstractContextManager[None]:
        """While the body runs, matrix products are as exact as the model was loaded, whatever torch is set to."""
        return exact_products(self.tf32)

    @contextmanager
    def _ready(self, device: torch.device, *modules: nn.Module) -> Iterator[None]:
        """While the body runs, the modules' weights are on `device`, which is the current GPU if it is a GPU."""
        # fasttrace's kernels start on the current GPU, whichever GPU their tensors are on.
        current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with current, self.products(), present(*modules, dtype=self.dtype):
            yield

    def shapes(self) -> AbstractContextManager[None]:
        """While the body runs, quantised weights have the shape of their use, and no values."""
        return as_shapes(self.hf)

    def layers(self, order: Iterable[int] | None = None) -> Iterator[tuple[int, Block]]:
        """(layer, block) of every layer, or of those in `order`.

        A block's weights are on `block.device` until the next block is asked for. The caller moves residual rows,
        rotary tables and row indices there.
        """
        for layer in range(self.n_layers) if order is None else order:
            with self.brought(layer) as block:
                yield layer, block

    @contextmanager
    def brought(self, layer: int) -> Iterator[Block]:
        """The block of a layer, whose weights are on `block.device` while the body runs. As `layers`, for one layer."""
        block = self.blocks[layer]
        frozen = (block.layer,) if block.frozen else ()
        with self._ready(block.device, *frozen), block.held():
            yield block

    @contextmanager
    def entry(self) -> Iterator[None]:
        """The embeddings (and learned positions) are on `self.device` while the body runs."""
        with self._ready(self.device, *self._entry):
            yield

    @contextmanager
    def head(self) -> Iterator[None]:
        """`final_norm` is on `norm_device` and the unembedding on `unembed_device` while the body runs."""
        with self._ready(self.unembed_device, *self.exit_modules):
            yield

    @functools.cached_property
    def frozen_head(self) -> bool:
        """Whether the final norm or the unembedding is there only inside `head`."""
        return is_frozen(self.final_norm) or is_frozen(self.hf.get_output_embeddings())

    @property
    def exit_modules(self) -> tuple[nn.Module, ...]:
        """The modules that `leave`, the final norm and the unembedding compute with."""
        return self.final_norm, self.hf.get_output_embeddings()

    def leave(self, h: Tensor) -> Tensor:
        """h: (R, d) residual after the last block → (R, d) input of `final_norm` (h itself in almost every model)."""
        return h

    @property
    def norm_device(self) -> torch.device:
        """Device of the final norm."""
        return device_of(self.final_norm)

    @property
    def unembed_device(self) -> torch.device:
        """Device of the unembedding."""
        return device_of(self.hf.get_output_embeddings())

    @property
    def unembed_weight(self) -> Tensor:
        """(V, d) output embeddings."""
        weight: Tensor = self.hf.get_output_embeddings().weight
        return weight

    @property
    def unembed_bias(self) -> Tensor | None:
        """(V,) output bias, or None."""
        bias: Tensor | None = self.hf.get_output_embeddings().bias
        return bias

    def finish_logits(self, products: Tensor) -> Tensor:
        """products: (…) of final rows with unembeddings, biases added → the logits: scaled, then capped."""
        logits = products if self.logit_scale == 1.0 else products * self.logit_scale
        cap = self.logit_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    @property
    def final_norm_weight(self) -> Tensor:
        """(d,) factor of the final norm."""
        weight: Tensor | None = getattr(self.final_norm, "weight", None)
        return torch.ones(self.width, dtype=self.dtype, device=self.unembed_device) if weight is None else weight

    @property
    def final_norm_bias(self) -> Tensor | None:
        """(d,) bias of the final norm, or None."""
        bias: Tensor | None = getattr(self.final_norm, "bias", None)
        return bias

    @property
    def norm_eps(self) -> float:
        """ε of the final norm."""
        eps = getattr(self.final_norm, "variance_epsilon", None)
        return float(self.final_norm.eps if eps is None else eps)  # type: ignore[arg-type]

    def check_driven(self) -> None:  # noqa: B027  a model with an adapter passes
        """Raise ModelError where fasttrace cannot drive the model's blocks, and thus has no `blocks`."""

    @property
    def layer_modules(self) -> list[nn.Module]:
        """transformers' module of each layer."""
        return [block.layer for block in self.blocks]

    @property
    def is_multimodal(self) -> bool:
        """Whether `hf` holds the decoder beside towers for images or sounds."""
        return self.config is not self.hf.config

    @property
    def causal(self) -> Any:
        """The part of `hf` whose forward takes token ids and returns logits: `hf`, or the language model in it.

        Llama 4's multimodal model holds a whole one. Its own forward fails in transformers 5.24, also for text alone.
        """
        inner = getattr(self.hf, "language_model", None)
        return inner if self.is_multimodal and hasattr(inner, "lm_head") else self.hf

    @property
    def n_layers(self) -> int:
        """Number of blocks L."""
        return len(self.blocks)

    @property
    def n_heads(self) -> int:
        """Number of attention heads that every layer has."""
        return min(block.n_heads for block in self.blocks)

    @property
    def width(self) -> int:
        """Width d of the residual stream."""
        return int(self.embed_weight.shape[1])

    @property
    def key_width(self) -> int:
        """Width m of the down-projection's input; that of one expert where rows are routed."""
        return self.blocks[0].key_width

    @property
    def n_experts(self) -> int:
        """The largest number of experts of a layer, a shared one included, or 0."""
        return max(block.n_experts for block in self.blocks)

    def down_name(self, layer: int) -> str:
        """Name of the module of a layer's down-projection in transformers' model, as in transformer.h.5.mlp.c_proj."""
        with self.brought(layer) as block:
            return self.name_of(block.down).removesuffix(".weight")

    def name_of(self, view: Tensor) -> str:
        """Name in transformers' model of the parameter that a tensor is a view of. Its layer is brought."""
        place = view.data_ptr()
        plain = ((name, weight) for name, weight in self.hf.named_parameters() if type(weight.data) is Tensor)
        return next(name for name, one in plain if 0 <= place - one.data_ptr() < max(1, one.nbytes))

    @property
    def vocab_size(self) -> int:
        """Rows V of the unembedding."""
        with as_shapes(self.hf.get_output_embeddings()):
            return int(self.unembed_weight.shape[0])

    @property
    def dtype(self) -> torch.dtype:
        """dtype of all activations, and of the weights in use."""
        return self.embed_weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the embedding, where packed rows are created."""
        return device_of(self.hf.get_input_embeddings())

    def reach(self, layer: int, token: int) -> float:
        """The last token whose final residual can depend on the residual after `layer` at `token`, or infinity.

        layer: 0-based, or −1 for the input of block 0. A block without a sliding window carries a change to every later
        token. A block with a window of w tokens carries it to the next w − 1. After the last block it spreads no
        further.
        """
        for block in self.blocks[layer + 1 :]:
            if block.sliding_window is None:
                return math.inf
            token += block.sliding_window - 1
        return token

    def check_moments(self, what: str) -> None:
        """Raise ModelError for float16, in which second moments of keys overflow. what: names the caller."""
        if self.dtype == torch.float16:
            raise ModelError(
                f"{what}: expected '{self.name}' in float32, bfloat16 or float64, got float16, in which second moments "
                "of keys overflow: convert it with hf.float() or hf.bfloat16() and wrap it again"
            )

    @property
    def dtype_name(self) -> str:
        """dtype as stored in a run: "float32", "tf32", "bfloat16" or "float64", and how weights are quantised, as in
        "bfloat16, nf4"."""
        name = "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")
        return name if self.quantisation is None else f"{name}, {self.quantisation}"

    @property
    def model_hash(self) -> str:
        """The model's identity in runs, moments and the store: 16 hex digits.

        It covers the weights (or the description given to `wrap_model`), the tokenizer, and the config without the keys
        that do not affect the computation. It is computed once, and again when `bit_sums` show that a weight was
        changed, whatever changed it. Attributes and buffers of modules, such as a norm's epsilon, are not covered.
        """
        sums = self.bit_sums()
        if self._identity is None or self._identity[0] != sums:
            self._identity = sums, self._hashed(sums)
        return self._identity[1]

    def set_identity(self, model_hash: str) -> str:
        """Give the model another `model_hash`, which it has until its weights change. Returns their `bit_sums`."""
        self._identity = self.bit_sums(), model_hash
        return self._identity[0]

    def expect_identity(self, sums: str, model_hash: str) -> None:
        """Say which `model_hash` the weights have if their `bit_sums` are these. Neither is computed here."""
        self._identity = sums, model_hash

    def describe_weights(self, words: str) -> None:
        """Let words stand for the weights in `model_hash`, as long as the weights do not change."""
        self._described = self.bit_sums(), words

    @torch.no_grad()
    def bit_sums(self) -> str:
        """A hash of `ops.bit_sums` of every weight, which shows whether weights have changed.

        On a GPU this is much faster than SHA-256 of the weights, which have to be copied to the host for that.
        Offloaded weights are read-only, and are not read.
        """
        weights = [] if is_offloaded(self.hf) else weight_tensors(self.hf)
        sums = [bit_sums(weight).cpu().numpy().tobytes() for weight in weights]
        return hashlib.sha256(b"".join(sums)).hexdigest()

    def _hashed(self, sums: str) -> str:
        config = relevant(self.hf.config.to_dict())
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        tokenizer = repr(self.tokenizer) if backend is None else backend.to_str()
        # A hash has no spaces, so a description never equals one.
        words = self._described[1] if self._described and self._described[0] == sums else None
        weights = self.weights_hash() if words is None else f"stated: {words}"
        parts = [weights, json.dumps(config, sort_keys=True, default=str), tokenizer]
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]

    @property
    def positions(self) -> int | None:
        """The most tokens of a sequence, or None for a model without such a bound."""
        most = getattr(self.config, "max_position_embeddings", None)
        rope = getattr(self.config, "rope_parameters", None) or {}
        for one in (rope, *rope.values()):  # some models have parameters for each layer type
            if isinstance(one, dict) and one.get("rope_type") == "longrope":
                # A longer sequence would need other rotation frequencies, but packed sequences share one set.
                most = one.get("original_max_position_embeddings", most)
        return most

    def check_length(self, tokens: int, what: str) -> None:
        """Raise ModelError where a sequence has more tokens than the model has positions. what: names the sequence."""
        most = self.positions
        if most is not None and tokens > most:
            raise ModelError(f"{what}: expected at most {most} tokens for '{self.name}' to read, got {tokens}")

    def room(self, tokens: int, wanted: int) -> int:
        """How many of `wanted` tokens the model can draw after a prompt of `tokens` tokens. The last one is not read,
        so it needs no position."""
        return wanted if self.positions is None else max(0, min(wanted, self.positions - tokens + 1))

    def weights_hash(self) -> str:
        """The first 16 hex digits of SHA-256 over the name, shape, dtype and bytes of every parameter, as loaded.

        Raises ModelError where a weight is NaN or infinite.
        """
        digest = hashlib.sha256()
        for name, weight in finite_weights(self.hf, self.name):
            digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
            digest.update(weight.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def default_layer(self) -> int:
        """The layer edited by default (`fasttrace.windows.default_layer`)."""
        return default_layer(self.n_layers, model_type=self.config.model_type)

    def edit_layers(self) -> list[int]:
        """The layers that a study edits: every fourth, the last, and `default_layer` (paper, section 4.2)."""
        return sorted({*range(0, self.n_layers, 4), self.n_layers - 1, self.default_layer()})


def _driven(value: Any) -> Any:
    """A model, as the argument of a function that drives its blocks. Raises ModelError for one without an adapter."""
    instance(Decoder)(value)
    value.check_driven()
    return value


_A_MODEL = "a model, as load_model or wrap_model returns it"
Model = Annotated[Decoder, Kind(_A_MODEL, _driven)]
"""A model as the argument of a public function that drives its blocks."""
AnyModel = Annotated[Decoder, Kind(_A_MODEL, instance(Decoder))]
"""A model as the argument of a public function that also takes one whose blocks fasttrace cannot drive."""


def adapter_for(config: Any) -> type[Decoder]:
    """The adapter for a transformers config, or for the text decoder in that of a multimodal model.

    Raises ModelError for a model type or a variant without an adapter.
    """
    decoder = config
    if not is_explained(config.model_type):
        if any(getattr(config, name, False) for name in ("is_encoder_decoder", "add_cross_attention")):
            raise ModelError(f"this '{config.model_type}' model has no adapter: it attends to an encoder")
        decoder = text_config(config)
    family = Decoder.registry.get(decoder.model_type)
    if family is None:
        what = f"model type '{decoder.model_type}'"
        if decoder is not config:
            what += f", the text decoder of this '{config.model_type}' model,"
        raise ModelError(f"{what} has no adapter: {why_not(decoder.model_type)}")
    if (reason := family.refusal(decoder)) is not None:
        raise ModelError(f"this '{config.model_type}' model has no adapter: {reason}")
    return family
