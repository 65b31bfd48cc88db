"""The model types that fasttrace drives, as the families in `families/` register them, and those that it does not."""

import inspect
import sys
from contextlib import suppress
from typing import Any, NamedTuple

from fasttrace.models.adapter import Decoder, text_config
from fasttrace.models.load import MULTIMODAL, quiet
from fasttrace.models.unfit import clause_of, is_explained


class Supported(NamedTuple):
    """A model type that has an adapter.

    model_type: as in config.json. classes: transformers' classes that are driven, with which the adapter's docstring
    begins. adapter: the name of its class. family: its file in src/fasttrace/models/families/, without .py.
    about: what is special about it, which the docstring says after a colon (otherwise `_about`).
    """

    model_type: str
    classes: str
    adapter: str
    family: str
    about: str


class Wrapper(NamedTuple):
    """A multimodal model type that is driven as its text decoder, given text. decoder: the model type of that decoder,
    in the type's default config where it has a choice."""

    model_type: str
    decoder: str


class Unsupported(NamedTuple):
    """A causal model type of transformers without an adapter. reason: what about it does not fit, as a clause."""

    model_type: str
    reason: str


def supported() -> list[Supported]:
    """Every model type with an adapter, in alphabetical order."""
    return [_row(model_type, adapter) for model_type, adapter in sorted(Decoder.registry.items())]


def _row(model_type: str, adapter: type[Decoder]) -> Supported:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    classes, _, about = _paragraph(adapter).removesuffix(".").partition(": ")
    own = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    classes = own if isinstance(own, str) and own in classes else classes
    return Supported(model_type, classes, adapter.__name__, _file(adapter), about or _about(adapter))


def _about(adapter: type[Decoder]) -> str:
    """What is special about an adapter whose docstring has only classes: what its file's docstring says after a colon,
    if no other adapter is in it, or else its block's docstring."""
    first, colon, rest = _paragraph(sys.modules[adapter.__module__]).partition(". ")[0].partition(": ")
    alone = len({other for other in Decoder.registry.values() if other.__module__ == adapter.__module__}) == 1
    block = getattr(adapter, "block", None)
    said = rest if alone and colon else _paragraph(block) if block is not None else f"{first}{colon}{rest}"
    return said.removesuffix(".")


def _file(adapter: type[Decoder]) -> str:
    return adapter.__module__.rpartition(".")[2]


def _paragraph(documented: Any) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(documented) or "").partition("\n\n")[0].split())


def wrappers() -> list[Wrapper]:
    """Every multimodal model type of transformers whose text decoder has an adapter, in alphabetical order."""
    from transformers.models.auto import modeling_auto

    known = [getattr(modeling_auto, f"{name}_NAMES", {}) for name in MULTIMODAL.values()]
    names = sorted({name for names in known for name in names} - {*Decoder.registry})
    found = []
    with quiet():
        for name in names:
            with suppress(Exception):  # some configs have defaults that do not fit each other
                if (decoder := _decoder_of(name)) != name and decoder in Decoder.registry:
                    found.append(Wrapper(name, decoder))
    return found


def unsupported() -> list[Unsupported]:
    """Every causal model type that transformers knows and fasttrace does not drive, with the reason.

    A multimodal type whose text decoder is driven is not among them.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    decoders = {name: _decoder_of(name) for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    left = {name: decoder for name, decoder in decoders.items() if decoder not in Decoder.registry}
    return [Unsupported(name, clause_of(decoder)) for name, decoder in sorted(left.items())]


def _decoder_of(model_type: str) -> str:
    """The type of the text decoder in a multimodal type, or the type itself."""
    from transformers import CONFIG_MAPPING

    if model_type in Decoder.registry or is_explained(model_type):
        return model_type
    found: str = text_config(CONFIG_MAPPING[model_type]()).model_type
    return found
