"""The obvious causal trace: one whole transformers forward per cell, with hooks. Slow, and the truth.

It knows nothing of fasttrace's engine: prompts are encoded with the tokenizer, noise is handed in as numbers,
and a hook replaces module outputs: an MLP's (as its down-projection makes it), what attention adds to the residual
stream, or the stream after a block. Source: paper, section 3.2; docs/algorithms.md, sections 3 to 7.
"""

import numpy as np
import torch


def block_modules(hf):
    """Every block; its output, the first of them where there are several, is the residual stream after it."""
    base = hf.base_model
    base = getattr(base, "decoder", base)
    return list(base.h if hasattr(base, "h") else base.layers)


def mlp_modules(hf):
    """The module of every block whose output is the MLP's. OPT has no module for its MLP, and BLOOM's adds the residual
    within, so there it is the down-projection."""
    inside = {"opt": lambda b: b.fc2, "bloom": lambda b: b.mlp.dense_4h_to_h}
    return [inside.get(hf.config.model_type, lambda b: b.mlp)(block) for block in block_modules(hf)]


def attn_modules(hf):
    """The module of every block whose (first) output is what attention adds to the residual stream."""
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
    """A module's output with `change` made to it, or to the first of several."""
    return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)


def replaced(x, shape, token, given, source):
    """x, of `shape` (sequences, tokens) in any layout (OPT's MLP has all their rows in one), with the token's rows of
    the sequences `given` replaced by those of `source`, or by zeros where that is None."""
    whole = x.clone().view(*shape, -1)
    whole[given, token] = 0 if source is None else whole[source, token]
    return whole.view(x.shape)


@torch.no_grad()
def hooked_trace(hf, ids, targets, begin, end, noise, sigma, window, tokens, module="mlp", method="denoise"):
    """p_clean, p_noised (n,) and p (len(tokens), L, runs) of the whole target.

    ids: prompt ids. targets: target ids. [begin, end): subject tokens. noise: (n, end - begin, d) standard
    normal numbers. tokens: the prompt tokens to intervene at, each a number or a slice of several at once.
    method: "denoise" gives corrupted rows the clean row's outputs, "noise" the clean rows the corrupted rows',
    "zero" zeros to one clean row.
    module: "mlp", "attn" or "block".
    """
    modules, n = MODULES[module](hf), noise.shape[0]
    layers = len(modules)
    added = torch.zeros((n + 1, len(ids) + len(targets) - 1, noise.shape[2]), dtype=torch.float64)
    added[1:, begin:end] = sigma * torch.as_tensor(noise, dtype=torch.float64)
    added = added.to(hf.device)
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
