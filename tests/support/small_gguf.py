"""A small Llama as a GGUF file, with random weights."""

import json

import numpy as np

WIDTH, KEYS, HEADS, LAYERS = 48, 80, 4, 2


def write_gguf(path, tokenizer, seed=0):
    """Write a GGUF file with the vocabulary of a byte-level BPE tokenizer, in float32."""
    from gguf import GGUFWriter, TokenType

    raw = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    words = sorted(raw["vocab"], key=raw["vocab"].get)
    writer = GGUFWriter(path, "llama")
    writer.add_name("small")
    writer.add_context_length(160)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(KEYS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_types([TokenType.NORMAL] * len(words))
    writer.add_token_merges([" ".join(pair) for pair in raw["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    draw = np.random.default_rng(seed)
    shapes = {"token_embd": (len(words), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        square = {f"attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
        mlp = {"ffn_gate": (KEYS, WIDTH), "ffn_up": (KEYS, WIDTH), "ffn_down": (WIDTH, KEYS)}
        norms = {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in (square | mlp | norms).items()}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", (0.2 * draw.standard_normal(shape)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
