"""The loads of the benchmarks, one file per op: `load(draw, **sizes)` and the SHAPES that `make bench` times.

The default sizes are those of SmolLM2-135M.
"""
