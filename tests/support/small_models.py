"""Small random models of every family, on which fasttrace is compared with the oracles."""

import contextlib
import functools
import sys
import types
from unittest import mock

import more_dense
import more_experts
import more_older
import pytest
import torch


def trained_tokenizer():
    """A byte-level BPE tokenizer of at most 400 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    text = [
        "The Eiffel Tower is located in the city of Paris",
        "Paris is the capital of France",
        "of Rome and New York",
    ]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        text * 4,
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def word_tokenizer():
    """A tokenizer of whole words, which puts its one special token before every text and in place of unknown words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = ["[UNK]", "The", "the", "tower", "is", "in", "Paris", "Rome", "New", "York"]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="[UNK] $A", special_tokens=[("[UNK]", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", bos_token="[UNK]")


def _configs(vocab_size: int):
    """Family or variant → config of a model of some 100,000 parameters. Unusual sizes are intended."""
    import transformers as tf

    common = {"vocab_size": vocab_size, "bos_token_id": 0, "eos_token_id": 0}
    llama = {
        **common,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 5,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 160,
    }
    own = {k: v for k, v in llama.items() if k != "num_key_value_heads"}
    phi3 = {**llama, "pad_token_id": None}
    gemma = {
        **llama,
        "head_dim": 12,
        "query_pre_attn_scalar": 20,
        "sliding_window": 4,
        "final_logit_softcapping": 4.0,
    }
    falcon = {**own, "ffn_hidden_size": 100}
    opt = {**own, "ffn_dim": 100, "pad_token_id": None}
    return {
        "llama": lambda: tf.LlamaConfig(**llama, tie_word_embeddings=True),
        "llama-bias": lambda: tf.LlamaConfig(**llama, attention_bias=True, mlp_bias=True, head_dim=12),
        "mistral": lambda: tf.MistralConfig(**llama, sliding_window=4),
        "qwen2": lambda: tf.Qwen2Config(**llama, tie_word_embeddings=False),
        "gpt2": lambda: tf.GPT2Config(**common, n_embd=48, n_layer=5, n_head=4, n_positions=160, n_inner=100),
        "qwen3": lambda: tf.Qwen3Config(**llama, head_dim=12),
        "smollm3": lambda: tf.SmolLM3Config(**llama, no_rope_layers=[1, 0, 1, 1, 0], pad_token_id=None),
        "smollm3-window": lambda: tf.SmolLM3Config(
            **llama, no_rope_layer_interval=2, use_sliding_window=True, sliding_window=4, pad_token_id=None
        ),
        "olmo2": lambda: tf.Olmo2Config(**llama),
        "gemma2": lambda: tf.Gemma2Config(**gemma, attn_logit_softcapping=3.0),
        "gemma2-uncapped": lambda: tf.Gemma2Config(
            **{**gemma, "final_logit_softcapping": None, "attn_logit_softcapping": None}
        ),
        "gemma3": lambda: tf.Gemma3TextConfig(**gemma, sliding_window_pattern=3),
        "gemma3-full": lambda: tf.Gemma3TextConfig(**{**gemma, "layer_types": ["full_attention"] * 5}),
        "phi3": lambda: tf.Phi3Config(**phi3, sliding_window=4),
        "phi3-partial": lambda: tf.Phi3Config(**phi3, rope_parameters={"partial_rotary_factor": 0.5}),
        "phi3-longrope": lambda: tf.Phi3Config(
            **phi3,
            original_max_position_embeddings=40,
            rope_scaling={"type": "longrope", "short_factor": [1.0, 1.5, 2, 3], "long_factor": [2.0, 3, 4, 5]},
        ),
        "gptj": lambda: tf.GPTJConfig(
            **common, n_embd=48, n_layer=5, n_head=4, n_positions=160, n_inner=100, rotary_dim=6
        ),
        "gpt-neo": lambda: tf.GPTNeoConfig(
            **common, hidden_size=48, num_layers=5, num_heads=4, intermediate_size=100, max_position_embeddings=160,
            attention_types=[[["global", "local"], 2], [["global"], 1]], window_size=4,
        ),
        "neox": lambda: tf.GPTNeoXConfig(**own, rope_parameters={"partial_rotary_factor": 0.5}),
        "neox-sequential": lambda: tf.GPTNeoXConfig(**own, use_parallel_residual=False, attention_bias=False),
        "opt": lambda: tf.OPTConfig(**opt),
        "opt-bare": lambda: tf.OPTConfig(**opt, enable_bias=False, layer_norm_elementwise_affine=False),
        "bloom": lambda: tf.BloomConfig(**common, hidden_size=48, n_layer=5, n_head=6),
        "falcon": lambda: tf.FalconConfig(**falcon, multi_query=True, parallel_attn=True, bias=False),
        "falcon-new": lambda: tf.FalconConfig(**falcon, num_kv_heads=2, new_decoder_architecture=True),
        "falcon-new-one-norm": lambda: tf.FalconConfig(
            **falcon, num_kv_heads=3, new_decoder_architecture=True, num_ln_in_parallel_attn=1, bias=True
        ),
        # Not all ALiBi slopes of 16 heads are powers of two, so bfloat16 rounds them and their products.
        "falcon-rw": lambda: tf.FalconConfig(
            **{**falcon, "num_attention_heads": 16},
            multi_query=False, parallel_attn=False, alibi=True, bias=True,
        ),
        "phi": lambda: tf.PhiConfig(**llama),
        "phi-norms": lambda: tf.PhiConfig(
            **own, qk_layernorm=True, rope_parameters={"partial_rotary_factor": 0.25}
        ),
    }  # fmt: skip


def small_config(family: str, vocab_size: int):
    """The config of one of EVERY_FAMILY."""
    return _every_config(vocab_size)[family]()


def _every_config(vocab_size: int):
    """Family or variant → config, of FAMILIES and of those that are like one of them."""
    more = [part.configs(vocab_size) for part in (more_dense, more_older, more_experts)]
    return {**_configs(vocab_size), **{name: config for part in more for name, config in part.items()}}


# FAMILIES have every test of a family. EVERY_FAMILY, which has more that differ little from one of them, has those of
# test_every_family.py.
FAMILIES = tuple(_configs(0))
EVERY_FAMILY = tuple(_every_config(0))
# EVERY_FAMILY as parameters of a test. The variants differ little from a family, and are left to make test-all.
VARIANTS_SLOW = [one if one in FAMILIES else pytest.param(one, marks=pytest.mark.slow) for one in EVERY_FAMILY]
EXPERTS = (*more_experts.configs(0), "qwen3-vl-moe")  # those with mixtures of experts


class _Torch:
    """torch, with float64 for float32."""

    float = float32 = torch.float64

    @staticmethod
    def full(size, value, **options):
        """torch.full, with float64 for the default dtype (in XGLM)."""
        return torch.full(size, value, **({"dtype": torch.float64} if isinstance(value, float) else {}) | options)

    def __getattr__(self, name):
        return getattr(torch, name)


def float64_where_it_says_float32(hf):
    """Make hf's forward compute in float64 wherever the files that define its parts cast to float32.

    transformers computes RMS norms and the softmax of eager attention (for GPT-Neo, all of attention) in float32 even
    in a float64 model. Numbers that differ in their last bit would now and then be rounded to different float32 ones.
    """
    names = {type(part).__module__ for part in hf.modules()}
    files = [sys.modules[name] for name in sorted(names) if name.startswith("transformers.models.")]

    def patched(part):
        @functools.wraps(type(part).forward)
        def in_float64(self, *args, **options):
            with contextlib.ExitStack() as wide:
                wide.enter_context(mock.patch.object(torch.Tensor, "float", torch.Tensor.double))
                for file in files:
                    wide.enter_context(mock.patch.object(file, "torch", _Torch()))
                return type(self).forward(self, *args, **options)

        return types.MethodType(in_float64, part)  # which a copy of the model has as a method of its own

    for part in hf.modules():
        # fasttrace calls some of these by themselves.
        if any(word in type(part).__name__ for word in ("Router", "Gate", "Norm", "RotaryEmbedding")):
            part.forward = patched(part)
    hf.forward = patched(hf)


def small_class(config):
    """transformers' class of models of a config. That of a multimodal config has the vision tower, too."""
    import transformers as tf

    multimodal = config.get_text_config() is not config
    classes = tf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if multimodal else tf.MODEL_FOR_CAUSAL_LM_MAPPING
    return classes[type(config)]


def small_model(family: str, tokenizer, dtype: torch.dtype):
    """A random model of `family`. All its parameters, including biases and norms, are far from their defaults."""
    from fasttrace.models import wrap_model

    torch.manual_seed(0)
    config = small_config(family, len(tokenizer))
    # transformers' eager attention computes its softmax in float32 even in a float64 model, but its sdpa does not.
    hf_class = small_class(config)
    capped = ("gemma2", "vaultgemma")
    eager = config.model_type in (*capped, "gpt_neo", "bloom") or not hf_class._supports_sdpa
    config._attn_implementation = "eager" if eager else "sdpa"
    hf = hf_class._from_config(config).to(dtype)
    if dtype == torch.float64:
        hf.set_experts_implementation("eager")  # transformers' grouped products have no float64
    # Their norms multiply by 1 + weight.
    plus_one = config.model_type.startswith(("gemma", "vaultgemma", "nemotron"))
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            scale = 0.25 if weight.ndim > 1 else 0.1
            is_norm = weight.ndim == 1 and ("norm" in name or "ln_" in name)
            weight.copy_(torch.randn_like(weight) * scale + (1.0 if is_norm and not plus_one else 0.0))
    # transformers' XGLM cannot be run in float64 as it is.
    model = wrap_model(hf, tokenizer, family, check=config.model_type != "xglm" or dtype != torch.float64)
    if dtype == torch.float64:
        float64_where_it_says_float32(model.hf)
    return model
