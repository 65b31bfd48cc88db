"""The obvious causal trace: one whole transformers forward per cell, with hooks. Slow, and the truth.

It knows nothing of fasttrace's engine: prompts are encoded with the tokenizer, noise is handed in as numbers,
and a hook replaces module outputs. Source: paper, section 3.2; ALGORITHMS, section 1.
"""

import numpy as np
import torch


def mlp_modules(hf):
    """The MLP module of every block."""
    if hasattr(hf, "transformer"):
        return [block.mlp for block in hf.transformer.h]
    return [layer.mlp for layer in hf.model.layers]


@torch.no_grad()
def hooked_trace(hf, ids, targets, begin, end, noise, sigma, window, tokens):
    """p_clean, p_noised (n,) and p_restored (len(tokens), L, n) of the whole target.

    ids: prompt ids. targets: target ids. [begin, end): subject tokens. noise: (n, end - begin, d) standard
    normal numbers. tokens: the prompt tokens to restore.
    """
    modules, n = mlp_modules(hf), noise.shape[0]
    layers = len(modules)
    row = torch.tensor([[*ids, *targets[:-1]]]).repeat(n + 1, 1)
    added = torch.zeros((n + 1, row.shape[1], noise.shape[2]), dtype=torch.float64)
    added[1:, begin:end] = sigma * torch.as_tensor(noise, dtype=torch.float64)

    def corrupt(module, args, out):
        return (out.double() + added).to(out.dtype)

    def probability(logits):
        logp = logits.double().log_softmax(-1)
        at = len(ids) - 1
        return sum(logp[:, at + k, t] for k, t in enumerate(targets)).exp().numpy()

    embedding = hf.get_input_embeddings().register_forward_hook(corrupt)
    try:
        base = probability(hf(row).logits)
        restored = np.zeros((len(tokens), layers, n))
        for i, token in enumerate(tokens):
            for layer in range(layers):
                low, high = max(0, layer - window // 2), min(layers, layer - (-window // 2))

                def restore(module, args, out, token=token):
                    out = out.clone()
                    out[1:, token] = out[0, token]
                    return out

                hooks = [modules[x].register_forward_hook(restore) for x in range(low, high)]
                restored[i, layer] = probability(hf(row).logits)[1:]
                for hook in hooks:
                    hook.remove()
    finally:
        embedding.remove()
    return float(base[0]), base[1:], restored
