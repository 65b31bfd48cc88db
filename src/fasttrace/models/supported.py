"""The model types that fasttrace drives, as the families in `families/` register them, and those that it does not."""

import inspect
import sys
from importlib import import_module
from typing import Any, NamedTuple

from fasttrace.models import families  # noqa: F401  registers every family
from fasttrace.models.adapter import Decoder


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


def unsupported() -> list[Unsupported]:
    """Every causal model type that transformers knows and fasttrace does not drive, with the reason where one is known.

    The reasons are those of `models/unfit.py`.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        why_not = import_module("fasttrace.models.unfit").why_not
    except ModuleNotFoundError:
        return []
    names = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - {*Decoder.registry})
    return [Unsupported(name, why_not(name)) for name in names]
