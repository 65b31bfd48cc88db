"""Every editing method by its one-at-a-time oracle: options that suit small models, and ΔW for one fact and layer."""

import closed_form
import numpy as np
import torch
from edit_cases import CONTEXTS
from hooked_finetune import hooked_finetune
from hooked_memit import hooked_memit
from hooked_rome import hooked_rome, noised
from hooked_trace import head_modules, mlp_modules

from fasttrace.facts import encode_fact
from fasttrace.ops.noised_embed import fact_key, noised_embed
from fasttrace.settings.methods import SPREAD

VALUE = {"steps": 4, "lr": 0.5, "kl_factor": 0.0625, "weight_decay": 0.5}
# Larger than the paper's, because the probabilities of the small models hardly move otherwise.
TUNE = {"steps": 5, "lr": 5e-3, "epsilon": 1e-2}
SIGMA = 0.7


def options_of(method):
    if method == "rome":
        return {**VALUE, "clamp": 4.0}
    if method == "emmet":
        return {**VALUE, "clamp": 0.75, "window_size": 3}
    if method == "alphaedit":
        null = {"null_threshold": 0.01, "null_unit": "trace", "norm_weight": 0.05}
        return {**VALUE, "clamp": 0.75, "window_size": 3, **null}
    if method == "pmet":
        own = {"lr": 0.3, "kl_factor": 0.01, "covariance_weight": 0.05, "settled_factor": 0.1, "settled_kl": None}
        return {**VALUE, **own, "clamp": 0.75, "window_size": 3}
    if method == "memit":
        # With this covariance weight the update is as large as the weights, and each layer keeps some of the residual.
        return {**VALUE, "clamp": 0.75, "covariance_weight": 0.05, "window_size": 3}
    return {**TUNE, "window_size": 3}


def noise_of(model, fact):
    """Tracing's first noise sample on the subject's tokens, times SIGMA: (subject tokens, d)."""
    one = encode_fact(model.tokenizer, fact)
    place = torch.arange(one.subject_begin, one.subject_end)
    same = torch.full_like(place, fact_key(fact.fact_id))
    zeros = torch.zeros(1, model.width)
    return noised_embed(zeros, place * 0, torch.full(place.shape, SIGMA), same, place * 0, place, 0)


def plain_target(model, fact, problem):
    """Ids of the target, found the obvious way."""
    tokenizer, hf = model.tokenizer, model.hf
    ids = tokenizer(fact.text)["input_ids"]
    if problem.target == "noise":
        length = len(tokenizer(" " + fact.target_true)["input_ids"])
        said = []
        for _ in range(length):
            with torch.no_grad(), noised(hf, tokenizer, fact.text, fact.subject, noise_of(model, fact)):
                said.append(int(hf(torch.tensor([[*ids, *said]])).logits[0, -1].argmax()))
        return said
    return tokenizer(" " + (fact.target_true if problem.target == "true" else fact.target_false))["input_ids"]


def oracle(model, moments, fact, method, problem, layer, window, options=None, history=None, contexts=CONTEXTS):
    noise = noise_of(model, fact) if problem.corrupted else None
    target = plain_target(model, fact, problem)
    options = options or options_of(method)
    if method == "rome":
        value, key = hooked_rome(
            model.hf, model.tokenizer, fact.prompt, fact.subject, target, layer, CONTEXTS,
            lambda k: moments.inverse_key(layer, k[None])[0], 4, 0.5, 0.0625, 0.5, 4.0, noise, problem.minimise,
        )  # fmt: skip
        return {layer: torch.outer(value, key)}
    if method in SPREAD:
        blocks = [block.layer for block in model.blocks]

        def change_of(at, residual, key):
            C = moments.matrix(at).double()
            own = {name: options[name] for name in ("covariance_weight", "norm_weight") if name in options}
            if method == "alphaedit":  # which has no use for the ridge
                own["null_threshold"] = options["null_threshold"] * float(C.trace())
            else:
                C += moments.ridge * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype)
                own = {"covariance_weight": 1.0, **own}
            R, K = (x[:, None].numpy() for x in (residual, key))
            return torch.from_numpy(getattr(closed_form, method)(R, K, C.numpy(), np.zeros((len(C), 0)), **own))

        pmet = {}
        if method == "pmet":
            places = [mlp_modules(model.hf)[window[-1]], head_modules(model.hf)[window[-1]]]
            pmet = {"places": places, "share": np.sqrt, "settling": (0.1, options["settled_kl"])}
        return hooked_memit(
            model.hf, model.tokenizer, blocks, fact.prompt, fact.subject, target, window, contexts, change_of,
            options["steps"], options["lr"], options["kl_factor"], 0.5, options["clamp"], noise, problem.minimise,
            **pmet,
        )  # fmt: skip
    changes = hooked_finetune(
        model.hf, model.tokenizer, fact.text, fact.subject, target, window, options["steps"], options["lr"],
        options["epsilon"], noise, problem.minimise, history=history,
    )  # fmt: skip
    return {at: change.double() for at, (change, _) in changes.items()}
