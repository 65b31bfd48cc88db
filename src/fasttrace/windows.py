"""Windows of layers: the same rule for what tracing restores and for what editing changes."""


def window_interval(layer: int, window: int, n_layers: int) -> tuple[int, int]:
    """Layers [start, stop) of the window of size w at `layer`: max(0, ℓ - w//2) to min(L, ℓ - (-w//2)).

    Source: the released code's rule (docs/algorithms.md, section 5): w = 5 is ℓ±2, w = 10 is ℓ-5 … ℓ+4, clipped.
    """
    return max(0, layer - window // 2), min(n_layers, layer - (-window // 2))
