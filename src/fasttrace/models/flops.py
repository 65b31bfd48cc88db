"""FLOPs of a block's products with weights, from their shapes."""

from fasttrace.models.adapter import Block, Decoder


def linear_flops(model: Decoder, block: Block) -> tuple[int, int, int]:
    """FLOPs per row of the (key and value, query and attention-output, MLP) products."""
    d, m = model.width, model.key_width
    key_value = 2 * d * 2 * block.n_kv_heads * block.head_dim
    query_out = 2 * 2 * d * block.n_heads * block.head_dim
    return key_value, query_out, 2 * d * m * (block.mlp_products + 1)
