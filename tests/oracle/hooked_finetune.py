"""Constrained fine-tuning the obvious way: weights of a copy, torch.optim.Adam, and a clamp after every step.

Source: Zhu et al. 2020 (arXiv 2012.00363); paper, section 5.2; docs/algorithms.md, section 15.
"""

import copy

import torch
from hooked_rome import down_projection, noised
from hooked_trace import mlp_modules


def hooked_finetune(
    hf, tokenizer, text, subject, target_ids, layers, steps, lr, epsilon, noise=None, minimise=False, bias=False,
    history=None,
):  # fmt: skip
    """Return layer → (ΔW (d, m), Δb (d,) or None), the change of the weights.

    history: a list to which every step appends (loss, {layer: gradient of W (d, m)}).
    """
    mine = copy.deepcopy(hf)
    modules = {layer: down_projection(mlp_modules(mine)[layer]) for layer in layers}
    tuned = [m.weight for m in modules.values()]
    if bias:
        tuned += [m.bias for m in modules.values() if m.bias is not None]
    for weight in tuned:
        weight.requires_grad_(True)
    before = [w.detach().clone() for w in tuned]
    adam = torch.optim.Adam(tuned, lr=lr)
    ids = [*tokenizer(text)["input_ids"], *target_ids[:-1]]
    first = len(tokenizer(text)["input_ids"]) - 1
    for _ in range(steps):
        with noised(mine, tokenizer, text, subject, noise):
            logp = mine(torch.tensor([ids])).logits[0].log_softmax(-1)
        nll = -sum(logp[first + k, t] for k, t in enumerate(target_ids)) / len(target_ids)
        loss = torch.exp(-nll) if minimise else nll
        adam.zero_grad()
        loss.backward()
        if history is not None:
            gradients = {layer: upright(module, module.weight.grad.clone()) for layer, module in modules.items()}
            history.append((float(loss.detach()), gradients))
        adam.step()
        with torch.no_grad():
            for weight, old in zip(tuned, before, strict=True):
                weight.copy_(weight.clamp(old - epsilon, old + epsilon))
    changes = {}
    for layer, module in modules.items():
        place = next(i for i, w in enumerate(tuned) if w is module.weight)
        change = (module.weight - before[place]).detach()
        shift = None
        if bias and module.bias is not None:
            place = next(i for i, w in enumerate(tuned) if w is module.bias)
            shift = (module.bias - before[place]).detach()
        changes[layer] = (upright(module, change), shift)
    return changes


def upright(module, weight):
    """The weight as (d, m). Conv1D stores it as (m, d)."""
    return weight.T if type(module).__name__ == "Conv1D" else weight
