"""Which layers an edit or a trace takes: windows, and the layer edited by default.

Models, tracing, editing and the analysis use the same rules.
"""

# (a family's `config.model_type`, part of the published name, layers): the layer that the paper edits, from 0.
_PUBLISHED = {("gptj", "gpt-j", 28): 5, ("gpt2", "gpt2-xl", 48): 17}


def window_interval(layer: int, window: int, n_layers: int) -> tuple[int, int]:
    """Layers [start, stop) of the window of w layers at layer ℓ: max(0, ℓ - ⌊w/2⌋) to min(L, ℓ + ⌈w/2⌉).

    w = 5 gives ℓ-2 … ℓ+2 and w = 10 gives ℓ-5 … ℓ+4, clipped to the model's layers.
    Source: the rule of the released code (docs/algorithms.md, section 5).
    """
    return max(0, layer - window // 2), min(n_layers, layer - (-window // 2))


def default_layer(n_layers: int, *, model_type: str | None = None, name: str = "") -> int:
    """The layer edited by default: ROME's where the paper edits the model, otherwise round(L / 5). Counts from 0.

    model_type: transformers' name of the family. name: the model's name, where a store does not know the family.
    Source: paper, sections 3.3 and 4.2.
    """
    for (family, part, layers), layer in _PUBLISHED.items():
        if layers == n_layers and (family == model_type or part in name.lower()):
            return layer
    return round(n_layers / 5)
