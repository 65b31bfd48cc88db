"""The released code's edits in a few lines. In Fact Forcing a hook adds new noise in every forward, whatever its batch.

Source: google/belief-localization, experiments/evaluate.py (`get_subject_noising_function`), rome/compute_u.py,
rome/compute_v.py, memit/memit_main.py, memit/compute_z.py, baselines/ft/ft_main.py.
"""

import contextlib
import copy

import numpy as np
import torch
from hooked_rome import down_projection, find_last_subject_token
from hooked_trace import mlp_modules


@contextlib.contextmanager
def noised_forwards(hf, span, sigma):
    """Add σ · randn to the embeddings of the tokens of `span` in every row, drawn anew in every forward, or do nothing.

    span: (first, past), or None for no noise.
    """
    if span is None:
        yield
        return
    first, past = span
    generator = np.random.RandomState(1)

    def add(module, args, out):
        noise = torch.from_numpy(generator.randn(out.shape[0], past - first, out.shape[2]))
        out = out.clone()
        room = min(past, out.shape[1]) - first
        out[:, first:past] += (sigma * noise[:, :room]).to(out.dtype)
        return out

    hook = hf.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def forward(hf, rows):
    """Logits (rows, longest, V) of one batch, padded on the right."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return hf(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)


@contextlib.contextmanager
def watched(module, change=None):
    """Yield a dict with the module's last `input` and `output`. change: (rows) → rows, applied to the output."""
    seen = {}

    def hook(module, args, out):
        rows = out[0] if isinstance(out, tuple) else out
        seen["input"], seen["output"] = args[0].detach(), rows.detach().clone()
        if change is not None:
            rows = change(rows)
            return (rows, *out[1:]) if isinstance(out, tuple) else rows
        return None

    handle = module.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


class Inputs:
    """The sequences of a fact in the released loops, and where the subject ends in each."""

    def __init__(self, tokenizer, prompt, subject, target, contexts):
        texts = [context.replace("{}", prompt.replace("{}", subject)) for context in contexts]
        encode = lambda text: tokenizer(text)["input_ids"]  # noqa: E731
        self.prompts, self.target = [encode(text) for text in texts], list(target)
        self.rows = [*([*ids, *target[:-1]] for ids in self.prompts), encode(f"{subject} is a")]
        self.at = [find_last_subject_token(tokenizer, text, subject) for text in (*texts, f"{subject} is a")]

    def nll(self, logp):
        """The mean over contexts of −log p(target) per token."""
        parts = [
            -sum(logp[row, len(ids) - 1 + k, t] for k, t in enumerate(self.target)) / len(self.target)
            for row, ids in enumerate(self.prompts)
        ]
        return sum(parts) / len(parts)


def optimised(hf, inputs, module, steps, lr, kl_factor, weight_decay, clamp, erase=False, to_the_end=False):
    """(v0, δ, losses) of the released loop: `steps` losses, and an update after the last one only if `to_the_end`."""
    delta, v0, before = None, None, None
    losses, patience = [], 0

    def add(rows):
        rows = rows.clone()
        for row, at in enumerate(inputs.at):
            rows[row, at] += delta
        return rows

    for step in range(steps):
        if delta is None:
            delta = torch.zeros(hf.get_input_embeddings().weight.shape[1], dtype=hf.dtype, requires_grad=True)
            adam = torch.optim.Adam([delta], lr=lr)
        with watched(module, add) as seen:
            logp = forward(hf, inputs.rows)
        last = logp[-1, inputs.at[-1]]
        if v0 is None:
            v0, before = seen["output"][0, inputs.at[0]], last.detach().clone()
        nll = inputs.nll(logp)
        kl = (last.exp() * (last - before)).sum()
        loss = (torch.exp(-nll) if erase else nll) + kl_factor * kl + weight_decay * delta.norm() / v0.norm() ** 2
        losses.append(float(loss.detach()))
        if not erase and losses[-1] < 0.05:
            patience += 1
            if patience >= 5:
                break
            patience = 0  # the reset that belongs to a loss that is not low: the count never passes 1
        if step == steps - 1 and not to_the_end:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            most = clamp * v0.norm()
            if delta.norm() > most:
                delta.mul_(most / delta.norm())
    return v0, delta.detach(), losses


