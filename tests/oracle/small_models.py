"""Small random models of every family, for the oracles to be run on."""

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
        trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def small_config(family: str, vocab_size: int):
    """A config of a few thousand parameters for `family`; sizes are odd on purpose."""
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
    if family == "llama":
        return tf.LlamaConfig(**llama, tie_word_embeddings=True)
    if family == "llama-bias":
        return tf.LlamaConfig(**llama, attention_bias=True, mlp_bias=True, head_dim=12)
    if family == "mistral":
        return tf.MistralConfig(**llama, sliding_window=4)
    if family == "qwen2":
        return tf.Qwen2Config(**llama, tie_word_embeddings=False)
    if family == "gpt2":
        return tf.GPT2Config(**common, n_embd=48, n_layer=5, n_head=4, n_positions=160, n_inner=100)
    raise KeyError(family)


FAMILIES = ("llama", "llama-bias", "mistral", "qwen2", "gpt2")


def small_model(family: str, tokenizer, dtype: torch.dtype):
    """A random model of `family` whose every parameter, biases and norms too, is far from its default."""
    from transformers import AutoModelForCausalLM

    from fasttrace.models import wrap_model

    torch.manual_seed(0)
    config = small_config(family, len(tokenizer))
    # transformers' eager attention takes its softmax in float32 even in a float64 model; sdpa does not.
    config._attn_implementation = "sdpa"
    hf = AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            scale = 0.25 if weight.ndim > 1 else 0.1
            centre = 1.0 if weight.ndim == 1 and ("norm" in name or "ln_" in name) else 0.0
            weight.copy_(torch.randn_like(weight) * scale + centre)
    if dtype == torch.float64 and family != "gpt2":
        # Nor is its final RMS norm float64, where fasttrace's fused log-probability is.
        norm = hf.model.norm
        norm.forward = lambda h: (
            norm.weight * h * torch.rsqrt(h.square().mean(-1, keepdim=True) + norm.variance_epsilon)
        )
    return wrap_model(hf, tokenizer, family)
