"""Plain causal tracing, the reference for sweeps: one whole transformers forward per cell, with hooks.

It uses no code of fasttrace. The caller gives token ids, and noise as numbers. Hooks replace module outputs: an MLP's
(that of its down-projection), what attention adds to the residual stream, or the residual stream after a block.
Source: paper, section 3.2; docs/algorithms.md, sections 3 to 7.
"""

import numpy as np
import torch


def block_modules(hf):
    """Every block. Its output, or the first of several, is the residual stream after it."""
    base = hf.base_model
    base = getattr(base, "decoder", base)
    return list(base.h if hasattr(base, "h") else base.layers)


def mlp_modules(hf):
    """For every block, the module whose output is the MLP's. In OPT and BLOOM it is the down-projection, because OPT
    has no module for its MLP, and BLOOM's adds the residual."""
    inside = {"opt": lambda b: b.fc2, "bloom": lambda b: b.mlp.dense_4h_to_h}
    return [inside.get(hf.config.model_type, lambda b: b.mlp)(block) for block in block_modules(hf)]


def attn_modules(hf):
    """For every block, the module whose (first) output is what attention adds to the residual stream."""
    places = {
        "bloom": lambda b: b.self_attention.dense,
        "falcon": lambda b: b.self_attention,
        "gpt_neox": lambda b: b.attention,
        **dict.fromkeys(("gpt2", "gptj", "gpt_neo"), lambda b: b.attn),
        **dict.fromkeys(("gemma2", "gemma3_text", "olmo2"), lambda b: b.post_attention_layernorm),
    }
    return [places.get(hf.config.model_type, lambda b: b.self_attn)(block) for block in block_modules(hf)]


MODULES = {"mlp": mlp_modules, "attn": attn_modules, "block": block_modules}


def change_first(out, change):
    """A module's output with `change` applied to it, or to the first of several."""
    return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)


def replaced(x, shape, token, given, source):
    """A copy of x in which the sequences `given` have, at `token`, the values of the sequences `source`, or zeros if
    that is None. shape: (sequences, tokens) of x, which may have both in one dimension (OPT's MLP)."""
    whole = x.clone().view(*shape, -1)
    whole[given, token] = 0 if source is None else whole[source, token]
    return whole.view(x.shape)


@torch.no_grad()
def hooked_trace(hf, ids, targets, begin, end, noise, sigma, window, tokens, module="mlp", method="denoise"):
    """Return p_clean, p_noised (n,) and p (len(tokens), L, runs) of the whole target.

    ids: prompt ids. targets: target ids. [begin, end): subject tokens. noise: (n, end - begin, d) standard
    normal numbers. tokens: the prompt tokens to intervene at, each a number or a slice of several at once.
    method: "denoise" puts the clean row's outputs into the corrupted rows, "noise" the corrupted rows' outputs into
    clean rows, "zero" zeros into one clean row.
    module: "mlp", "attn" or "block".
    """
    modules, n = MODULES[module](hf), noise.shape[0]
    layers = len(modules)
    added = torch.zeros((n + 1, len(ids) + len(targets) - 1, noise.shape[2]), dtype=torch.float64)
    added[1:, begin:end] = sigma * torch.as_tensor(noise, dtype=torch.float64)
    added = added.to(hf.device)
    # run: rows of (clean, corrupted …) in the batch. source, given: batch rows that give and that get outputs.
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
            logits = hf(torch.tensor([[*ids, *targets[:-1]]], device=hf.device).repeat(len(rows), 1)).logits
        finally:
            for handle in handles:
                handle.remove()
        logp = logits.double().log_softmax(-1)
        return sum(logp[:, len(ids) - 1 + k, t] for k, t in enumerate(targets)).exp().cpu().numpy()

    base = probability(range(n + 1))
    values = np.zeros((len(tokens), layers, len(given)))
    for i, token in enumerate(tokens):

        def replace(module, args, out, token=token):
            return change_first(out, lambda made: replaced(made, (len(run), added.shape[1]), token, given, source))

        for layer in range(layers):
            low, high = max(0, layer - window // 2), min(layers, layer - (-window // 2))
            values[i, layer] = probability(run, [(modules[x], replace) for x in range(low, high)])[given]
    return float(base[0]), base[1:], values
