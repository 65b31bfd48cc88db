"""Values of the editing methods' hyperparameters, by model and problem.

Sources of ROME, MEMIT and fine-tuning: paper, Appendix A ("Edit Method Tuning"); Meng et al. 2022 (arXiv 2202.05262,
2210.07229) for values that the paper leaves at their defaults; the released code for protocol "released". Sources of
the other methods and models: the hparams files of the repositories named beside the values.

The values for SmolLM2-135M (`OWN`) are fasttrace's. Any other model gets GPT-J's values, except that ROME's KL weight
keeps its default. `fasttrace tune` finds better values. `settings.methods` describes each setting and has its default,
which applies where these tables have no value.
"""

import functools
import logging
from typing import Any

from fasttrace.models.adapter import Decoder
from fasttrace.settings.base import given_by
from fasttrace.settings.methods import METHODS, MethodSettings, is_shipped, method_settings
from fasttrace.windows import window_interval

log = logging.getLogger(__name__)

Shape = tuple[str, int, int, int]
# (model type, layers, width d, key width m). Llama-2-7B differs from Llama-3-8B only in m.
GPTJ, GPT2_XL = ("gptj", 28, 4096, 16384), ("gpt2", 48, 1600, 6400)
NEOX_20B = ("gpt_neox", 44, 6144, 24576)
LLAMA3_8B, QWEN25_7B = ("llama", 32, 4096, 14336), ("qwen2", 28, 3584, 18944)
SMOLLM2_135M = ("llama", 30, 576, 1536)

# (method, problem) → values that differ from the defaults in `settings.methods`. Problem None is every problem.
PAPER: dict[tuple[str, str | None], dict[str, Any]] = {
    ("rome", "fact-forcing"): {"steps": 25},
    ("memit", "error-injection"): {"kl_factor": 0.9},
    # fasttrace's: o_true is the likeliest before the edit, so that PMET's own rule would stop before its first step.
    ("pmet", "fact-amplification"): {"settled_factor": 1.0, "settled_kl": None},
    ("ft-1", "error-injection"): {"epsilon": 1e-4},
    ("ft-5", "error-injection"): {"epsilon": 2e-5},
    ("ft-1", "tracing-reversal"): {"epsilon": 1e-5},
    ("ft-5", "tracing-reversal"): {"epsilon": 2e-5},
    ("ft-1", "fact-erasure"): {"epsilon": 1e-5},
    ("ft-5", "fact-erasure"): {"epsilon": 1e-5},
    ("ft-1", "fact-amplification"): {"epsilon": 1e-5},
    ("ft-5", "fact-amplification"): {"epsilon": 1e-5},
    ("ft-1", "fact-forcing"): {"epsilon": 1e-4, "steps": 50},
    ("ft-5", "fact-forcing"): {"epsilon": 1e-4, "steps": 50},
}
PAPER_MODEL: dict[Shape, dict[tuple[str, str | None], dict[str, Any]]] = {
    GPTJ: {("rome", "error-injection"): {"kl_factor": 1.0}},
    GPT2_XL: {
        ("rome", None): {},
        ("memit", None): {"steps": 20, "covariance_weight": 20000.0},
        ("memit", "error-injection"): {"kl_factor": 0.0625},
        # scalable-model-editing/unified-model-editing; the same authors' encore has 1e4.
        ("emmet", None): {"steps": 20, "covariance_weight": 1000.0},
        ("alphaedit", None): {"steps": 20},  # jianghoucheng/AlphaEdit
        ("ft-1", "error-injection"): {"epsilon": 1e-3},
        ("ft-5", "error-injection"): {"epsilon": 1e-4},
        ("ft-1", "fact-forcing"): {"epsilon": 5e-4},
        ("ft-5", "fact-forcing"): {"epsilon": 5e-5},
    },
    NEOX_20B: {  # xpq-tech/PMET, as all of PMET's defaults
        ("pmet", None): {"lr": 0.5, "kl_factor": 0.8, "clamp": 0.8, "covariance_weight": 15000.0},
    },
    LLAMA3_8B: {
        ("rome", None): {"steps": 25, "weight_decay": 1e-3},  # zjunlp/EasyEdit
        ("memit", None): {"lr": 0.1},  # jianghoucheng/AlphaEdit
        ("memit", "error-injection"): {"kl_factor": 0.0625},
        ("emmet", None): {"covariance_weight": 1e5},  # scalable-model-editing/encore
        ("alphaedit", None): {"lr": 0.1},  # jianghoucheng/AlphaEdit
    },
    QWEN25_7B: {  # zjunlp/EasyEdit
        ("rome", None): {"steps": 25, "weight_decay": 1e-3},
        ("memit", None): {"clamp": 4.0, "weight_decay": 1e-3},
        ("memit", "error-injection"): {"kl_factor": 0.0625},
        ("alphaedit", None): {"clamp": 4.0, "weight_decay": 1e-3, "norm_weight": 1.0},
    },
}
# fasttrace's values, for models that neither the paper nor the released code covers. Protocol "released" ignores them.
# SmolLM2-135M hardly changes within GPT-J's ε (rewrite 0.003 for ft-1) or with its λ (0.5 for memit, less in higher
# layers; bench/LOG.md). λ is a tenth of GPT-J's, PMET's too, and ε fifty times its ε. Where the rewrite score was then
# above 0.99, or FT-1's low, the cell was tuned at layer 6 as in Appendix A (analysis/results/smollm2-135m/tuning.csv).
OWN: dict[Shape, dict[tuple[str, str | None], dict[str, Any]]] = {
    SMOLLM2_135M: {
        ("memit", None): {"covariance_weight": 1500.0},
        ("pmet", None): {"covariance_weight": 600.0},
        # 0.02 at layer 6. Eigenvalues grow with the layer: in layers 23 to 28 none is below the published 0.02.
        ("alphaedit", None): {"null_threshold": 6.4e-4, "null_unit": "trace"},
        ("memit", "fact-amplification"): {"kl_factor": 0.9},
        ("ft-1", "error-injection"): {"epsilon": 5e-3},
        ("ft-5", "error-injection"): {"epsilon": 1e-3},
        ("ft-1", "tracing-reversal"): {"epsilon": 5e-3},
        ("ft-5", "tracing-reversal"): {"epsilon": 1e-3},
        ("ft-1", "fact-erasure"): {"epsilon": 2.5e-3},
        ("ft-5", "fact-erasure"): {"epsilon": 5e-4},
        ("ft-1", "fact-amplification"): {"epsilon": 5e-3},
        ("ft-5", "fact-amplification"): {"epsilon": 5e-4},
        ("ft-1", "fact-forcing"): {"epsilon": 5e-3},
        ("ft-5", "fact-forcing"): {"epsilon": 1e-3},
    },
}
# The released loops of ROME and MEMIT end at the last of their losses, without its update. Only ROME's fact erasure
# makes it. Their early stop at a loss of 0.05 never fires.
RELEASED: dict[tuple[str, str | None], dict[str, Any]] = {
    ("rome", None): {"steps": 19},
    ("rome", "fact-erasure"): {"steps": 20},
    ("rome", "fact-forcing"): {"lr": 0.05, "steps": 24},
    ("memit", None): {"steps": 24},
    ("emmet", None): {"steps": 24},
    ("alphaedit", None): {"steps": 24},
    ("pmet", None): {"steps": 29},
    ("ft-1", None): {"bias": True, "early_stop": 0.01},
    ("ft-5", None): {"bias": True, "early_stop": 0.01},
    ("ft-1", "error-injection"): {"epsilon": 1e-4},
    ("ft-5", "error-injection"): {"epsilon": 5e-5},
    ("ft-1", "tracing-reversal"): {"epsilon": 1e-3},
    ("ft-5", "tracing-reversal"): {"epsilon": 1e-3},
    ("ft-1", "fact-erasure"): {"epsilon": 1e-5},
    ("ft-5", "fact-erasure"): {"epsilon": 1e-5},
    ("ft-1", "fact-amplification"): {"epsilon": 5e-5},
    ("ft-5", "fact-amplification"): {"epsilon": 1e-5},
    ("ft-1", "fact-forcing"): {"epsilon": 1e-4},
    ("ft-5", "fact-forcing"): {"epsilon": 1e-4},
}
RELEASED_MODEL: dict[Shape, dict[tuple[str, str | None], dict[str, Any]]] = {
    GPT2_XL: {(method, None): {"steps": 19} for method in ("memit", "emmet", "alphaedit")},
    LLAMA3_8B: {("rome", None): {"steps": 24}},
    QWEN25_7B: {("rome", None): {"steps": 24}},
}

