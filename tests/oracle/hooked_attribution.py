"""Attribution patching the obvious way: one transformers forward with hooks, retain_grad, and inner products.

It uses nothing of fasttrace's engine. Source: Nanda 2023, "Attribution patching".
"""

import torch


def traced_modules(hf, module):
    """The modules whose outputs are patched: "mlp", "attn" or "block"."""
    blocks = hf.transformer.h if hasattr(hf, "transformer") else hf.model.layers
    if module == "block":
        return list(blocks)
    return [b.mlp if module == "mlp" else getattr(b, "attn", None) or b.self_attn for b in blocks]


def hooked_attribution(hf, ids, targets, begin, end, noise, sigma, module, nudge=None):
    """Return log p of the whole target, (1 + n,) with the clean pass first, and its slopes (L, tokens, n).

    slopes: ⟨∂ log p_s / ∂ output, clean output − output⟩. noise: (n, end - begin, d) standard normal numbers.
    nudge: (token, layers, ε). With it, log p is measured with ε (clean − corrupted) added to the outputs of these
    layers at this token.
    """
    modules, n = traced_modules(hf, module), noise.shape[0]
    row = torch.tensor([[*ids, *targets[:-1]]]).repeat(n + 1, 1)
    weight = hf.get_input_embeddings().weight
    x = weight[row].detach()
    x[1:, begin:end] = (x[1:, begin:end].double() + sigma * torch.as_tensor(noise, dtype=torch.float64)).to(x.dtype)
    outputs = []

    def keep(_, args, out):
        first = out[0] if isinstance(out, tuple) else out
        if first.requires_grad:
            first.retain_grad()
        outputs.append(first)

    def log_p():
        logits = hf(inputs_embeds=x).logits.double().log_softmax(-1)
        at = len(ids) - 1
        return sum(logits[:, at + k, t] for k, t in enumerate(targets))

    hooks = [m.register_forward_hook(keep) for m in modules]
    x.requires_grad_(True)
    score = log_p()
    score[1:].sum().backward()
    for hook in hooks:
        hook.remove()
    moved = [(out[:1] - out[1:]).detach() for out in outputs]
    slopes = torch.stack([(out.grad[1:] * m).sum(-1).T for out, m in zip(outputs, moved, strict=True)])
    if nudge is None:
        return score.detach().numpy(), slopes.numpy()
    token, layers, size = nudge

    def add(layer):
        def hook(_, args, out):
            first = (out[0] if isinstance(out, tuple) else out).clone()
            first[1:, token] += size * moved[layer][:, token]
            return (first, *out[1:]) if isinstance(out, tuple) else first

        return hook

    hooks = [modules[layer].register_forward_hook(add(layer)) for layer in layers]
    with torch.no_grad():
        score = log_p()
    for hook in hooks:
        hook.remove()
    return score.numpy(), slopes.numpy()
