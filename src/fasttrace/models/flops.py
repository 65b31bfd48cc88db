"""FLOPs of a block's matrix products, by their shapes."""

from fasttrace.models.adapter import Block, Decoder


def linear_flops(model: Decoder, block: Block) -> tuple[int, int, int]:
    """FLOPs a row of (key and value products, query and attention-output products, MLP products)."""
    d, m = model.width, model.key_width
    key_value = 2 * d * 2 * block.n_kv_heads * block.head_dim
    query_out = 2 * 2 * d * block.n_heads * block.head_dim
    return key_value, query_out, 2 * d * m * (block.mlp_products + 1)