# Settings that only together say what they mean. Where the caller gives one, no table has another.
JOINT = {"null_threshold", "null_unit", "projections"}

# Method → the setting that `fasttrace tune` varies, and the values it tries (paper, Appendix A).
TUNED: dict[str, tuple[str, tuple[float, ...]]] = {
    "rome": ("kl_factor", (0.0625, 0.9, 1.0)),
    "memit": ("kl_factor", (0.0625, 0.9, 1.0)),
    "emmet": ("kl_factor", (0.0625, 0.9, 1.0)),
    "alphaedit": ("kl_factor", (0.0625, 0.9, 1.0)),
    "pmet": ("kl_factor", (0.0625, 0.9, 1.0)),
    "ft-1": ("epsilon", (1e-4, 5e-5, 2e-5, 1e-5)),
    "ft-5": ("epsilon", (1e-4, 5e-5, 2e-5, 1e-5)),
}


def shape_of(model: Decoder) -> Shape:
    """What the tables know a model by."""
    return model.config.model_type, model.n_layers, model.width, model.key_width


@functools.cache
def say_whose(name: str, method: str, shape: Shape) -> None:
    """Log, once a method, whose hyperparameters a model takes for which none are published."""
    of_model = {one for one, _ in PAPER_MODEL.get(shape, {})}
    if is_shipped(method) and shape not in (GPTJ, SMOLLM2_135M) and method not in of_model:
        log.warning("%s: no hyperparameters are published for '%s': it takes those of GPT-J", method, name)


def settings_for(
    model: Decoder, method: str, problem: str, protocol: str, given: MethodSettings | None = None
) -> MethodSettings:
    """The hyperparameters of a method for a model, problem and protocol. Given values override the tables."""
    which = shape_of(model)
    own = (RELEASED, RELEASED_MODEL.get(which, {})) if protocol == "released" else (OWN.get(which, {}),)
    values: dict[str, Any] = {}
    for table in (PAPER, PAPER_MODEL.get(which, {}), *own):
        values |= table.get((method, None), {}) | table.get((method, problem), {})
    own_values = {} if given is None else given_by(given)
    if JOINT & own_values.keys():
        values = {name: value for name, value in values.items() if name not in JOINT}
    return method_settings(method, values | own_values)


def window_of(method: str, layer: int, window_size: int, n_layers: int) -> tuple[int, ...]:
    """The layers that an edit at `layer` changes: the layer itself (rome, ft-1), or the window of window_size layers
    around it, clipped as in tracing (the other methods)."""
    if not METHODS[method].windowed:
        return (layer,)
    return tuple(range(*window_interval(layer, window_size, n_layers)))