def released_rome(hf, inputs, layer, span, sigma, inverse_key, steps, lr, kl_factor, weight_decay, clamp, erase=False):
    """(layer → ΔW (d, m), losses)."""
    mlp = mlp_modules(hf)[layer]
    down = down_projection(mlp)
    with noised_forwards(hf, span, sigma):
        with torch.no_grad(), watched(down) as seen:
            forward(hf, inputs.prompts)
        keys = torch.stack([seen["input"][row, at] for row, at in enumerate(inputs.at[:-1])])
        u = inverse_key(keys.double().mean(0))
        u = u / u.norm()
        v0, delta, losses = optimised(
            hf, inputs, mlp, steps, lr, kl_factor, weight_decay, clamp, erase, to_the_end=erase
        )
        with torch.no_grad(), watched(down) as seen:
            forward(hf, inputs.prompts[:1])
        key, output = seen["input"][0, inputs.at[0]], seen["output"][0, inputs.at[0]]
    return {layer: torch.outer((v0 + delta - output).double() / (u @ key.double()), u)}, losses


def released_memit(
    hf, inputs, blocks, window, span, sigma, second_moment, steps, lr, kl_factor, weight_decay, clamp,
    covariance_weight, erase=False,
):  # fmt: skip
    """(layer → ΔW (d, m), losses)."""
    mine = copy.deepcopy(hf)
    tops = [module for module in mine.modules() if type(module) is type(blocks[0])]
    changes = {}
    with noised_forwards(mine, span, sigma):
        v0, delta, losses = optimised(mine, inputs, tops[window[-1]], steps, lr, kl_factor, weight_decay, clamp, erase)
        for left, layer in zip(range(len(window), 0, -1), window, strict=True):
            down = down_projection(mlp_modules(mine)[layer])
            with torch.no_grad(), watched(down) as seen:
                forward(mine, inputs.prompts)
            keys = torch.stack([seen["input"][row, at] for row, at in enumerate(inputs.at[:-1])]).double()
            key = torch.stack([keys[0], keys[1:].mean(0)]).mean(0)
            with torch.no_grad(), watched(tops[window[-1]]) as seen:
                forward(mine, inputs.prompts[:1])
            residual = (v0 + delta - seen["output"][0, inputs.at[0]]).double() / left
            matrix = covariance_weight * second_moment(layer) + torch.outer(key, key)
            changes[layer] = torch.outer(residual, torch.linalg.solve(matrix, key))
            with torch.no_grad():
                across = type(down).__name__ == "Conv1D"
                down.weight += (changes[layer].T if across else changes[layer]).to(down.weight.dtype)
    return changes, losses


def released_finetune(hf, inputs, layers, span, sigma, rows, steps, lr, epsilon, erase=False, least=1e-2):
    """(layer → ΔW (d, m), losses). rows: noise rows of each forward. span: None for no noise. least: loss of a step."""
    mine = copy.deepcopy(hf)
    downs = {layer: down_projection(mlp_modules(mine)[layer]) for layer in layers}
    weights = [part for down in downs.values() for part in (down.weight, down.bias) if part is not None]
    before = [weight.detach().clone() for weight in weights]
    for parameter in mine.parameters():
        parameter.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    adam = torch.optim.Adam(weights, lr=lr)
    losses, patience = [], 0
    begin = len(inputs.prompts[0]) - 1
    with noised_forwards(mine, span, sigma):
        for _ in range(steps):
            logp = forward(mine, inputs.rows[:1] * rows)
            nll = -sum(logp[:, begin + k, t].sum() for k, t in enumerate(inputs.target))
            loss = torch.exp(-nll) if erase else nll
            losses.append(float(loss.detach()))
            if losses[-1] >= least:
                adam.zero_grad()
                loss.backward()
                adam.step()
            with torch.no_grad():
                for weight, old in zip(weights, before, strict=True):
                    weight.copy_(weight.clamp(old - epsilon, old + epsilon))
            if not erase:
                patience = patience + 1 if losses[-1] < least else 0
                if patience >= 5:
                    break
    changes = {}
    for layer, down in downs.items():
        change = (down.weight - before[next(i for i, w in enumerate(weights) if w is down.weight)]).detach()
        changes[layer] = change.T if type(down).__name__ == "Conv1D" else change
    return changes, losses
