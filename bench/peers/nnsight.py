"""nnsight, used as on its page about activation patching.

A trace per cell: two invokes, of clean and of corrupted rows, pass outputs at barriers ("Sweep over layers").
An invoke per cell: clean outputs are cached once, then one trace has all layers of a token ("Layer × position").
"""

import nnsight
import numpy as np
import torch
from nnsight.modeling.transformers import TransformersModel
from peers.task import Task

WAYS = ("a trace a cell", "an invoke a cell, all layers in one trace")


def wrap(task: Task) -> TransformersModel:
    hf, tokenizer = task.load()
    return TransformersModel(hf, tokenizer=tokenizer)


def parts(model: TransformersModel):
    """The model's token embeddings and MLPs."""
    if model.config.model_type == "gpt2":
        return model.transformer.wte, [block.mlp for block in model.transformer.h]
    return model.model.embed_tokens, [block.mlp for block in model.model.layers]


def cell(model: TransformersModel, task: Task, token: int, layers: range) -> float:
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


def batch(model: TransformersModel, task: Task, token: int, clean: list[torch.Tensor]) -> list[float]:
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
def sweep(model: TransformersModel, task: Task, way: str) -> np.ndarray:
    """(tokens, L) grid."""
    _, mlps = parts(model)
    if way == WAYS[0]:
        return np.array([[cell(model, task, t, layers) for layers in task.intervals(len(mlps))] for t in task.tokens])
    with model.trace(task.ids):
        clean = nnsight.save([mlp.output.detach() for mlp in mlps])
    return np.array([batch(model, task, t, clean) for t in task.tokens])
