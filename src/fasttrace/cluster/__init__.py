"""Who computes a sweep: this process, or workers on the GPUs and machines of a Ray cluster.

A plan says what is to be computed, and `crew` who does it. `pieces` cuts a plan, `pool` hands the pieces to workers.
"""
