"""Windows of layers. Tracing and editing use the same rule."""


def window_interval(layer: int, window: int, n_layers: int) -> tuple[int, int]:
    """Layers [start, stop) of the window of w layers at layer ℓ: max(0, ℓ - ⌊w/2⌋) to min(L, ℓ + ⌈w/2⌉).

    w = 5 gives ℓ-2 … ℓ+2 and w = 10 gives ℓ-5 … ℓ+4, clipped to the model's layers.
    Source: the rule of the released code (docs/algorithms.md, section 5).
    """
    return max(0, layer - window // 2), min(n_layers, layer - (-window // 2))
