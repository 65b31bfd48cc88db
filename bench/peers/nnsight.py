"""nnsight, used as on its page about activation patching.

A trace per cell: two invokes, of clean and of corrupted rows, pass outputs at barriers ("Sweep over layers").
An invoke per cell: clean outputs are cached once, then one trace has all layers of a token ("Layer × position").
Prompts with counterfactuals are patched with cached clean outputs: a trace per cell, as in its tutorial on IOI, or an
invoke per cell and a trace per layer, as under "Layer × position". A head is a slice of the output projection's input,
as on its page about heads.
"""

import nnsight
import numpy as np
import torch
from nnsight.modeling.transformers import TransformersModel
from peers.task import Noised, Paired, Task

WAYS = ("a trace a cell", "an invoke a cell, all layers in one trace")

PAIRED_WAYS = (
    WAYS[0],
    "an invoke a cell, a trace a layer",
    "an invoke a cell, a trace a layer, from the first difference on",
)


def wrap(task: Task) -> TransformersModel:
    hf, tokenizer = task.load()
    return TransformersModel(hf, tokenizer=tokenizer)


def parts(model: TransformersModel):
    """The model's token embeddings and MLPs."""
    if model.config.model_type == "gpt2":
        return model.transformer.wte, [block.mlp for block in model.transformer.h]
    return model.model.embed_tokens, [block.mlp for block in model.model.layers]


def cell(model: TransformersModel, task: Noised, token: int, layers: range) -> float:
    embedding, mlps = parts(model)
    with model.trace() as tracer:
        barriers = {i: tracer.barrier(2) for i in layers}
        with tracer.invoke(task.ids):
            for i in layers:
                clean = mlps[i].output
                barriers[i]()
        with tracer.invoke(task.ids.repeat(task.samples, 1)):
            task.corrupt(embedding.output)
            for i in layers:
                barriers[i]()
                mlps[i].output[:, token] = clean[:, token]
            logits = model.output.logits.save()
    return task.score(logits)[0]


def batch(model: TransformersModel, task: Noised, token: int, clean: list[torch.Tensor]) -> list[float]:
    embedding, mlps = parts(model)
    rows = task.ids.repeat(task.samples, 1)
    with model.trace() as tracer:
        found = nnsight.save({})
        for layer, layers in enumerate(task.intervals(len(mlps))):
            with tracer.invoke(rows):
                task.corrupt(embedding.output)
                for i in layers:
                    mlps[i].output[:, token] = clean[i][:, token]
                found[layer] = task.score(model.output.logits)[0]
    return [found[layer] for layer in range(len(mlps))]


@torch.no_grad()
def sweep(model: TransformersModel, task: Noised, way: str) -> np.ndarray:
    """(tokens, L) grid."""
    _, mlps = parts(model)
    if way == WAYS[0]:
        return np.array([[cell(model, task, t, layers) for layers in task.intervals(len(mlps))] for t in task.tokens])
    with model.trace(task.ids):
        clean = nnsight.save([mlp.output.detach() for mlp in mlps])
    return np.array([batch(model, task, t, clean) for t in task.tokens])


def places(model: TransformersModel, task: Paired):
    """For every layer, a function that returns what cells replace: the block's output, or the projection's input."""
    gpt2 = model.config.model_type == "gpt2"
    blocks = model.transformer.h if gpt2 else model.model.layers
    if not task.by_head:
        return [lambda b=block: b.output for block in blocks]
    projections = [block.attn.c_proj if gpt2 else block.self_attn.o_proj for block in blocks]
    return [lambda p=projection: p.input for projection in projections]


@torch.no_grad()
def paired(model: TransformersModel, task: Paired, way: str) -> np.ndarray:
    """(n, T, L, H) grid."""
    n, length, layers, heads = task.expected.shape
    outputs = places(model, task)
    with model.trace(task.clean):
        clean = nnsight.save([output().detach().clone() for output in outputs])
    size = clean[0].shape[-1] // heads

    def replace(layer, token, head):
        columns = slice(head * size, (head + 1) * size)
        outputs[layer]()[:, token, columns] = clean[layer][:, token, columns]

    found = torch.empty(length, layers, heads, n, dtype=torch.float64)
    if way == PAIRED_WAYS[0]:
        for token, layer, head in np.ndindex(length, layers, heads):
            with model.trace(task.corrupted):
                replace(layer, token, head)
                score = nnsight.save(task.score(model.lm_head.output))
            found[token, layer, head] = score
        return found.permute(3, 0, 1, 2).numpy()
    begin = 0 if way == PAIRED_WAYS[1] else task.begin
    with model.trace(task.corrupted):
        unchanged = nnsight.save(task.score(model.lm_head.output))
    found[:begin] = unchanged
    for layer in range(layers):
        with model.trace() as tracer:
            scores = nnsight.save([])
            for token, head in np.ndindex(length - begin, heads):
                with tracer.invoke(task.corrupted):
                    replace(layer, begin + token, head)
                    scores.append(task.score(model.lm_head.output))
        found[begin:, layer] = torch.stack(list(scores)).view(length - begin, heads, n)
    return found.permute(3, 0, 1, 2).numpy()


SWEEPS = {Noised: (WAYS, sweep), Paired: (PAIRED_WAYS, paired)}
