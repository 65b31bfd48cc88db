"""Models whose blocks fasttrace does not drive: transformers runs them whole, with hooks.

Such a model is a `HookedDecoder`. It can be traced with engine "hooked", and asked which facts it knows. All else needs
blocks, and refuses it.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fasttrace.errors import ModelError
from fasttrace.models.adapter import Decoder, adapter_for, text_config
from fasttrace.models.sublayers import FOUND, Sublayer, sublayers
from fasttrace.models.unfit import WAY_OUT, is_traceable

# Names that configs have for the most tokens of a sequence.
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "context_length")
MOST_TOKENS = 4096  # of one forward that reads texts
Change = Callable[[Tensor], Tensor | None]


class HookedDecoder(Decoder):
    """A causal decoder without an adapter. It has no `blocks`, `final_norm` or `norm_kind`.

    layer_modules: transformers' blocks, one a layer.
    """

    def bind(self) -> None:
        """Find the layers, and the embedding. Raises ModelError where there is no list of them."""
        self._layers = _stack(self.hf, self.name)
        # The modules are the decoder's own, but not their config.
        config, private = self.hf.config, copy.deepcopy(self.hf.config)
        for part in self.hf.modules():
            if getattr(part, "config", None) is config:
                part.config = private
        rescaled = any(getattr(part, "layers_are_rescaled", False) for part in self.hf.modules())
        if getattr(private, "rescale_every", 0) and not rescaled:
            raise ModelError(
                f"model '{self.name}': expected a forward that leaves its weights as they are, got one that divides "
                "them when it first runs in evaluation mode: set hf.config.rescale_every = 0"
            )
        if self.dtype == torch.float64 and getattr(private, "_experts_implementation", None):
            private._experts_implementation = "eager"  # grouped products have no float64
        self.embed_scale = None if _is_plain(self.hf.get_input_embeddings()) else 1.0

    def __getattr__(self, name: str) -> Any:
        if name in ("blocks", "final_norm", "norm_kind"):
            self.check_driven()
        raise AttributeError(f"{type(self).__name__} has no attribute '{name}'")

    def _entry_modules(self) -> list[nn.Module]:
        return [self.hf.get_input_embeddings()]

    def check_driven(self) -> None:
        """Raise ModelError, which says why the type has no adapter, and how the model can be traced."""
        raise ModelError(f"model '{self.name}': {why_hooked(self.hf.config)}")

    def embed_ids(self, ids: Tensor) -> Tensor:
        out: Tensor = self.hf.get_input_embeddings()(ids)
        return out

    @property
    def layer_modules(self) -> list[nn.Module]:
        return self._layers

    @property
    def n_layers(self) -> int:
        return len(self._layers)

    @property
    def n_heads(self) -> int:
        return int(getattr(self.config, "num_attention_heads", 0) or 0)

    @property
    def positions(self) -> int | None:
        found = (getattr(self.config, name, None) for name in POSITIONS)
        return next((int(most) for most in found if isinstance(most, int) and most > 0), None)

    def reach(self, layer: int, token: int) -> float:
        """Infinity: how far a block carries a change is not known."""
        return float("inf")


def decoder_for(config: Any) -> type[Decoder]:
    """The adapter for a transformers config, or `HookedDecoder` for a causal decoder that has none.

    Raises ModelError for a model that attends to an encoder, and for a type that forward passes cannot trace.
    """
    try:
        return adapter_for(config)
    except ModelError:
        decoder = text_config(config)
        of_encoder = any(getattr(decoder, name, False) for name in ("is_encoder_decoder", "add_cross_attention"))
        if of_encoder or not (is_traceable(config.model_type) and is_traceable(decoder.model_type)):
            raise
        return HookedDecoder


def keep_weights(hf: Any) -> None:
    """Let the forward of a model that has just been loaded leave its weights as they are. RWKV's divides them, against
    overflow in float16, when it first runs."""
    if getattr(hf.config, "rescale_every", 0):
        hf.config.rescale_every = 0


def why_hooked(config: Any) -> str:
    """Why a config has no adapter, and the way out, as a sentence without a full stop."""
    try:
        adapter_for(config)
    except ModelError as error:
        said = str(error)
        return said if "(--method hooked" in said else f"{said}; {WAY_OUT}"
    return f"model type '{config.model_type}' was wrapped without its adapter; {WAY_OUT}"


def _stack(hf: Any, name: str) -> list[nn.Module]:
    """transformers' blocks: the first list of modules that has as many as the config has layers."""
    count = getattr(text_config(hf.config), "num_hidden_layers", None)
    for part in hf.get_decoder().modules():
        if isinstance(part, nn.ModuleList) and len(part) == count:
            return list(part)
    raise ModelError(f"model '{name}': expected a list of its {count} layers among its modules, got none")


def _is_plain(embedding: nn.Module) -> bool:
    """Whether an embedding module gives rows of its weight as they are."""
    return type(embedding).forward is nn.Embedding.forward and getattr(embedding, "max_norm", None) is None


