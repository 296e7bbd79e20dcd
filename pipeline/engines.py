"""Engines that embed slices: in this process, in one process per device, or in the actors of a Ray cluster."""

import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, cast

import torch

from sentence_distill.data import progress
from sentence_distill.data.errors import UserError, first_line
from sentence_distill.data.progress import counted
from sentence_distill.pipeline.config import EmbedConfig
from sentence_distill.pipeline.files import is_local
from sentence_distill.pipeline.hardware import TEACHER, pick_device, pick_precision
from sentence_distill.pipeline.load import Located, locate_teacher
from sentence_distill.pipeline.plan import Slice
from sentence_distill.pipeline.processes import cores, keep_freed_memory, receive, start_child
from sentence_distill.pipeline.records import as_dict, differing_fields
from sentence_distill.pipeline.shards import read_sidecar, shard_name
from sentence_distill.pipeline.slices import Job, embed_slices
from sentence_distill.pipeline.teacher import Teacher, TeacherFacts

# Actors get slices in groups, because readers are started once per group; groups are small enough that all actors
# finish at about the same time.
_GROUPS_PER_ACTOR = 8
_LARGEST_GROUP = 64
# Restarts per actor are limited, because a slice that crashes every actor must not be retried forever.
_RESTARTS = 10
_PLACING_S = 600


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """Options for loading the teacher in any process; see `Teacher` and `pick_precision`."""

    located: Located
    """Folder and name; a machine that does not have the folder looks up the name."""
    pooling: str | None = None
    layers: Sequence[int] = (-1,)
    precision: str = "auto"
    pairs: bool = False

    def load(self, device: str) -> Teacher:
        """Load the teacher on `device` (see `pick_device`)."""
        where = pick_device(device)
        try:
            return Teacher(
                self.located if self.located.folder.is_dir() else locate_teacher(self.located.name),
                pooling=self.pooling,
                layers=self.layers,
                device=where,
                dtype=pick_precision(self.precision, where, TEACHER),
                pairs=self.pairs,
            )
        except torch.OutOfMemoryError as error:
            raise UserError(f"{where} lacks memory for the teacher; free some, or use --device cpu") from error


def require_same_teacher(teacher: TeacherFacts, job: Job) -> None:
    """Refuse a worker whose teacher has other weights than the run's, or computes in another dtype."""
    own, known = as_dict(teacher.fingerprint), as_dict(job.fingerprint)
    if differing := differing_fields({field: known.get(field) for field in own}, own):
        raise UserError(
            f"the teacher on {teacher.device} is not that of the run: {'; '.join(differing)}; name a folder that is "
            "the same on all machines, and set --precision if devices differ"
        )


def pick_devices(names: str) -> list[str]:
    """Parse comma-separated devices, by number or name; "all" stands for every CUDA device."""
    devices = [str(n) for n in range(torch.cuda.device_count())] if names == "all" else names.split(",")
    devices = [f"cuda:{name}" if name.isdecimal() else name for name in devices]
    if not devices:
        raise UserError("--devices all: PyTorch sees no CUDA device here; leave the flag out")
    for device in devices:
        pick_device(device)
        if device != "cpu" and devices.count(device) > 1:
            raise UserError(f"--devices {names} names {device} twice")
    return devices


