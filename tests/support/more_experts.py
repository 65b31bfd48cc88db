"""Configs of more small models: mixtures of experts. Used by small_models.py."""


def configs(vocab_size: int):
    """Family or variant → config of a model of some 100,000 parameters."""
    import transformers as tf

    common = {
        "vocab_size": vocab_size,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": 5,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 160,
        "num_experts_per_tok": 2,
    }
    qwen = {**common, "num_experts": 5, "moe_intermediate_size": 24}
    return {
        "mixtral": lambda: tf.MixtralConfig(**common, num_local_experts=5, sliding_window=4),
        "qwen2-moe": lambda: tf.Qwen2MoeConfig(**qwen, shared_expert_intermediate_size=36),
        "qwen2-moe-some": lambda: tf.Qwen2MoeConfig(
            **qwen, shared_expert_intermediate_size=36, norm_topk_prob=True, decoder_sparse_step=2, mlp_only_layers=[3]
        ),
        "qwen3-moe": lambda: tf.Qwen3MoeConfig(**qwen, head_dim=12, norm_topk_prob=True, mlp_only_layers=[0]),
        "olmoe": lambda: tf.OlmoeConfig(**common, num_experts=5, clip_qkv=0.9, attention_bias=True),
        "minimax-m2": lambda: tf.MiniMaxM2Config(
            **common, num_local_experts=5, head_dim=12, rope_parameters={"partial_rotary_factor": 0.5}
        ),
    }
