"""MEMIT, EMMET or AlphaEdit for one fact the obvious way: plain transformers, hooks, weights written layer by layer.

It uses nothing of fasttrace's engine. Source: Meng et al. 2022 (arXiv 2210.07229), section 4; docs/algorithms.md,
sections 12 and 14.
"""

import torch
from hooked_rome import down_projection, find_last_subject_token, noised
from hooked_trace import mlp_modules


def hooked_memit(
    hf, tokenizer, blocks, prompt, subject, target_ids, window, contexts, change_of,
    steps, lr, kl_factor, decay, clamp, noise=None, minimise=False,
):  # fmt: skip
    """Return layer → ΔW (d, m) float64. blocks: the model's blocks. change_of: layer, residual (d,), key (m,) → ΔW."""
    texts = [c.replace("{}", prompt.replace("{}", subject)) for c in contexts]
    essence = f"{subject} is a"
    top = window[-1]

    def first(out):
        return out[0] if isinstance(out, tuple) else out

    def run(text, extra, delta):
        at = find_last_subject_token(tokenizer, text, subject)

        def nudge(module, args, out):
            rows = first(out).clone()
            rows[0, at] += delta
            return (rows, *out[1:]) if isinstance(out, tuple) else rows

        hook = blocks[top].register_forward_hook(nudge)
        with noised(hf, tokenizer, text, subject, None if text == essence else noise):
            logp = hf(torch.tensor([[*tokenizer(text)["input_ids"], *extra]])).logits[0].log_softmax(-1)
        hook.remove()
        return logp, at

    @torch.no_grad()
    def seen(text, layer):
        """Return the key at `layer` and the top block's output, both at the last subject token."""
        at = find_last_subject_token(tokenizer, text, subject)
        kept = {}
        hooks = [
            down_projection(mlp_modules(hf)[layer]).register_forward_hook(
                lambda m, a, o: kept.update(key=a[0].reshape(-1, a[0].shape[-1])[at].clone())
            ),
            blocks[top].register_forward_hook(lambda m, a, o: kept.update(out=first(o)[0, at].clone())),
        ]
        with noised(hf, tokenizer, text, subject, noise):
            hf(torch.tensor([tokenizer(text)["input_ids"]]))
        for hook in hooks:
            hook.remove()
        return kept["key"], kept["out"]

    z0 = seen(texts[0], top)[1]
    with torch.no_grad():
        logp, at = run(essence, [], torch.zeros_like(z0))
        clean = logp[at].clone()
    delta = torch.zeros_like(z0, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=lr)
    for _ in range(steps):
        nll = 0.0
        for text in texts:
            logp, _ = run(text, target_ids[:-1], delta)
            begin = len(tokenizer(text)["input_ids"]) - 1
            nll = nll - sum(logp[begin + k, t] for k, t in enumerate(target_ids)) / len(target_ids) / len(texts)
        logp, at = run(essence, [], delta)
        kl = (logp[at].exp() * (logp[at] - clean)).sum()
        loss = (torch.exp(-nll) if minimise else nll) + kl_factor * kl + decay * delta.norm() / z0.norm() ** 2
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            limit = clamp * z0.norm()
            if delta.norm() > limit:
                delta.mul_(limit / delta.norm())
    z = (z0 + delta.detach()).double()

    changes = {}
    for left, layer in zip(range(len(window), 0, -1), window, strict=True):
        # The bare prompt has half of the weight, and the other contexts share the other half.
        share = [0.5, *(0.5 / (len(texts) - 1) for _ in texts[1:])] if len(texts) > 1 else [1.0]
        key = sum(part * seen(text, layer)[0].double() for part, text in zip(share, texts, strict=True))
        residual = (z - seen(texts[0], top)[1].double()) / left
        changes[layer] = change_of(layer, residual, key)
        module = down_projection(mlp_modules(hf)[layer])
        update = changes[layer].T if _stored_across(module) else changes[layer]
        with torch.no_grad():
            module.weight += update.to(module.weight.dtype)
    with torch.no_grad():
        for layer in window:
            module = down_projection(mlp_modules(hf)[layer])
            module.weight -= (changes[layer].T if _stored_across(module) else changes[layer]).to(module.weight.dtype)
    return changes


def _stored_across(module):
    """Whether the weight is stored (in, out), as Conv1D does."""
    return type(module).__name__ == "Conv1D"