def pick_readers(device: str, devices: int = 1) -> int:
    """Return the number of reader processes per device: one for a CPU, up to 8 for a GPU if there are cores."""
    return 1 if device == "cpu" else max(1, min(8, cores() // (2 * devices)))


class LocalEngine:
    """Engine that embeds in this process."""

    def __init__(self, teacher: Teacher, readers: int | None = None) -> None:
        self.teacher = teacher
        self.readers = readers or pick_readers(str(teacher.device))
        # Computed once, because it hashes all weights.
        self._facts = teacher.facts()

    def facts(self) -> TeacherFacts:
        """Return the facts about the teacher that the run depends on."""
        return self._facts

    def run(self, job: Job, todo: Sequence[Slice], advance: Callable[[int], None]) -> None:
        """Embed the slices `todo` and commit their shards."""
        progress.log(str(embed_slices(job, self.teacher, todo, readers=self.readers, advance=advance)))


class DevicesEngine:
    """Engine with one process per device of this machine, each with its own part of the slices."""

    def __init__(self, spec: TeacherSpec, devices: Sequence[str], readers: int | None) -> None:
        self.spec = spec
        self.devices = devices
        self.readers = readers or pick_readers(devices[0], len(devices))

    def facts(self) -> TeacherFacts:
        """Return the facts about the teacher, which is loaded on the first device for this."""
        return self.spec.load(self.devices[0]).facts()

    def run(self, job: Job, todo: Sequence[Slice], advance: Callable[[int], None]) -> None:
        """Commit the shards of `todo`; if the process of a device fails, the others still finish their parts."""
        running: dict[Connection, tuple[str, SpawnProcess]] = {}
        processes: list[SpawnProcess] = []
        problems = []
        count = len(self.devices)
        try:
            for number, device in enumerate(self.devices):
                part = todo[len(todo) * number // count : len(todo) * (number + 1) // count]
                connection, process = start_child(
                    _work, job, self.spec, device, count, part, self.readers, daemon=False
                )
                processes.append(process)
                running[connection] = (device, process)
            while running:
                for ready in cast(list[Connection], wait(list(running))):
                    device, process = running[ready]
                    message = receive(ready)
                    if message is None:
                        process.join()
                        del running[ready]
                        if process.exitcode:
                            problems.append(f"{device}: its process ended with code {process.exitcode}")
                    elif isinstance(message, int):
                        advance(message)
                    elif isinstance(message, (UserError, OSError)):
                        problems.append(f"{device}: {message}")
                    elif isinstance(message, Exception):
                        raise message
                    else:
                        progress.log(f"{device}: {message}")
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.join()
        if problems:
            raise UserError(f"{'; '.join(problems)}; finished shards are kept: run the same command again to resume")


def _work(
    connection: Connection, job: Job, spec: TeacherSpec, device: str, devices: int, todo: Sequence[Slice], readers: int
) -> None:
    """Embed slices in the process of a device; send counts of sentences, and finally a line for the log."""

    def stop(number: int, frame: object) -> None:
        # Finished slices are still written, which a second signal must not interrupt.
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    keep_freed_memory()
    signal.signal(signal.SIGTERM, stop)
    if device == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // devices))
    if todo:
        teacher = spec.load(device)
        require_same_teacher(teacher.facts(), job)
        connection.send(str(embed_slices(job, teacher, todo, readers=readers, advance=connection.send)))


# Ray: each actor holds the teacher; Ray gives actors groups of slices, and restarts actors that die.


def _room(nodes: list[dict[str, float]], workers: int | None) -> tuple[dict[str, Any], int]:
    """Return the resources that each actor requests, and the number of actors, from the resources of the nodes."""
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus:
        count, most = workers or gpus, gpus
        options: dict[str, Any] = {"num_gpus": 1}
    else:
        nodes = [node for node in nodes if node.get("CPU", 0) >= 1]
        if not nodes:
            raise UserError("the cluster has no node with a CPU or GPU yet; start one, and check ray status")
        count = workers or len(nodes)
        # Ray sets an actor's number of threads to the CPUs that it requests.
        share = max(1, int(min(node["CPU"] for node in nodes)) // -(-count // len(nodes)))
        most = sum(int(node["CPU"]) // share for node in nodes)
        options = {"num_cpus": share, "scheduling_strategy": "SPREAD"}
    if count > most:
        raise UserError(f"--workers {count}: the cluster has room for {most}")
    return options, count


class _Actor(LocalEngine):
    """Ray actor that holds the teacher."""

    def __init__(self, spec: TeacherSpec, device: str, readers: int | None) -> None:
        keep_freed_memory()
        super().__init__(spec.load(device), readers)

    def embed(self, job: Job, group: Sequence[Slice]) -> int:
        """Commit the shards of a group that are missing; return the number of its sentences.

        Some shards may exist, if the group is retried after an actor died.
        """
        todo = [part for part in group if read_sidecar(job.out / shard_name(part.index)) is None]
        if todo:
            require_same_teacher(self.facts(), job)
            embed_slices(job, self.teacher, todo, readers=self.readers)
        return sum(part.rows for part in group)


class RayEngine:
    """Engine that embeds in the actors of a Ray cluster, or of a local Ray instance."""

    def __init__(self, spec: TeacherSpec, *, address: str | None, workers: int | None, readers: int | None) -> None:
        """Connect, and start the actors; see the options of `EmbedConfig`."""
        # Ray reports usage statistics by default.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise UserError("--engine ray needs Ray: pip install 'sentence-distill[ray]'") from error
        try:
            host, _, port = (address or "").removeprefix("ray://").rpartition(":")
            if port.isdecimal():
                # Fails in seconds if nothing listens there; Ray itself would retry for minutes.
                socket.create_connection((host, int(port)), timeout=5).close()
            own: dict[str, Any] = {"include_dashboard": False} if address is None else {}
            ray.init(address=address or "local", ignore_reinit_error=True, log_to_driver=False, **own)
        except (OSError, RuntimeError, ValueError) as error:
            where = f"no Ray cluster at {address}" if address else "Ray does not start here"
            raise UserError(f"{where}: {first_line(error)}; check ray status") from error
        self._ray = ray
        options, count = _room([node["Resources"] for node in ray.nodes() if node["Alive"]], workers)
        spec = replace(spec, located=replace(spec.located, folder=spec.located.folder.resolve()))
        actor = ray.remote(max_restarts=_RESTARTS, max_task_retries=_RESTARTS, **options)(_Actor)
        device = "cuda" if "num_gpus" in options else "cpu"
        self._actors: list[Any] = [actor.remote(spec, device, readers) for _ in range(count)]

    def facts(self) -> TeacherFacts:
        """Return the facts about the teacher, from the first actor that has loaded it."""
        done, _ = self._ray.wait([actor.facts.remote() for actor in self._actors], timeout=_PLACING_S)
        if not done:
            raise UserError(f"no actor was scheduled within {_PLACING_S} seconds; check ray status")
        return self._answer(done[0])  # type: ignore[no-any-return]

    def run(self, job: Job, todo: Sequence[Slice], advance: Callable[[int], None]) -> None:
        """Commit the shards of `todo`; the group of an actor that died is retried by its replacement."""
        if is_local(job.out):
            job = replace(job, out=job.out.resolve())
        size = max(1, min(_LARGEST_GROUP, len(todo) // (len(self._actors) * _GROUPS_PER_ACTOR)))
        groups = [todo[first : first + size] for first in range(0, len(todo), size)]
        actors = counted(len(self._actors), "actor")
        progress.log(f"{counted(len(groups), 'group')} of {counted(size, 'slice')} for {actors}")
        shared = self._ray.put(job)
        # An empty first task tells that an actor runs: one that still waits to be scheduled must not hold any slices.
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
            raise UserError(f"Ray could not keep an actor alive: {last.strip()}; check ray status") from error

    def close(self) -> None:
        """Disconnect from the cluster."""
        self._ray.shutdown()


Engine = LocalEngine | DevicesEngine | RayEngine
"""Place where slices are embedded; the shards are the same everywhere."""


@contextmanager
def open_engine(located: Located, config: EmbedConfig, pairs: bool) -> Iterator[Engine]:
    """Start the engine that the options select."""
    spec = TeacherSpec(
        located=located, pooling=config.pooling, layers=config.layers, precision=config.precision, pairs=pairs
    )
    if config.engine == "ray":
        engine = RayEngine(spec, address=config.ray_address, workers=config.workers, readers=config.readers)
        try:
            yield engine
        finally:
            engine.close()
    elif config.devices is not None:
        yield DevicesEngine(spec, pick_devices(config.devices), config.readers)
    else:
        yield LocalEngine(spec.load(config.device), config.readers)
