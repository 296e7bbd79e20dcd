"""Where slices are embedded: in this process, or in one process a device."""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess as Process

import torch

from sentence_distill.data import progress
from sentence_distill.data.errors import UserError
from sentence_distill.pipeline.fingerprint import differing_fields
from sentence_distill.pipeline.hardware import TEACHER, pick_device, pick_precision
from sentence_distill.pipeline.load import Located, locate_teacher
from sentence_distill.pipeline.plan import Slice
from sentence_distill.pipeline.processes import cores, deaf_to_ctrl_c, receive, sendable
from sentence_distill.pipeline.teacher import Teacher, TeacherFacts
from sentence_distill.pipeline.work import Job, embed_slices


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """How to load the teacher, in this process or another.

    Args:
        located: its folder; where that is not there, on another machine, its name is looked up.
        pooling: see `Teacher.load`.
        layers: see `Teacher.load`.
        precision: see `pick_precision`.
        pairs: see `Teacher.load`.
    """

    located: Located
    pooling: str | None = None
    layers: Sequence[int] = (-1,)
    precision: str = "auto"
    pairs: bool = False

    def load(self, device: str) -> Teacher:
        """Load it on `device` (see `pick_device`)."""
        where = pick_device(device)
        try:
            return Teacher.load(
                self.located if self.located.folder.is_dir() else locate_teacher(self.located.name),
                pooling=self.pooling,
                layers=self.layers,
                device=where,
                dtype=pick_precision(self.precision, where, TEACHER),
                pairs=self.pairs,
            )
        except torch.OutOfMemoryError as error:
            raise UserError(f"{where} has not enough memory for the teacher; free some, or use --device cpu") from error


def require_same_teacher(teacher: TeacherFacts, job: Job) -> None:
    """Refuse a worker whose teacher is not that of the run.

    Raises:
        UserError: it has other weights, or computes in another type, because hardware or folders differ.
    """
    own = teacher.fingerprint
    if differing := differing_fields({field: job.fingerprint.get(field) for field in own}, own):
        raise UserError(
            f"the teacher on {teacher.device} is not that of the run: {'; '.join(differing)}; name a folder that is "
            "the same everywhere, and --precision where devices differ"
        )


def pick_devices(names: str) -> list[str]:
    """Devices by number or name, separated by commas; "all" is each CUDA device.

    Raises:
        UserError: there is none, or one is not there.
    """
    count = torch.cuda.device_count()
    devices = [f"cuda:{n}" for n in range(count)] if names == "all" else names.split(",")
    devices = [f"cuda:{name}" if name.isdecimal() else name for name in devices]
    if not devices:
        raise UserError("--devices all: PyTorch sees no CUDA device here; leave the flag out")
    for device in devices:
        pick_device(device)
        if device != "cpu" and devices.count(device) > 1:
            raise UserError(f"--devices {names} names {device} twice")
    return devices


def pick_readers(devices: Sequence[str]) -> int:
    """Reading processes for each of `devices`: one feeds a CPU; a GPU takes what cores there are, up to 8."""
    if devices[0] == "cpu":
        return 1
    return max(1, min(8, cores() // (2 * len(devices))))


class LocalEngine:
    """Embeds in this process."""

    def __init__(self, teacher: Teacher, readers: int) -> None:
        self.teacher = teacher
        self.readers = readers

    def facts(self) -> TeacherFacts:
        """What the run has to know of the teacher."""
        return self.teacher.facts()

    def run(self, job: Job, todo: Sequence[Slice], advance: Callable[[int], None]) -> None:
        """Commit the shards of `todo`."""
        progress.log(str(embed_slices(job, self.teacher, todo, readers=self.readers, advance=advance)))


class DevicesEngine:
    """Embeds on several devices of this machine, one process each, each its part of the slices."""

    def __init__(self, spec: TeacherSpec, devices: Sequence[str], readers: int) -> None:
        self.spec = spec
        self.devices = devices
        self.readers = readers

    def facts(self) -> TeacherFacts:
        """What the run has to know of the teacher, which is loaded once on the first device for it."""
        return self.spec.load(self.devices[0]).facts()

    def run(self, job: Job, todo: Sequence[Slice], advance: Callable[[int], None]) -> None:
        """Commit the shards of `todo`.

        Raises:
            UserError: a device's process failed or died; the others have finished their parts by then.
        """
        running: dict[Connection, tuple[str, Process]] = {}
        processes: list[Process] = []
        problems = []
        try:
            for number, device in enumerate(self.devices):
                part = todo[len(todo) * number // len(self.devices) : len(todo) * (number + 1) // len(self.devices)]
                connection, process = self._start(job, device, part)
                processes.append(process)
                running[connection] = (device, process)
            while running:
                for ready in wait(list(running)):
                    assert isinstance(ready, Connection)
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
            raise UserError(f"{'; '.join(problems)}; what is committed stays: run the same command again to resume")

    def _start(self, job: Job, device: str, todo: Sequence[Slice]) -> tuple[Connection, Process]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        arguments = (theirs, job, self.spec, device, len(self.devices), todo, self.readers)
        process = context.Process(target=_work, args=arguments)
        with deaf_to_ctrl_c():
            process.start()
        # Only the child holds this end, so that its death shows as the end of the stream.
        theirs.close()
        return ours, process


def _work(
    connection: Connection, job: Job, spec: TeacherSpec, device: str, devices: int, todo: Sequence[Slice], readers: int
) -> None:
    """What a device's process does: send counts of sentences, and at the end what there is to say."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        if device == "cpu":
            torch.set_num_threads(max(1, torch.get_num_threads() // devices))
        if todo:
            teacher = spec.load(device)
            require_same_teacher(teacher.facts(), job)
            connection.send(str(embed_slices(job, teacher, todo, readers=readers, advance=connection.send)))
    except KeyboardInterrupt:
        sys.exit(1)
    except Exception as error:  # raised again where the run is
        connection.send(sendable(error))


def _stop(number: int, frame: object) -> None:
    # What is embedded is still written; a second signal must not break into that.
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
