"""Configs of more small models: attention and one MLP a layer, most of them like Llama. Used by small_models.py."""


def configs(vocab_size: int):
    """Family or variant → config of a model of some 100,000 parameters. Sizes are as in small_models.py."""
    import transformers as tf

    llama = {
        "vocab_size": vocab_size,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 5,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 160,
    }
    narrow = {**llama, "head_dim": 12}
    own = {k: v for k, v in llama.items() if k != "num_key_value_heads"}
    bert = {**own, "pad_token_id": 0, "local_attention": 8}
    sliding = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]}
    capped = {"query_pre_attn_scalar": 20, "final_logit_softcapping": 4.0, "attn_logit_softcapping": 3.0}
    mup = {"embedding_multiplier": 3.0, "logits_scaling": 1.7, "residual_multiplier": 0.3, "attention_multiplier": 0.2}
    hybrid = {"layer_types": ["full_attention"] * 5, "num_local_experts": 0, "shared_intermediate_size": 70}
    hybrid |= {"mamba_n_heads": 6, "mamba_d_head": 16}
    latent = {
        **llama,
        "num_key_value_heads": 6,
        "kv_lora_rank": 20,
        "q_lora_rank": 28,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 10,
        "v_head_dim": 6,
    }
    beta = {"rope_theta": 1e4, "llama_4_scaling_beta": 0.4, "original_max_position_embeddings": 3}
    return {
        "ministral": lambda: tf.MinistralConfig(**narrow, **sliding),
        "cwm": lambda: tf.CwmConfig(**narrow, **sliding),
        "seed-oss": lambda: tf.SeedOssConfig(**narrow, attention_out_bias=True),
        "exaone": lambda: tf.ExaoneConfig(**narrow),
        "internlm3": lambda: tf.InternLM3Config(**narrow),
        "iquestcoder": lambda: tf.IQuestCoderConfig(**narrow),
        "ministral3": lambda: tf.Ministral3Config(**narrow, rope_parameters={"rope_type": "default", **beta}),
        "ministral3-window": lambda: tf.Ministral3Config(
            **narrow, sliding_window=4,
            rope_parameters={"rope_type": "yarn", "factor": 16.0, **beta},
        ),
        "gemma": lambda: tf.GemmaConfig(**narrow, attention_bias=True),
        "vaultgemma": lambda: tf.VaultGemmaConfig(**narrow, **sliding, **capped),
        # Granite reads no settings of windows, which a config file may have all the same.
        "granite": lambda: tf.GraniteConfig(**llama, **mup, **sliding, attention_bias=True, mlp_bias=True),
        "hyperclovax": lambda: tf.HyperCLOVAXConfig(**narrow, **mup),
        "hyperclovax-pre": lambda: tf.HyperCLOVAXConfig(**llama, **mup, use_post_norm=False, tie_word_embeddings=True),
        "granite-swa": lambda: tf.GraniteSWAConfig(**llama, **mup, **sliding, layer_rope_theta=[1e4, 0, 300.0, 1e4, 0]),
        "granite4": lambda: tf.GraniteMoeHybridConfig(**narrow, **mup, **hybrid, position_embedding_type="rope"),
        "granite4-nope": lambda: tf.GraniteMoeHybridConfig(**llama, **mup, **hybrid, attention_bias=True),
        "cohere": lambda: tf.CohereConfig(**llama, logit_scale=0.3),
        "cohere-norms": lambda: tf.CohereConfig(**llama, logit_scale=0.3, use_qk_norm=True, attention_bias=True),
        "cohere2": lambda: tf.Cohere2Config(**llama, **sliding, logit_scale=0.3),
        "cohere-compass": lambda: tf.CohereCompassTextConfig(
            **llama, **sliding, logit_scale=0.3,
            rope_parameters={"full_attention": None, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
        ),
        "stablelm": lambda: tf.StableLmConfig(**llama, partial_rotary_factor=0.5),
        "stablelm-parallel": lambda: tf.StableLmConfig(
            **llama, use_parallel_residual=True, qk_layernorm=True, use_qkv_bias=True, tie_word_embeddings=True
        ),
        "starcoder2": lambda: tf.Starcoder2Config(**llama, sliding_window=4),
        "starcoder2-bare": lambda: tf.Starcoder2Config(**llama, use_bias=False, tie_word_embeddings=False),
        "nemotron": lambda: tf.NemotronConfig(**narrow, attention_bias=True, mlp_bias=True),
        "jais2": lambda: tf.Jais2Config(**narrow),
        "arcee": lambda: tf.ArceeConfig(**narrow, mlp_bias=True),
        "apertus": lambda: tf.ApertusConfig(**llama, attention_bias=True),
        "apertus1p5": lambda: tf.Apertus1p5TextConfig(
            **{**llama, "vocab_size": vocab_size + 30}, output_vocab_size=max(1, vocab_size)
        ),
        "nanochat": lambda: tf.NanoChatConfig(**llama, final_logit_softcapping=4.0),
        "nanochat-uncapped": lambda: tf.NanoChatConfig(**llama, final_logit_softcapping=None, attention_bias=True),
        "olmo": lambda: tf.OlmoConfig(**llama, clip_qkv=0.7),
        "olmo-unclipped": lambda: tf.OlmoConfig(**llama, attention_bias=True, tie_word_embeddings=True),
        "olmo3": lambda: tf.Olmo3Config(
            **llama, **sliding,
            rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40},
        ),
        "exaone4": lambda: tf.Exaone4Config(**narrow, **sliding),
        "exaone4-full": lambda: tf.Exaone4Config(
            **narrow, sliding_window=None, layer_types=["full_attention"] * 5, tie_word_embeddings=True
        ),
        "glm": lambda: tf.GlmConfig(**narrow),
        "glm4": lambda: tf.Glm4Config(**{**narrow, "head_dim": 16}, attention_bias=False),
        "helium": lambda: tf.HeliumConfig(**llama, head_dim=8, attention_bias=True, mlp_bias=True),
        "ernie4_5": lambda: tf.Ernie4_5Config(**narrow, use_bias=True),
        "hunyuan": lambda: tf.HunYuanDenseV1Config(**narrow, attention_bias=True),
        "hunyuan-alpha": lambda: tf.HunYuanDenseV1Config(
            **narrow, rope_parameters={"rope_type": "dynamic", "alpha": 50.0, "factor": 1.0, "rope_theta": 1e4}
        ),
        "bitnet": lambda: tf.BitNetConfig(**llama),
        "persimmon": lambda: tf.PersimmonConfig(**own),
        "persimmon-bare": lambda: tf.PersimmonConfig(**own, qk_layernorm=False, hidden_act="gelu_new"),
        "modernbert": lambda: tf.ModernBertDecoderConfig(**bert),
        "modernbert-biases": lambda: tf.ModernBertDecoderConfig(
            **bert, norm_bias=True, attention_bias=True, mlp_bias=True, classifier_bias=True,
            decoder_bias=False, tie_word_embeddings=False,
        ),
        "youtu": lambda: tf.YoutuConfig(**latent),
        "youtu-wide": lambda: tf.YoutuConfig(
            **{**latent, "v_head_dim": 18, "q_lora_rank": None}, rope_interleave=False, attention_bias=True
        ),
        "minicpm3": lambda: tf.MiniCPM3Config(**latent, dim_model_base=20),
    }  # fmt: skip
