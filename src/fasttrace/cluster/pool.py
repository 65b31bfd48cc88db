"""The crew of many: workers of a Ray cluster, to whom this process hands pieces of work, and whose loss it bears.

Ray starts the processes, carries what they say, and notices when one ends. What is lost is handed out again. Values do
not depend on who computes what, so the results are those of one process.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from fasttrace.cache import cache_place
from fasttrace.cluster.crew import Alone, Crew, Plan, units_of
from fasttrace.cluster.jobs import Job, Member, Shared, State
from fasttrace.cluster.packing import files_of, packed, unpacked
from fasttrace.cluster.pieces import pieces
from fasttrace.cluster.ray_cluster import (
    address_of,
    broken,
    connect,
    device_of,
    disconnect,
    gpus_of,
    layout,
    versions_differ,
)
from fasttrace.cluster.worker import About, Answer, Worker
from fasttrace.errors import UserError
from fasttrace.models.adapter import Decoder
from fasttrace.settings.cluster import WorkerSettings

R = TypeVar("R")
log = logging.getLogger(__name__)
Tick = Callable[[State], None]
TICK_SECONDS = 0.5
MOST_STARTS = 5  # of a worker that ends before it has loaded the model, while no other finishes anything
ROOM_SECONDS = 20.0  # for which those that have room wait for those that have none yet
PATIENCE_SECONDS = 600.0  # for which a cluster that is lost is looked for


@contextmanager
def pool(
    model: Mapping[str, Any], asked: WorkerSettings, tick: Tick | None = None, local: Decoder | None = None
) -> Iterator["Pool"]:
    """Workers that have loaded a model, for as long as the body runs.

    model: the arguments of `load_model`. local: the same model in this process, if it is here. tick: called with the
    pool's state twice a second while it waits; by default, what happens to workers is logged.

    Raises UserError where the cluster cannot be used, has too little room, or has other versions of fasttrace, torch,
    transformers or Python.
    """
    made = Pool(model, asked, tick or _log_events, local)
    try:
        made.start()
        yield made
    finally:
        made.close()


@contextmanager
def crew_of(model: Decoder, asked: WorkerSettings, tick: Tick | None = None) -> Iterator[Crew]:
    """Who computes with a model that is in this process: it alone, or workers that load the same model.

    tick: as for `pool`.

    Raises UserError as `pool`, and where workers cannot load the model, since `load_model` has not.
    """
    if asked.workers is None:
        yield Alone(model)
        return
    if model.origin is None:
        raise UserError(f"workers: expected a model as load_model returns it, got '{model.name}', which was made here")
    with pool(model.origin, asked, tick, local=model) as made:
        yield made


class Pool(Crew):
    """Made by `pool`."""

    def __init__(self, model: Mapping[str, Any], asked: WorkerSettings, tick: Tick, local: Decoder | None) -> None:
        self.gpus = gpus_of(asked, str(model.get("device", "cpu")))
        self.model = {**model, "device": device_of(str(model.get("device", "cpu")), self.gpus)}
        self.asked, self.tick, self.local = asked, tick, local
        self.model_hash: str | None = None if local is None else local.model_hash
        self.here = About.here()
        source = str(model["source"])
        self.place = source if Path(source).expanduser().exists() else None
        self.state = State(address=address_of(asked), begun=time.monotonic())
        self.waiting: dict[Any, tuple[Member, str]] = {}  # a call's reference → whose it is, and what for
        self.given: dict[int, set[str]] = {}  # member → the files that it has been given
        self.again: deque[Job] = deque()
        self.failed: list[tuple[Job, str]] = []
        self.session = 0  # the number of the connection
        self.own = True  # whether it was made here

    def start(self) -> None:
        """Connect, and start every worker. Raises what `pool` raises before any model is loaded."""
        self._connect()
        self.layout = layout(self.ray, self.asked, self.gpus)
        self.state.members = [Member(f"worker {n + 1}") for n in range(self.layout.workers)]
        for member in self.state.members:
            self._start(member)
        # All are asked before the first computes, so that one that cannot be used is known before anything long starts.
        # A machine that has just died still counts as one for a while, and then there is no room for its worker.
        deadline = time.monotonic() + ROOM_SECONDS
        while "about" in (kinds := [kind for _, kind in self.waiting.values()]):
            if "load" in kinds and time.monotonic() > deadline:
                return
            for member, kind, reference in self._finished(only="about"):
                self._step(member, kind, reference)

    def close(self) -> None:
        """End every worker, the connection, and a cluster that was started for it."""
        with suppress(Exception):
            for member in self.state.members:
                if member.actor is not None:
                    self.ray.kill(member.actor)
        if self.own:
            with suppress(Exception):
                disconnect()

    def ask(self, function: Callable[..., Any], /, *args: Any, **keywords: Any) -> Any:
        [found] = self.map(_Called(function, keywords), [args])
        return found

    def map(self, function: Callable[..., Any], items: Iterable[Sequence[Any]], /) -> Generator[Any]:
        called, left = packed(function).content, enumerate(items)
        found: dict[int, Any] = {}
        reached = 0

        def jobs() -> Iterator[Job | None]:
            while True:
                if len(found) > 2 * len(self.state.members):  # they wait for one before them
                    yield None
                    continue
                try:
                    number, item = next(left)
                except StopIteration:
                    return
                yield Job(called, packed(tuple(item)), number)

        for job, value in self._run(jobs()):
            found[job.number] = value
            while reached in found:
                yield found.pop(reached)
                reached += 1

    def batches(
        self,
        plan: Plan[R],
        *,
        skip: Collection[Hashable] = (),
        progress: Callable[[int], None] | None = None,
        whole: bool = False,
    ) -> Iterator[R]:
        if self.model_hash is not None and self.model_hash != plan.run.get("model_hash"):
            raise UserError(
                "workers: expected a model as load_model returns it, got one whose weights were changed in memory"
            )
        plan = plan.settled(self, skip)
        shared = (Shared(packed(plan)), Shared(packed(whole)))
        [units] = [found for _, found in self._run(iter([Job(packed(_planned).content, packed(()), 0, shared)]))]
        plan.announce()
        called = packed(_computed).content
        work = pieces(units, len(self.state.members), set(skip))
        state = self.state
        state.pieces, state.pieces_done = len(work), 0
        state.size, state.size_done = sum(len(piece.units) for piece in work), 0
        state.cost, state.cost_done, state.begun = sum(piece.cost for piece in work), 0.0, time.monotonic()
        jobs = (
            Job(called, packed((piece.keys,)), n, shared, len(piece.units), piece.cost, piece)
            for n, piece in enumerate(work)
        )
        for job, result in self._run(jobs):
            state.pieces_done += 1
            state.size_done += job.size
            state.cost_done += job.cost
            yield result
            if progress is not None:
                progress(job.size)
        if self.failed:
            failed, self.failed = self.failed, []
            raise UserError(_not_computed(failed))

    def say(self, text: str) -> None:
        """Tell people what happened, with the next tick."""
        self.state.said.append(text)

    def _connect(self) -> None:
        connection = connect(self.state.address)
        self.session += 1
        self.ray, self.state.dashboard, self.own = connection.ray, connection.dashboard, connection.own
        self.actor = self.ray.remote(max_restarts=0, max_task_retries=0)(Worker)
        self.errors = (self.ray.exceptions.RayError,)
        self.broken = broken()

    def _start(self, member: Member) -> None:
        """Start the process of a worker."""
        options = {"num_cpus": self.layout.cpus, "num_gpus": self.layout.gpus, "scheduling_strategy": "SPREAD"}
        member.actor = self.actor.options(**options).remote(os.getcwd(), self.layout.cpus)
        member.job, member.ready, member.host = None, False, ""
        self.given[id(member)] = set()
        self._call(member, "about", member.actor.about.remote(self.place), "waits for room")

    def _call(self, member: Member, kind: str, reference: Any, state: str) -> None:
        member.state, member.since = state, time.monotonic()
        self.waiting[reference] = member, kind

    def _run(self, jobs: Iterator[Job | None]) -> Iterator[tuple[Job, Any]]:
        """Yield (job, value) as jobs finish. jobs: read as workers become free; None where the next must wait."""
        try:
            yield from self._running(jobs)
        finally:  # also where the caller wants no more
            self.again.clear()
            for member in self.state.members:
                if member.job is not None:
                    member.job.unwanted = True

    def _running(self, jobs: Iterator[Job | None]) -> Iterator[tuple[Job, Any]]:
        ended = False
        done: deque[tuple[Job, Any]] = deque()
        while True:
            for member in self.state.members:
                if not member.ready or member.job is not None:
                    continue
                job = self.again.popleft() if self.again else None
                if job is None and not ended:
                    try:
                        job = next(jobs)
                    except StopIteration:
                        ended = True
                if job is None:
                    break
                self._hand_out(member, job)
            if done:  # the caller may take long with it, such as for a commit: workers have their next job first
                yield done.popleft()
            busy = any(member.job is not None and not member.job.unwanted for member in self.state.members)
            if ended and not busy and not self.again and not done:
                return
            for member, kind, reference in self._finished(wait=not done):
                if (one := self._step(member, kind, reference)) is not None:
                    done.append(one)

    def _hand_out(self, member: Member, job: Job) -> None:
        member.job = job
        try:
            self._handed_out(member, job)
        except self.broken:
            self._reconnect()

    def _handed_out(self, member: Member, job: Job) -> None:
        try:
            self._provide(member, job)
            for one in job.shared:
                if one.session != self.session:
                    one.reference, one.session = self.ray.put(one.value.content), self.session
                    self.state.bytes_sent += len(one.value.content)
            references = [one.reference for one in job.shared]
            call = member.actor.call.remote(job.function, job.arguments.content, references)
            self.state.bytes_sent += len(job.function) + len(job.arguments.content)
        except self.errors as error:
            self._lost(member, error)
        else:
            what = "computes" if job.piece is None else f"computes {len(job.piece.units)}"
            self._call(member, "call", call, what)

    def _provide(self, member: Member, job: Job) -> None:
        """Give a worker the files of the cache folder that a job names, where its machine lacks them."""
        wanted = {path for one in (job.arguments, *(shared.value for shared in job.shared)) for path in one.paths}
        if new := wanted - self.given[id(member)]:
            for name in self.ray.get(member.actor.lacks.remote(files_of(frozenset(new)))):
                content = (cache_place(None) / name).read_bytes()
                self.ray.get(member.actor.keep.remote(name, self.ray.put(content)))
                self.state.bytes_sent += len(content)
            self.given[id(member)] |= new

    def _finished(self, only: str | None = None, *, wait: bool = True) -> list[tuple[Member, str, Any]]:
        """The calls that have finished since. only: of this kind. wait: for one, for a moment."""
        self.tick(self.state)
        references = [one for one, (_, kind) in self.waiting.items() if only in (None, kind)]
        try:
            ready, _ = self.ray.wait(references, num_returns=1, timeout=wait * TICK_SECONDS) if references else ([], [])
            if ready and len(references) > 1:
                ready, _ = self.ray.wait(references, num_returns=len(references), timeout=0)
        except (*self.broken, *self.errors):
            self._reconnect()
            return []
        return [(*self.waiting.pop(reference), reference) for reference in ready]

    def _step(self, member: Member, kind: str, reference: Any) -> tuple[Job, Any] | None:
        """Take what a worker says, and give it what comes next. Returns a finished job and its value."""
        try:
            return self._taken(member, kind, reference)
        except self.broken:
            self._reconnect()
            return None

    def _taken(self, member: Member, kind: str, reference: Any) -> tuple[Job, Any] | None:
        try:
            said = self.ray.get(reference)
        except self.errors as error:
            self._lost(member, error)
            return None
        if kind == "about":
            self._greet(member, said)
        elif kind == "load":
            self._loaded(member, said)
        else:
            return self._answered(member, said)
        return None

    def _greet(self, member: Member, about: About) -> None:
        member.host, member.pid = about.host, about.pid
        if (differ := versions_differ(self.here.versions, about.versions)) is not None:
            raise UserError(f"workers: expected the same versions on every machine, got {differ} on {about.host}")
        if not about.sees:
            raise UserError(f"workers: expected '{self.place}' on every machine, got none on {about.host}")
        self._call(member, "load", member.actor.load.remote(self.model), "loads the model")

    def _loaded(self, member: Member, answer: Answer) -> None:
        if answer.kind == "memory":
            raise UserError(
                f"workers: the memory of {member.host} does not suffice for the model ({answer.content}): use fewer "
                "workers, or more GPUs for each"
            )
        model_hash = self._value(member, answer)
        if self.model_hash not in (None, model_hash):
            raise UserError(
                f"workers: expected the same '{self.model['source']}' everywhere, got other weights on {member.host}"
            )
        self.model_hash, member.ready = model_hash, True
        member.state, member.since = "ready", time.monotonic()

    def _answered(self, member: Member, answer: Answer) -> tuple[Job, Any] | None:
        job, member.job = member.job, None
        assert job is not None
        member.state, member.since = "ready", time.monotonic()
        if job.unwanted:
            return None
        if answer.kind == "memory":
            job.short += 1
            self._retry(job, f"the memory of {member.host} did not suffice ({answer.content})")
            return None
        member.done += 1
        for one in self.state.members:
            one.starts_lost = 0
        return job, self._value(member, answer)

    def _value(self, member: Member, answer: Answer) -> Any:
        for name, level, text in answer.logged:
            logging.getLogger(name).log(level, "%s", text)
        if answer.kind == "fault":
            raise RuntimeError(f"{member.name} on {member.host}:\n{answer.content}")
        self.state.bytes_got += len(answer.content)
        value = unpacked(answer.content, self.local)
        if answer.kind == "error":
            if member.ready:
                raise value
            raise UserError(f"{member.name} on {member.host}: {value}") from value
        return value

    def _lost(self, member: Member, error: Exception) -> None:
        """A worker is gone. Its job is tried again, and another process takes its place."""
        job, was_ready = member.job, member.ready
        member.job, member.ready = None, False
        where = f"{member.name} on {member.host or 'a machine of the cluster'}"
        text = str(error)
        if "creation task" in text or isinstance(error, self.ray.exceptions.RuntimeEnvSetupError):
            raise UserError(f"workers: {where} cannot run fasttrace: {_last_line(text)}") from error
        self.waiting = {one: entry for one, entry in self.waiting.items() if entry[0] is not member}
        with suppress(Exception):
            self.ray.kill(member.actor)
        self.state.retries += 1
        short = (
            isinstance(error, self.ray.exceptions.OutOfMemoryError) or "OutOfMemory" in text or "OUT_OF_MEMORY" in text
        )
        why = "was stopped for lack of memory" if short else "ended"
        if job is not None:
            for one in job.shared:
                one.session = 0  # the machine may be lost that had its bytes
            job.short += short
            job.lost += not short
            self._retry(job, f"{where} {why}")
        elif not was_ready:
            member.starts_lost += 1
            self.say(f"{where} {why} before it had loaded the model")
            if member.starts_lost >= MOST_STARTS:
                raise UserError(f"workers: {where} {why} {MOST_STARTS} times before it had loaded the model")
        self._start(member)

    def _retry(self, job: Job, why: str) -> None:
        if job.unwanted:
            return
        again = job.again()
        if again is None:
            self.failed.append((job, why))
            self.say(f"{why}; given up after {job.lost + job.short} times: {_name(job)}")
            if job.piece is None:
                raise UserError(f"workers: {why}, {job.lost + job.short} times with the same work")
            return
        self.state.pieces += len(again) - 1
        self.say(f"{why}; its work is tried again" + (" in halves" if len(again) > 1 else ""))
        self.again.extend(again)

    def _reconnect(self) -> None:
        """The cluster is lost: look for it, and start anew there with what was not finished."""
        if not self.own:
            raise UserError("workers: the connection that this process had to Ray is lost")
        self.say(f"the connection to the cluster at {self.state.address} is lost; looking for it")
        for member in self.state.members:
            if member.job is not None and not member.job.unwanted:
                self.again.append(member.job)
            member.job = None
            member.ready, member.state = False, "lost"
        self.state.retries += 1
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            self.tick(self.state)
            with suppress(Exception):
                disconnect()
            self.waiting = {}
            try:
                self._connect()
                for member in self.state.members:
                    self._start(member)
                return
            except (UserError, *self.broken, *self.errors):
                if time.monotonic() > deadline:
                    raise
                time.sleep(2.0)


def _log_events(state: State) -> None:
    while state.said:
        log.warning("%s", state.said.pop(0))


class _Called:
    """function(…, **keywords), as something that can be packed."""

    def __init__(self, function: Callable[..., Any], keywords: Mapping[str, Any]) -> None:
        self.function, self.keywords = function, keywords

    def __call__(self, *args: Any) -> Any:
        return self.function(*args, **self.keywords)


def _planned(model: Decoder, plan: Plan[Any], whole: bool) -> Any:
    return units_of(model, plan)


def _computed(model: Decoder, plan: Plan[R], whole: bool, keys: frozenset[Hashable]) -> R:
    """The results of a piece of a plan as one."""
    return plan.joined(list(plan.batches(only=keys)), whole=whole)


def _name(job: Job) -> str:
    """A job by the first of its keys."""
    if job.piece is None:
        return "a call"
    key = job.piece.units[0].key
    name = f"the fact '{key[0]}' at layer {key[1]}" if isinstance(key, tuple) else f"the fact '{key}'"
    more = len(job.piece.units) - 1
    return f"{name} (and {more} more)" if more else name


def _not_computed(failed: list[tuple[Job, str]]) -> str:
    """The sentence for pieces that were given up."""
    job, why = failed[0]
    more = sum(one.size for one, _ in failed) - 1
    others = f", and {more} more" if more else ""
    return (
        f"workers: {_name(job)}{others} could not be computed: {why}, {job.lost + job.short} times; all else is done, "
        "and the same command tries only these again"
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "unknown"
