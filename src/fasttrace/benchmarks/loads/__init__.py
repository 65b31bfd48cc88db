"""The loads of the benchmarks, one file an op: `load(draw, **sizes)` and the SHAPES that `make bench` times.

Sizes not named take SmolLM2-135M's.
"""
