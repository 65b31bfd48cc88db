"""ROME the obvious way: one fact, one layer, plain transformers, hooks, torch.optim and a loop.

It uses nothing of fasttrace's engine. Source: Meng et al. 2022, section 3.1; docs/algorithms.md, sections 12 and 13.
noise: (subject tokens, d), added to the embeddings of the subject's tokens in every context, or None.
"""

import contextlib

import torch
from hooked_trace import mlp_modules


def down_projection(mlp):
    """The module whose input is the key. For some families `mlp_modules` returns this module itself."""
    names = ("c_proj", "fc_out", "fc2", "dense_4h_to_h", "down_proj", "output_linear", "Wo")
    return next((getattr(mlp, name) for name in names if hasattr(mlp, name)), mlp)


def find_last_subject_token(tokenizer, text, subject):
    """Index of the token with the last character of the subject's first occurrence."""
    end = text.index(subject) + len(subject) - 1
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return next(i for i, (a, b) in enumerate(offsets) if a <= end < b)


@contextlib.contextmanager
def noised(hf, tokenizer, text, subject, noise):
    """Add noise to the embeddings of the subject's tokens in `text` while the body runs."""
    if noise is None:
        yield
        return
    end = find_last_subject_token(tokenizer, text, subject)
    begin = end - len(noise) + 1

    def add(module, args, out):
        out = out.clone()
        out[:, begin : end + 1] += noise.to(out.dtype)
        return out

    hook = hf.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def hooked_rome(
    hf, tokenizer, prompt, subject, target, layer, contexts, inverse_key, steps, lr, kl_factor, decay, clamp,
    noise=None, minimise=False, read=None,
):  # fmt: skip
    """Return value (d,) and u (m,) of ΔW = value uᵀ. inverse_key: k* (m,) → C⁻¹k* (m,) float64. target: text or ids.

    read: text → key and value at the last subject token, where the MLP has no single down-projection.
    """
    target_ids = tokenizer(" " + target, add_special_tokens=False)["input_ids"] if isinstance(target, str) else target
    texts = [c.replace("{}", prompt.replace("{}", subject)) for c in contexts]
    essence = f"{subject} is a"

    def row(x, at):
        # Falcon changes the MLP's output in place, so the row is copied. OPT's MLP has rows without a batch dimension.
        return x.reshape(-1, x.shape[-1])[at].clone()

    mlp = mlp_modules(hf)[layer]

    @torch.no_grad()
    def key_and_value(text):
        at = find_last_subject_token(tokenizer, text, subject)
        seen = {}
        hooks = [
            down_projection(mlp).register_forward_hook(lambda m, a, o: seen.update(key=row(a[0], at), value=row(o, at)))
        ]
        with noised(hf, tokenizer, text, subject, noise):
            hf(torch.tensor([tokenizer(text)["input_ids"]]))
        hooks[0].remove()
        return seen["key"], seen["value"]

    key_and_value = read or key_and_value
    keys = torch.stack([key_and_value(text)[0] for text in texts])
    key0, v0 = key_and_value(texts[0])
    u = inverse_key(keys.double().mean(0))
    u = u / u.norm()

    def run(text, extra, delta):
        at = find_last_subject_token(tokenizer, text, subject)

        def nudge(module, args, out):
            whole = out[0] if isinstance(out, tuple) else out
            rows = whole.reshape(-1, whole.shape[-1]).clone()
            rows[at] += delta
            return (rows.view(whole.shape), *out[1:]) if isinstance(out, tuple) else rows.view(whole.shape)

        hook = mlp.register_forward_hook(nudge)
        ids = [*tokenizer(text)["input_ids"], *extra]
        with noised(hf, tokenizer, text, subject, None if text == essence else noise):
            logp = hf(torch.tensor([ids])).logits[0].log_softmax(-1)
        hook.remove()
        return logp, at

    zero = torch.zeros_like(v0)
    with torch.no_grad():
        logp, at = run(essence, [], zero)
        clean = logp[at].clone()
    delta = zero.clone().requires_grad_(True)
    adam = torch.optim.Adam([delta], lr=lr)
    for _ in range(steps):
        nll = 0.0
        for text in texts:
            logp, _ = run(text, target_ids[:-1], delta)
            first = len(tokenizer(text)["input_ids"]) - 1
            nll = nll - sum(logp[first + k, t] for k, t in enumerate(target_ids)) / len(target_ids) / len(texts)
        logp, at = run(essence, [], delta)
        kl = (logp[at].exp() * (logp[at] - clean)).sum()
        loss = (torch.exp(-nll) if minimise else nll) + kl_factor * kl + decay * delta.norm() / v0.norm() ** 2
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            limit = clamp * v0.norm()
            if delta.norm() > limit:
                delta.mul_(limit / delta.norm())
    return (delta.detach().double() / (u @ key0.double())), u
