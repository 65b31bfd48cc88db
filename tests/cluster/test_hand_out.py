"""In which order a pool hands out work and gives results to its caller, without Ray."""

from collections import deque

from fasttrace.cluster.jobs import Job, Member, State
from fasttrace.cluster.packing import Packed
from fasttrace.cluster.pool import Pool


def test_a_worker_has_its_next_piece_before_the_caller_has_the_last(monkeypatch):
    """The caller commits what it gets, which may take longer than a piece."""
    seen = []

    def hand_out(self, member, job):
        seen.append(f"out {job.number}")
        member.job = job

    def step(self, member, kind, reference):
        job, member.job = member.job, None
        return job, job.number

    def finished(self, only=None, *, wait=True):
        return [(member, "call", None) for member in self.state.members if member.job is not None]

    for name, function in (("_hand_out", hand_out), ("_step", step), ("_finished", finished)):
        monkeypatch.setattr(Pool, name, function)
    pool = Pool.__new__(Pool)
    pool.state, pool.again = State(members=[Member("worker 1", ready=True)]), deque()
    for job, _ in pool._run(Job(b"", Packed(b"", frozenset()), number) for number in range(3)):
        seen.append(f"in {job.number}")
    assert seen == ["out 0", "out 1", "in 0", "out 2", "in 1", "in 2"]
