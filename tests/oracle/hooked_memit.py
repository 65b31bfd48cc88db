"""MEMIT, EMMET, AlphaEdit or PMET for one fact the obvious way: plain transformers, hooks, weights written by layer.

It uses nothing of fasttrace's engine. Sources: Meng et al. 2022 (arXiv 2210.07229), section 4; Li et al. 2023
(arXiv 2308.08742) and its code; docs/algorithms.md, sections 12 and 14.
"""

import torch
from hooked_experts import expert_weight, key_and_value_of
from hooked_rome import down_projection, find_last_subject_token, noised
from hooked_trace import mlp_modules


def hooked_memit(
    hf, tokenizer, blocks, prompt, subject, target_ids, window, contexts, change_of,
    steps, lr, kl_factor, decay, clamp, noise=None, minimise=False, places=None, share=None, settling=None,
    experts=None,
):  # fmt: skip
    """Return layer → ΔW (d, m) float64. blocks: the model's blocks. change_of: layer, residual (d,), key (m,) → ΔW.

    places: modules to whose outputs a δ each is added; the edit has to give the first one's (the window's last block).
    experts: layer → those that are changed, whose down-projections are side by side in ΔW; none at a dense layer.
    share: layers left → what the missing part is divided by (their number). settling: PMET's (factor, KL), or None.
    """
    experts = experts or {}
    texts = [c.replace("{}", prompt.replace("{}", subject)) for c in contexts]
    essence = f"{subject} is a"
    top = window[-1]
    places = places or [blocks[top]]
    share = share or float

    def first(out):
        return out[0] if isinstance(out, tuple) else out

    def run(text, extra, deltas):
        at = find_last_subject_token(tokenizer, text, subject)

        def nudge(delta):
            def added(module, args, out):
                rows = first(out).clone()
                rows[0, at] += delta
                return (rows, *out[1:]) if isinstance(out, tuple) else rows

            return added

        hooks = [place.register_forward_hook(nudge(delta)) for place, delta in zip(places, deltas, strict=True)]
        with noised(hf, tokenizer, text, subject, None if text == essence else noise):
            logp = hf(torch.tensor([[*tokenizer(text)["input_ids"], *extra]])).logits[0].log_softmax(-1)
        for hook in hooks:
            hook.remove()
        return logp, at

    @torch.no_grad()
    def seen(text, layer):
        """Return the key at `layer` and the outputs of `places`, all at the last subject token."""
        at = find_last_subject_token(tokenizer, text, subject)
        kept, outputs = {}, [None] * len(places)
        hooks = [
            *(
                down_projection(mlp_modules(hf)[layer]).register_forward_hook(
                    lambda m, a, o: kept.update(key=a[0].reshape(-1, a[0].shape[-1])[at].clone())
                )
                for _ in range(0 if experts.get(layer) else 1)
            ),
            *(
                place.register_forward_hook(lambda m, a, o, n=n: outputs.__setitem__(n, first(o)[0, at].clone()))
                for n, place in enumerate(places)
            ),
        ]
        with noised(hf, tokenizer, text, subject, noise):
            hf(torch.tensor([tokenizer(text)["input_ids"]]))
        for hook in hooks:
            hook.remove()
        if own := experts.get(layer):
            kept["key"] = key_and_value_of(hf, tokenizer, subject, layer, own)(text)[0]
        return kept["key"], outputs

    origins = seen(texts[0], top)[1]
    with torch.no_grad():
        logp, at = run(essence, [], [torch.zeros_like(v) for v in origins])
        clean = logp[at].clone()
    deltas = [torch.zeros_like(v, requires_grad=True) for v in origins]
    adam = torch.optim.Adam(deltas, lr=lr)
    nll_factor = 1.0
    for _ in range(steps):
        nll, settled = 0.0, True
        for text in texts:
            logp, _ = run(text, target_ids[:-1], deltas)
            begin = len(tokenizer(text)["input_ids"]) - 1
            settled &= all(int(logp[begin + k].argmax()) == t for k, t in enumerate(target_ids))
            nll = nll - sum(logp[begin + k, t] for k, t in enumerate(target_ids)) / len(target_ids) / len(texts)
        logp, at = run(essence, [], deltas)
        kl = (logp[at].exp() * (logp[at] - clean)).sum()
        size = sum(delta.norm() / v.norm() ** 2 for delta, v in zip(deltas, origins, strict=True))
        loss = nll_factor * (torch.exp(-nll) if minimise else nll) + kl_factor * kl + decay * size
        if settling and not minimise:
            nll_factor = settling[0] if settled else 1.0
            if settled and settling[1] is not None and kl_factor * kl.detach() < settling[1]:
                break
            if loss.detach() < 0.05:
                break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            for delta, v in zip(deltas, origins, strict=True):
                if delta.norm() > clamp * v.norm():
                    delta.mul_(clamp * v.norm() / delta.norm())
    z = (origins[0] + deltas[0].detach()).double()

    changes = {}
    unedited = [weight.detach().clone() for weight in hf.parameters()]
    for left, layer in zip(range(len(window), 0, -1), window, strict=True):
        # The bare prompt has half of the weight, and the other contexts share the other half.
        parts = [0.5, *(0.5 / (len(texts) - 1) for _ in texts[1:])] if len(texts) > 1 else [1.0]
        key = sum(part * seen(text, layer)[0].double() for part, text in zip(parts, texts, strict=True))
        residual = (z - seen(texts[0], top)[1][0].double()) / share(left)
        changes[layer] = change_of(layer, residual, key)
        with torch.no_grad():
            if own := experts.get(layer):
                for expert, part in zip(own, changes[layer].chunk(len(own), dim=1), strict=True):
                    expert_weight(mlp_modules(hf)[layer], expert).add_(part)
                continue
            module = down_projection(mlp_modules(hf)[layer])
            update = changes[layer].T if _stored_across(module) else changes[layer]
            module.weight += update.to(module.weight.dtype)
    with torch.no_grad():
        for weight, old in zip(hf.parameters(), unedited, strict=True):
            weight.copy_(old)
    return changes


def _stored_across(module):
    """Whether the weight is stored (in, out), as Conv1D does."""
    return type(module).__name__ == "Conv1D"
