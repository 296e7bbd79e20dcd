"""Embedding on a Ray cluster: actors hold the teacher, Ray hands them slices and replaces those that die."""

import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from sentence_distill.data.errors import UserError
from sentence_distill.data.progress import Progress
from sentence_distill.pipeline.engines import TeacherSpec
from sentence_distill.pipeline.plan import Slice
from sentence_distill.pipeline.shards import read_sidecar, shard_name
from sentence_distill.pipeline.teacher import TeacherFacts
from sentence_distill.pipeline.work import Job, embed_slices

# A group of slices starts its readers once; small enough that actors end at about the same time.
_GROUPS_PER_ACTOR = 8
_LARGEST_GROUP = 64


def _reach(address: str | None) -> None:
    """Fail in seconds where nothing listens at `address`: Ray itself asks for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), timeout=5).close()


class _Actor:
    """Holds the teacher in a process of Ray's."""

    def __init__(self, spec: TeacherSpec, device: str, readers: int) -> None:
        self.teacher = spec.load(device)
        self.readers = readers

    def facts(self) -> TeacherFacts:
        """What the run has to know of the teacher."""
        return self.teacher.facts()

    def pid(self) -> int:
        """Of the actor's process."""
        return os.getpid()

    def embed(self, job: Job, group: Sequence[Slice]) -> int:
        """Commit the shards of a group, of which an actor that died may have left some; return its sentences."""
        todo = [part for part in group if read_sidecar(job.out / shard_name(part.index)) is None]
        if todo:
            embed_slices(job, self.teacher, todo, readers=self.readers)
        return sum(part.sentences - len(part.duplicates) for part in group)


class RayEngine:
    """Embeds in actors of a Ray cluster, or of a local Ray."""

    def __init__(self, spec: TeacherSpec, *, address: str | None, workers: int | None, readers: int) -> None:
        """Connect, and start the actors.

        Args:
            spec: how each actor loads the teacher.
            address: of the cluster; None starts a Ray on this machine.
            workers: actors; None is one a GPU of the cluster or, without GPUs, one a node.
            readers: reading processes of each actor.

        Raises:
            UserError: Ray is not installed, or no cluster answers at `address`.
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
            ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, **own)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"no Ray cluster at {address}: {str(error).splitlines()[0]}; see ray status") from error
        self._ray = ray
        gpus = int(ray.cluster_resources().get("GPU", 0))
        nodes = [node for node in ray.nodes() if node["Alive"]]
        count = workers or gpus or len(nodes)
        options: dict[str, Any] = {"max_restarts": -1, "max_task_retries": -1}
        if gpus:
            options["num_gpus"] = 1
        else:
            # Ray gives an actor as many threads as it asks for CPUs.
            cpus = int(min(node["Resources"].get("CPU", 1) for node in nodes))
            share = max(1, cpus * len(nodes) // max(count, len(nodes)))
            options |= {"num_cpus": share, "scheduling_strategy": "SPREAD"}
        actor = ray.remote(**options)(_Actor)
        self.actors: list[Any] = [actor.remote(spec, "cuda" if gpus else "cpu", readers) for _ in range(count)]

    def facts(self) -> TeacherFacts:
        """What the run has to know of the teacher, from one of the actors."""
        return self._answer(self.actors[0].facts.remote())  # type: ignore[no-any-return]

    def run(self, job: Job, todo: Sequence[Slice], progress: Progress, advance: Callable[[int], None]) -> None:
        """Commit the shards of `todo`; what an actor had in hand when it died is done by the one that follows it."""
        size = max(1, min(_LARGEST_GROUP, len(todo) // (len(self.actors) * _GROUPS_PER_ACTOR)))
        groups = [todo[first : first + size] for first in range(0, len(todo), size)]
        progress.log(f"{len(groups):,} groups of {size} slices for {len(self.actors)} actors")
        shared = self._ray.put(job)
        idle = list(self.actors)
        running: dict[Any, Any] = {}
        while groups or running:
            while idle and groups:
                actor = idle.pop()
                running[actor.embed.remote(shared, groups.pop(0))] = actor
            done, _ = self._ray.wait(list(running), num_returns=1)
            idle.append(running.pop(done[0]))
            advance(self._answer(done[0]))

    def _answer(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, (UserError, OSError)) else error) from None
        except self._ray.exceptions.RayActorError as error:
            raise UserError(f"Ray could not keep an actor alive: {str(error).splitlines()[0]}") from error

    def close(self) -> None:
        """Let the cluster go."""
        self._ray.shutdown()
