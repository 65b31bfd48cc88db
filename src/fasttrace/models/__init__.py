"""Decoder models behind one interface: `load_model`, `wrap_model`, `Decoder`."""

import warnings
from importlib import import_module

from fasttrace.models import texts  # noqa: F401  gives Decoder its method generate
from fasttrace.models.adapter import Decoder, Model
from fasttrace.models.block import Block
from fasttrace.models.encode import pair_facts
from fasttrace.models.load import load_model
from fasttrace.models.wrap import wrap_model
from fasttrace.packaged import DEFAULT_MODEL

__all__ = ["DEFAULT_MODEL", "Block", "Decoder", "Model", "load_model", "pair_facts", "wrap_model"]

# In a notebook without ipywidgets, tqdm warns where transformers imports it. fasttrace shows none of its bars.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import_module("tqdm.auto")
