"""Embedding on a Ray cluster: actors hold the teacher, Ray hands them slices and replaces those that die."""

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sentence_distill.data import progress
from sentence_distill.data.errors import UserError, first_line
from sentence_distill.pipeline.engines import TeacherSpec, pick_readers, require_same_teacher
from sentence_distill.pipeline.files import is_local
from sentence_distill.pipeline.plan import Slice
from sentence_distill.pipeline.shards import read_sidecar, shard_name
from sentence_distill.pipeline.teacher import TeacherFacts
from sentence_distill.pipeline.work import Job, embed_slices

# A group of slices starts its readers once; small enough that actors end at about the same time.
_GROUPS_PER_ACTOR = 8
_LARGEST_GROUP = 64
# Of one actor; a slice that kills whoever takes it must come to an end.
_RESTARTS = 10
_PLACING_S = 600


def _room(nodes: list[dict[str, float]], workers: int | None) -> tuple[dict[str, Any], int]:
    """What each actor asks for, and how many there are.

    Raises:
        UserError: the cluster has no node that computes, or no room for `workers`.
    """
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus:
        count, most = workers or gpus, gpus
        options: dict[str, Any] = {"num_gpus": 1}
    else:
        nodes = [node for node in nodes if node.get("CPU", 0) >= 1]
        if not nodes:
            raise UserError("the cluster has no node with a CPU or GPU yet; see ray status, and start one")
        count = workers or len(nodes)
        # Ray gives an actor as many threads as it asks for CPUs.
        share = max(1, int(min(node["CPU"] for node in nodes)) // -(-count // len(nodes)))
        most = sum(int(node["CPU"]) // share for node in nodes)
        options = {"num_cpus": share, "scheduling_strategy": "SPREAD"}
    if count > most:
        raise UserError(f"--workers {count}: the cluster has room for {most}")
    return options, count


def _reach(address: str | None) -> None:
    """Fail in seconds where nothing listens at `address`: Ray itself asks for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), timeout=5).close()


class _Actor:
    """Holds the teacher in a process of Ray's."""

    def __init__(self, spec: TeacherSpec, device: str, readers: int | None) -> None:
        self.teacher = spec.load(device)
        self.readers = readers or pick_readers([str(self.teacher.device)])
        # Once: it reads all weights for their hash.
        self.known = self.teacher.facts()

    def facts(self) -> TeacherFacts:
        """What the run has to know of the teacher."""
        return self.known

    def embed(self, job: Job, group: Sequence[Slice]) -> int:
        """Commit the shards of a group, of which an actor that died may have left some; return its sentences."""
        todo = [part for part in group if read_sidecar(job.out / shard_name(part.index)) is None]
        if todo:
            require_same_teacher(self.known, job)
            embed_slices(job, self.teacher, todo, readers=self.readers)
        return sum(part.sentences - len(part.duplicates) for part in group)


class RayEngine:
    """Embeds in actors of a Ray cluster, or of a Ray of this machine's own."""

    def __init__(self, spec: TeacherSpec, *, address: str | None, workers: int | None, readers: int | None) -> None:
        """Connect, and start the actors.

        Args:
            spec: how each actor loads the teacher.
            address: of the cluster; None starts a Ray on this machine.
            workers: actors; None is one a GPU of the cluster or, without GPUs, one a node.
            readers: reading processes of each actor; None is what suits its device.

        Raises:
            UserError: Ray is not installed, no cluster answers at `address`, or it has no room for `workers`.
        """
        # No report to Ray's makers that nobody asked for.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise UserError("--engine ray needs Ray: pip install 'sentence-distill[ray]'") from error
        try:
            _reach(address)
            own: dict[str, Any] = {"include_dashboard": False} if address is None else {}
            ray.init(address=address or "local", ignore_reinit_error=True, log_to_driver=False, **own)
        except (OSError, RuntimeError, ValueError) as error:
            where = f"no Ray cluster at {address}" if address else "Ray does not start here"
            raise UserError(f"{where}: {first_line(error)}; see ray status") from error
        self._ray = ray
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        options, count = _room(nodes, workers)
        folder = spec.located.folder
        spec = replace(spec, located=replace(spec.located, folder=folder.resolve()))
        actor = ray.remote(max_restarts=_RESTARTS, max_task_retries=_RESTARTS, **options)(_Actor)
        device = "cuda" if "num_gpus" in options else "cpu"
        self._actors: list[Any] = [actor.remote(spec, device, readers) for _ in range(count)]

    def facts(self) -> TeacherFacts:
        """What the run has to know of the teacher, from the first actor that has it.

        Raises:
            UserError: no actor can load it, or gets a place in the cluster.
        """
        done, _ = self._ray.wait([actor.facts.remote() for actor in self._actors], timeout=_PLACING_S)
        if not done:
            raise UserError(f"no actor got a place in the cluster within {_PLACING_S} seconds; see ray status")
        return self._answer(done[0])  # type: ignore[no-any-return]

    def run(self, job: Job, todo: Sequence[Slice], advance: Callable[[int], None]) -> None:
        """Commit the shards of `todo`; what an actor had in hand when it died is done by the one that follows it."""
        if is_local(job.out):
            job = replace(job, out=job.out.resolve())
        size = max(1, min(_LARGEST_GROUP, len(todo) // (len(self._actors) * _GROUPS_PER_ACTOR)))
        groups = [todo[first : first + size] for first in range(0, len(todo), size)]
        progress.log(f"{len(groups):,} groups of {size} slices for {len(self._actors)} actors")
        shared = self._ray.put(job)
        # An actor gets work once it has answered: one that waits for a place must not sit on slices.
        running = {actor.embed.remote(shared, []): (actor, 0) for actor in self._actors}
        unfinished = len(groups)
        while unfinished:
            (done,), _ = self._ray.wait(list(running), num_returns=1)
            actor, slices = running.pop(done)
            advance(self._answer(done))
            unfinished -= slices > 0
            if groups:
                group = groups.pop(0)
                running[actor.embed.remote(shared, group)] = (actor, len(group))

    def _answer(self, reference: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, (UserError, OSError)) else error) from None
        except errors.RayError as error:
            last = [line for line in str(error).splitlines() if line.strip()][-1]
            raise UserError(f"Ray could not keep an actor alive: {last.strip()}; see ray status") from error

    def close(self) -> None:
        """Let the cluster go."""
        self._ray.shutdown()
