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
    deepseek = {
        **common, "num_key_value_heads": 6, "moe_intermediate_size": 24, "first_k_dense_replace": 1,
        "kv_lora_rank": 20, "q_lora_rank": 18, "qk_rope_head_dim": 8, "qk_nope_head_dim": 10, "v_head_dim": 14,
        "routed_scaling_factor": 1.7, "n_group": 3, "topk_group": 2, "n_routed_experts": 6,
    }  # fmt: skip
    grouped = {
        **common, "head_dim": 12, "moe_intermediate_size": 24, "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.7, "n_group": 3, "topk_group": 2, "n_routed_experts": 6,
    }  # fmt: skip
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
        "deepseek-v2": lambda: tf.DeepseekV2Config(**deepseek, topk_method="group_limited_greedy"),
        "deepseek-v2-lite": lambda: tf.DeepseekV2Config(
            **{**deepseek, "q_lora_rank": None}, topk_method="greedy", attention_bias=True, mlp_bias=True
        ),
        "deepseek-v3": lambda: tf.DeepseekV3Config(**deepseek),
        "deepseek-v3-plain": lambda: tf.DeepseekV3Config(
            **{**deepseek, "v_head_dim": 22}, rope_interleave=False, norm_topk_prob=False
        ),
        "glm4-moe-lite": lambda: tf.Glm4MoeLiteConfig(**deepseek),
        "glm4-moe": lambda: tf.Glm4MoeConfig(
            **grouped, use_qk_norm=True, attention_bias=True, rope_parameters={"partial_rotary_factor": 0.5}
        ),
        "glm4-moe-unnormed": lambda: tf.Glm4MoeConfig(**grouped, use_qk_norm=False),
        "dots1": lambda: tf.Dots1Config(**grouped, n_shared_experts=2),
        "solar-open": lambda: tf.SolarOpenConfig(**grouped, n_shared_experts=1),
        "hy-v3": lambda: tf.HYV3Config(
            **common,
            head_dim=12,
            num_local_experts=6,
            moe_intermediate_size=24,
            num_shared_experts=1,
        ),
        "gpt-oss": lambda: tf.GptOssConfig(
            **common, num_local_experts=5, head_dim=12, sliding_window=4, swiglu_limit=1.5
        ),
        "ernie4-5-moe": lambda: tf.Ernie4_5_MoeConfig(
            **common,
            moe_num_experts=5,
            moe_k=2,
            moe_intermediate_size=24,
            moe_num_shared_experts=1,
            moe_layer_start_index=1,
            head_dim=12,
            use_bias=True,
        ),
        "exaone-moe": lambda: tf.ExaoneMoeConfig(
            **{**grouped, "num_experts": 6}, sliding_window=4, sliding_window_pattern=3, num_shared_experts=1
        ),
        "flex-olmo": lambda: tf.FlexOlmoConfig(**common, num_experts=5),
        "hunyuan-moe": lambda: tf.HunYuanMoEV1Config(**common, num_experts=5, moe_topk=2, head_dim=12),
        "granite-moe": lambda: tf.GraniteMoeConfig(
            **common,
            num_local_experts=5,
            residual_multiplier=0.7,
            logits_scaling=1.3,
            embedding_multiplier=2.0,
            attention_multiplier=0.4,
        ),
        "phimoe": lambda: tf.PhimoeConfig(**common, num_local_experts=5, lm_head_bias=True, attention_bias=True),
        "llama4": lambda: tf.Llama4TextConfig(
            **common,
            num_local_experts=5,
            intermediate_size_mlp=60,
            head_dim=12,
            interleave_moe_layer_step=2,
            no_rope_layer_interval=3,
            floor_scale=4,
        ),
    }
