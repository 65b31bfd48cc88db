"""Editing and scoring in the released way: one fact and one layer at a time, with whole transformers forwards.

Each step of ROME runs every padded context through all layers and computes logits at every token. Fine-tuning forms the
gradient as a matrix. Scoring writes the update into the weights, runs each prompt with both targets, and restores the
weights. Source: google/belief-localization, rome/compute_v.py, baselines/ft/ft_main.py and
experiments/py/eval_utils_counterfact.py, as described in docs/algorithms.md, sections 12 to 18.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fasttrace.editing.plan import EditPlan
from fasttrace.editing.spread import mean_key
from fasttrace.editing.value import FactContexts
from fasttrace.facts import EncodedFact


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, padded on the right."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


def value(hf: Any, contexts: FactContexts, layer: int, settings: Any, *, block: bool = False) -> Tensor:
    """δ of ROME: (d,) float32 or wider, on the model's device. hf: of the Llama family, or GPT-J.

    block: δ of MEMIT instead, at the output of the layer.
    """
    device, wide = hf.device, torch.promote_types(hf.dtype, torch.float32)
    ids, mask = (x.to(device) for x in padded(contexts.ids))
    last = torch.tensor(contexts.last, device=device)
    each = torch.arange(len(ids), device=device)
    count, target = len(contexts.target), torch.tensor(contexts.target, device=device)
    ends = mask[:-1].sum(1)
    where = ends[:, None] - count + torch.arange(count, device=device)
    delta = torch.zeros(hf.config.hidden_size, dtype=wide, device=device, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=settings.lr)
    first: dict[str, Tensor] = {}

    def nudge(module: Any, inputs: Any, out: Tensor) -> Tensor:
        first.setdefault("v0", out[0, last[0]].detach().to(wide))
        out = out.clone()
        out[each, last] += delta.to(out.dtype)
        return out

    layers = hf.transformer.h if hf.config.model_type == "gptj" else hf.model.layers
    hook = (layers[layer] if block else layers[layer].mlp).register_forward_hook(nudge)
    for _ in range(settings.steps):
        adam.zero_grad()
        logp = hf(input_ids=ids, attention_mask=mask).logits.to(wide).log_softmax(-1)
        kl = logp[-1, last[-1]]
        first.setdefault("kl", kl.detach().clone())
        nll = -logp[each[:-1, None], where, target].mean()
        loss = nll + settings.kl_factor * torch.nn.functional.kl_div(first["kl"], kl, log_target=True, reduction="sum")
        (loss + settings.weight_decay * delta.norm() / first["v0"].norm() ** 2).backward()
        adam.step()
        with torch.no_grad():
            limit = settings.clamp * first["v0"].norm()
            if delta.norm() > limit:
                delta.mul_(limit / delta.norm())
    hook.remove()
    return delta.detach()


def memit(
    hf: Any, contexts: FactContexts, window: Sequence[int], settings: Any, C: dict[int, Tensor], past: dict[int, Tensor]
) -> None:
    """Write MEMIT's edit of one fact into the weights, after earlier ones. hf: of the Llama family, on the CPU.

    Each layer takes two forwards, for the key and for what is missing, and a solve of m × m in float64. C: (m, m)
    float64 of each layer. past: (m, m) K_p K_pᵀ of each layer, to which the fact's keys are added.
    Source: `execute_memit` of jianghoucheng/AlphaEdit, memit/memit_seq_main.py.
    """
    top, layers = window[-1], hf.model.layers
    ids, mask = padded(contexts.ids[:-1])
    each, last = torch.arange(len(ids)), torch.tensor(contexts.last[:-1])
    kept: dict[str, Tensor] = {}

    def seen(layer: int) -> tuple[Tensor, Tensor]:
        """(mean key (m,) at the layer, output (d,) of the last layer for the bare prompt), float64."""
        hooks = [
            layers[layer].mlp.down_proj.register_forward_hook(lambda m, a, out: kept.update(key=a[0][each, last])),
            layers[top].register_forward_hook(lambda m, a, out: kept.update(out=out[0, last[0]])),
        ]
        hf(input_ids=ids, attention_mask=mask)
        for hook in hooks:
            hook.remove()
        return mean_key(kept["key"]), kept["out"].double()

    delta = value(hf, contexts, top, settings, block=True)
    with torch.no_grad():
        z = seen(top)[1] + delta.double()
        for left, layer in zip(range(len(window), 0, -1), window, strict=True):
            key, _ = seen(layer)
            _, now = seen(layer)  # a forward of its own, as in the released code
            system = settings.covariance_weight * C[layer] + past[layer] + torch.outer(key, key)
            change = torch.outer((z - now) / left, torch.linalg.solve(system, key))
            layers[layer].mlp.down_proj.weight += change.to(hf.dtype)
            past[layer] += torch.outer(key, key)


def tuned(hf: Any, fact: EncodedFact, target: Sequence[int], layer: int, settings: Any) -> Tensor:
    """ΔW of constrained fine-tuning of one layer: (d, m)."""
    weight = hf.model.layers[layer].mlp.down_proj.weight
    before = weight.detach().clone()
    weight.requires_grad_(True)
    adam = torch.optim.Adam([weight], lr=settings.lr)
    ids = torch.tensor([[*fact.ids, *target[:-1]]])
    for _ in range(settings.steps):
        adam.zero_grad()
        logp = hf(input_ids=ids).logits[0, len(fact.ids) - 1 :].log_softmax(-1)
        (-logp.gather(1, torch.tensor(target)[:, None]).mean()).backward()
        adam.step()
        with torch.no_grad():
            weight.copy_(weight.clamp(before - settings.epsilon, before + settings.epsilon))
    change = (weight - before).detach()
    weight.requires_grad_(False).grad = None
    with torch.no_grad():
        weight.copy_(before)
    return change


@torch.no_grad()
def scored(hf: Any, plan: EditPlan, fact: EncodedFact, layer: int, change: Tensor) -> list[float]:
    """log p of the edited and the true target on every prompt, with the update written into the weights."""
    weight = hf.model.layers[layer].mlp.down_proj.weight
    saved = weight.clone()
    weight += change
    pairs = [(prompt.ids, target) for prompt in plan.prompts(fact) for target in prompt.targets[:2]]
    ids, mask = padded([(*prompt, *target) for prompt, target in pairs])
    logp = hf(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    weight.copy_(saved)
    return [
        float(sum(logp[row, len(prompt) - 1 + k, token] for k, token in enumerate(target)))
        for row, (prompt, target) in enumerate(pairs)
    ]
