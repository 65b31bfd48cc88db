"""Crews beside the crew of one: copies of a model in this process, and a model in another process.

What they are asked is pickled as a pool of Ray workers does it: a model inside it is the worker's own on the other
side, and arrays are read-only there.
"""

import io
import multiprocessing
import pickle
import random

import torch
from small_models import small_model, trained_tokenizer

from fasttrace.cluster.crew import Crew
from fasttrace.models.adapter import Decoder


class _Pickler(pickle.Pickler):
    def persistent_id(self, one):
        return "model" if isinstance(one, Decoder) else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, *args, model, **keywords):
        super().__init__(*args, **keywords)
        self.model = model

    def persistent_load(self, _name):
        assert self.model is not None, "expected nothing with a model in a process without one"
        return self.model


def packed(one):
    """Anything, pickled: its bytes, and those of its arrays."""
    file, arrays = io.BytesIO(), []
    _Pickler(file, protocol=5, buffer_callback=arrays.append).dump(one)
    return file.getvalue(), [bytes(array) for array in arrays]


def unpacked(sent, model=None):
    """What was `packed`, with another model in place of its own. Its arrays are read-only."""
    return _Unpickler(io.BytesIO(sent[0]), buffers=sent[1], model=model).load()


class Copies(Crew):
    """Models in this process. The items of a map are computed in a shuffled order, each by the next model.

    most: how many results a map gives before it fails, or None.
    """

    def __init__(self, *models, most=None):
        self.models, self.most = models, most

    def ask(self, function, /, *args, **keywords):
        model = self.models[-1]
        function, args, keywords = unpacked(packed((function, args, keywords)), model)
        return unpacked(packed(function(model, *args, **keywords)))

    def map(self, function, items, /):
        sent = [packed((function, item)) for item in items]
        found = {}
        for turn, number in enumerate(random.Random(0).sample(range(len(sent)), len(sent))):
            model = self.models[turn % len(self.models)]
            function, item = unpacked(sent[number], model)
            found[number] = packed(function(model, *item))
        for number in range(len(sent)):
            if number == self.most:
                raise Stopped
            yield unpacked(found[number])

    def batches(self, plan, *, skip=(), progress=None):
        raise NotImplementedError


class Stopped(Exception):
    """Stands for an interruption."""


class Apart(Crew):
    """A small model in another process, until the `with` block ends."""

    def __init__(self, family, dtype):
        self.pipe, theirs = multiprocessing.Pipe()
        spawn = multiprocessing.get_context("spawn")
        self.process = spawn.Process(target=_serve, args=(theirs, family, dtype), daemon=True)
        self.process.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.pipe.send(None)
        self.process.join(60)

    def ask(self, function, /, *args, **keywords):
        self.pipe.send(packed((function, args, keywords)))
        failed, found = self.pipe.recv()
        if failed:
            raise unpacked(found)
        return unpacked(found)

    def map(self, function, items, /):
        for item in items:
            yield self.ask(function, *item)

    def batches(self, plan, *, skip=(), progress=None):
        raise NotImplementedError


def _serve(pipe, family, dtype):
    torch.set_num_threads(1)
    model = small_model(family, trained_tokenizer(), dtype)
    while (sent := pipe.recv()) is not None:
        function, args, keywords = unpacked(sent, model)
        try:
            pipe.send((False, packed(function(model, *args, **keywords))))
        except Exception as error:
            pipe.send((True, packed(error)))