def places(model: Decoder, module: str) -> list[tuple[Sublayer, ...]]:
    """The modules of every layer that are its `module` (`sublayers`), of any decoder.

    Raises ModelError where a layer has none.
    """
    found = [sublayers(layer, module) for layer in model.layer_modules]
    lacking = [layer for layer, parts in enumerate(found) if not parts]
    if lacking:
        whole = [name for name in FOUND if all(sublayers(layer, name) for layer in model.layer_modules)]
        what = {"mlp": "MLP", "attn": "attention or other mixing of tokens", "head": "attention heads"}[module]
        some = f"{'layer' if len(lacking) == 1 else 'layers'} {', '.join(map(str, lacking))}"
        where = "any layer" if len(lacking) == len(found) else some
        raise ModelError(
            f"trace: module: expected one that every layer of '{model.name}' has ({', '.join([*whole, 'block'])}), got "
            f"{module}, but found no {what} in {where}"
        )
    return found


@contextmanager
def hooked(changes: Sequence[tuple[Sublayer, Change]]) -> Iterator[None]:
    """While the body runs, each change is called with the values of its sublayer. What it returns takes their place;
    with None they stay."""
    with ExitStack() as stack:
        for sublayer, change in changes:
            register = (
                sublayer.module.register_forward_pre_hook if sublayer.inward else sublayer.module.register_forward_hook
            )
            handle = register(_before(change) if sublayer.inward else _after(change))
            stack.callback(handle.remove)
        yield


def _before(change: Change) -> Callable[..., Any]:
    def hook(_: nn.Module, given: tuple[Any, ...]) -> Any:
        new = change(given[0])
        return None if new is None else (new, *given[1:])

    return hook


def _after(change: Change) -> Callable[..., Any]:
    def hook(_: nn.Module, given: tuple[Any, ...], out: Any) -> Any:
        several = isinstance(out, tuple | list)
        new = change(out[0] if several else out)
        if new is None:
            return None
        return type(out)([new, *out[1:]]) if several else new

    return hook


@torch.no_grad()
def whole_logits(model: Decoder, ids: Tensor, keep: int) -> Tensor:
    """ids: (passes, T) int64 → (passes, keep, V) logits of the last `keep` tokens, from one forward of transformers."""
    named: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    if "logits_to_keep" in inspect.signature(type(model.causal).forward).parameters:
        named["logits_to_keep"] = keep
    with model.products():
        logits: Tensor = model.causal(**named).logits
    return logits[:, -keep:]


def text_logits(
    model: Decoder, texts: Sequence[Sequence[int]], keep: Sequence[int]
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield (numbers of texts, their (texts, k, V) logits), k being the most last tokens that any of them keeps.

    Texts of one length share a forward, up to MOST_TOKENS tokens, so that none is padded.
    """
    lengths: dict[int, list[int]] = {}
    for number, text in enumerate(texts):
        lengths.setdefault(len(text), []).append(number)
    for length, numbers in lengths.items():
        at_once = max(1, MOST_TOKENS // length)
        for first in range(0, len(numbers), at_once):
            some = numbers[first : first + at_once]
            ids = torch.tensor([list(texts[n]) for n in some], dtype=torch.int64, device=model.device)
            yield some, whole_logits(model, ids, max(keep[n] for n in some))


def hooked_logprob(model: Decoder, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> Tensor:
    """As `packed.sequence_logprob`."""
    result = torch.zeros(len(prompts), dtype=torch.float64)
    whole = [[*p, *t[:-1]] for p, t in zip(prompts, targets, strict=True)]
    for numbers, logits in text_logits(model, whole, [len(t) for t in targets]):
        for number, rows in zip(numbers, logits, strict=True):
            target = torch.tensor(list(targets[number]), device=rows.device)
            logp = rows[-len(target) :].double().log_softmax(1)
            result[number] = logp.gather(1, target[:, None]).sum().cpu()
    return result


class Rereading:
    """Texts in progress, each read anew as a whole at every step, since a model of any kind has no cache in common."""

    def __init__(self, model: Decoder) -> None:
        self.model = model
        self.texts: list[list[int]] = []

    def read(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Begin with whole prompts. Return the (texts, V) float32 logits at the last token of each."""
        self.texts = [list(prompt) for prompt in prompts]
        return self._scores()

    def step(self, ids: Tensor) -> Tensor:
        """ids: (texts,) int64, the next token of every text → (texts, V) float32 logits at these tokens."""
        for text, token in zip(self.texts, ids.tolist(), strict=True):
            text.append(token)
        return self._scores()

    def _scores(self) -> Tensor:
        # A text that has no position left goes on at its last one, and what follows there is not used.
        texts = [text[: self.model.positions] for text in self.texts]
        rows: list[Tensor] = [torch.empty(0)] * len(texts)
        for numbers, logits in text_logits(self.model, texts, [1] * len(texts)):
            for number, row in zip(numbers, logits[:, -1], strict=True):
                rows[number] = row.float()
        return torch.stack(rows)
