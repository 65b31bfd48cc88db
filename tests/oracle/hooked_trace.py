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


def attn_modules(hf):
    """The attention module of every block."""
    if hasattr(hf, "transformer"):
        return [block.attn for block in hf.transformer.h]
    return [layer.self_attn for layer in hf.model.layers]


def block_modules(hf):
    """Every block."""
    return list(hf.transformer.h if hasattr(hf, "transformer") else hf.model.layers)


MODULES = {"mlp": mlp_modules, "attn": attn_modules, "block": block_modules}


@torch.no_grad()
def hooked_trace(hf, ids, targets, begin, end, noise, sigma, window, tokens, module="mlp", method="denoise"):
    """p_clean, p_noised (n,) and p (len(tokens), L, runs) of the whole target.

    ids: prompt ids. targets: target ids. [begin, end): subject tokens. noise: (n, end - begin, d) standard
    normal numbers. tokens: the prompt tokens to intervene at, each a number or a slice of several at once.
    method: "denoise" gives corrupted rows the clean row's outputs, "noise" the clean rows the corrupted rows',
    "zero" zeros to one clean row.
    """
    modules, n = MODULES[module](hf), noise.shape[0]
    layers = len(modules)
    added = torch.zeros((n + 1, len(ids) + len(targets) - 1, noise.shape[2]), dtype=torch.float64)
    added[1:, begin:end] = sigma * torch.as_tensor(noise, dtype=torch.float64)
    # Which rows of (clean, corrupted …) are run, those whose outputs are taken, those that they are given to.
    if method == "denoise":
        run, source, given = range(n + 1), [0] * n, range(1, n + 1)
    elif method == "noise":
        run, source, given = [*range(1, n + 1), *[0] * n], range(n), range(n, 2 * n)
    else:
        run, source, given = [0], None, [0]
    source, given = source and list(source), list(given)

    def probability(rows, hooks=()):
        noised = added[list(rows)]

        def corrupt(module, args, out):
            return (out.double() + noised).to(out.dtype)

        handles = [hf.get_input_embeddings().register_forward_hook(corrupt)]
        handles += [m.register_forward_hook(hook) for m, hook in hooks]
        try:
            logits = hf(torch.tensor([[*ids, *targets[:-1]]]).repeat(len(rows), 1)).logits
        finally:
            for handle in handles:
                handle.remove()
        logp = logits.double().log_softmax(-1)
        return sum(logp[:, len(ids) - 1 + k, t] for k, t in enumerate(targets)).exp().numpy()

    base = probability(range(n + 1))
    values = np.zeros((len(tokens), layers, len(given)))
    for i, token in enumerate(tokens):

        def replace(module, args, out, token=token):
            changed = (out[0] if isinstance(out, tuple) else out).clone()
            changed[given, token] = 0 if source is None else changed[source, token]
            return (changed, *out[1:]) if isinstance(out, tuple) else changed

        for layer in range(layers):
            low, high = max(0, layer - window // 2), min(layers, layer - (-window // 2))
            values[i, layer] = probability(run, [(modules[x], replace) for x in range(low, high)])[given]
    return float(base[0]), base[1:], values
