"""Configs of more small models: older layouts and text models inside multimodal ones. Used by small_models.py."""


def configs(vocab_size: int):
    """Family or variant → config of a model of some 100,000 parameters."""
    return {**_older(vocab_size), **_multimodal(vocab_size)}


def _older(vocab_size: int):
    """Layouts of their own, most of them with LayerNorms."""
    import transformers as tf

    common = {"vocab_size": vocab_size, "bos_token_id": 0, "eos_token_id": 0}
    gpt = {**common, "n_embd": 48, "n_layer": 5, "n_head": 4, "n_positions": 160}
    own = {**common, "num_hidden_layers": 5, "num_attention_heads": 4, "hidden_size": 48}
    mpt = {**common, "d_model": 48, "n_layers": 5, "n_heads": 6, "max_seq_len": 160}
    return {
        "gpt2-unscaled": lambda: tf.GPT2Config(
            **gpt, scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True
        ),
        "gpt-bigcode": lambda: tf.GPTBigCodeConfig(**gpt, n_inner=100),
        "gpt-bigcode-heads": lambda: tf.GPTBigCodeConfig(
            **gpt, multi_query=False, scale_attn_weights=False, activation_function="gelu"
        ),
        "codegen": lambda: tf.CodeGenConfig(**gpt, n_inner=100, rotary_dim=6),
        "mpt": lambda: tf.MptConfig(**mpt),
        "mpt-clipped": lambda: tf.MptConfig(**mpt, attn_config={"clip_qkv": 0.5, "softmax_scale": 0.7}),
        "xglm": lambda: tf.XGLMConfig(
            **common, d_model=48, num_layers=5, attention_heads=4, ffn_dim=100, max_position_embeddings=160
        ),
        "biogpt": lambda: tf.BioGptConfig(**own, intermediate_size=100, max_position_embeddings=160),
        "neox-japanese": lambda: tf.GPTNeoXJapaneseConfig(
            **own, intermediate_multiple_size=2, max_position_embeddings=160,
            rope_parameters={"partial_rotary_factor": 0.5},
        ),
        "ctrl": lambda: tf.CTRLConfig(**gpt, dff=100),
    }  # fmt: skip


def _multimodal(vocab_size: int):
    """A text decoder of this size beside a vision tower of one layer."""
    import transformers as tf

    text = {
        "vocab_size": vocab_size,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 5,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 160,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    small = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower = {**small, "image_size": 28, "patch_size": 14}
    qwen = {"depth": 1, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 48, "patch_size": 14}
    mrope = {"rope_type": "default", "mrope_section": [2, 1, 1]}
    images = {"image_token_id": 1, "tie_word_embeddings": False}
    return {
        "gemma3-wrapper": lambda: tf.Gemma3Config(
            text_config={
                **text, "head_dim": 12, "query_pre_attn_scalar": 20, "sliding_window": 4, "sliding_window_pattern": 3,
                "final_logit_softcapping": 2.0,
            },
            vision_config=tower, mm_tokens_per_image=1, image_token_id=1,
        ),
        "aya-vision": lambda: tf.AyaVisionConfig(
            text_config={**text, "model_type": "cohere2", "logit_scale": 0.5, "sliding_window": 4, "pad_token_id": 0},
            vision_config={**tower, "model_type": "siglip_vision_model"}, image_token_id=1,
        ),
        "qwen2-vl": lambda: tf.Qwen2VLConfig(
            text_config={**text, "rope_parameters": mrope},
            vision_config={"depth": 1, "num_heads": 2, "embed_dim": 24, "hidden_size": 48, "patch_size": 14}, **images,
        ),
        "qwen2.5-vl": lambda: tf.Qwen2_5_VLConfig(
            text_config={
                **text, "rope_parameters": mrope,
                "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2,
            },
            vision_config={**qwen, "hidden_size": 24, "fullatt_block_indexes": [0]}, **images,
        ),
        "qwen2.5-omni": lambda: tf.Qwen2_5OmniThinkerConfig(
            text_config={**text, "rope_parameters": mrope, "pad_token_id": 0},
            vision_config={**qwen, "hidden_size": 24, "fullatt_block_indexes": [0]},
            audio_config={
                "d_model": 24, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
                "output_dim": 48, "num_mel_bins": 8,
            },
            image_token_index=1, video_token_index=2, audio_token_index=3, tie_word_embeddings=False,
        ),
        "qwen3-vl-moe": lambda: tf.Qwen3VLMoeConfig(
            text_config={
                **text, "head_dim": 8, "rope_parameters": mrope, "num_experts": 5, "num_experts_per_tok": 2,
                "moe_intermediate_size": 24,
            },
            vision_config={
                **qwen, "hidden_size": 24, "num_position_embeddings": 4, "deepstack_visual_indexes": [0]
            },
            **images,
        ),
        "qwen3-vl": lambda: tf.Qwen3VLConfig(
            text_config={**text, "head_dim": 8, "rope_parameters": mrope},
            vision_config={
                **qwen, "hidden_size": 24, "num_position_embeddings": 4, "deepstack_visual_indexes": [0]
            },
            **images,
        ),
        "emu3": lambda: tf.Emu3Config(
            text_config={**text, "pad_token_id": 0}, vocabulary_map={"<image>": 1},
            vq_config={
                "codebook_size": 16, "embed_dim": 4, "latent_channels": 4, "base_channels": 32, "num_res_blocks": 1,
                "channel_multiplier": [1], "attn_resolutions": [1], "hidden_size": 16, "num_attention_heads": 1,
            },
        ),
        "phi4-multimodal": lambda: tf.Phi4MultimodalConfig(
            **text, sliding_window=4, vision_config={**tower, "crop_size": 28},
            audio_config={
                "hidden_size": 24, "intermediate_size": 32, "num_blocks": 1, "num_attention_heads": 2,
                "nemo_conv_channels": 24, "ext_pw_out_channel": 24, "input_size": 8, "time_reduction": 2,
            },
        ),
        "mistral3": lambda: tf.Mistral3Config(
            text_config={**text, "model_type": "mistral", "sliding_window": 4},
            vision_config={**tower, "model_type": "pixtral", "head_dim": 12}, image_token_index=1,
        ),
        "llava": lambda: tf.LlavaConfig(
            text_config={**text, "model_type": "llama"},
            vision_config={**tower, "model_type": "clip_vision_model", "projection_dim": 24},
            image_token_index=1, vision_feature_layer=-1,
        ),
        "idefics3": lambda: tf.Idefics3Config(
            text_config={**text, "model_type": "llama"}, vision_config=tower, image_token_id=1, scale_factor=2,
        ),
    }  # fmt: skip
