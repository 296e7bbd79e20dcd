"""Where slices are embedded: in this process, or in one process a device."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

import torch

from sentence_distill.data.errors import UserError
from sentence_distill.data.progress import Progress
from sentence_distill.pipeline.locate import Located, locate_teacher
from sentence_distill.pipeline.plan import Slice
from sentence_distill.pipeline.precision import pick_device, pick_precision
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
    """

    located: Located
    pooling: str | None = None
    layers: Sequence[int] = (-1,)
    precision: str = "auto"

    def load(self, device: str) -> Teacher:
        """Load it on `device` (see `pick_device`)."""
        where = pick_device(device)
        return Teacher.load(
            self.located if self.located.folder.is_dir() else locate_teacher(self.located.name),
            pooling=self.pooling,
            layers=self.layers,
            device=where,
            dtype=pick_precision(self.precision, where),
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
        if device.startswith("cuda:") and int(device.removeprefix("cuda:")) >= count:
            raise UserError(f"--devices {names}: PyTorch sees {count} CUDA devices here, numbered from 0")
        pick_device(device)
    return devices


def pick_readers(devices: Sequence[str]) -> int:
    """Reading processes for each of `devices`: one feeds a CPU; a GPU takes what cores there are, up to 8."""
    if devices[0] == "cpu":
        return 1
    return max(1, min(8, (os.cpu_count() or 1) // (2 * len(devices))))


class LocalEngine:
    """Embeds in this process."""

    def __init__(self, teacher: Teacher, readers: int) -> None:
        self.teacher = teacher
        self.readers = readers

    def facts(self) -> TeacherFacts:
        """What the run has to know of the teacher."""
        return self.teacher.facts()

    def run(self, job: Job, todo: Sequence[Slice], progress: Progress, advance: Callable[[int], None]) -> None:
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

    def run(self, job: Job, todo: Sequence[Slice], progress: Progress, advance: Callable[[int], None]) -> None:
        """Commit the shards of `todo`.

        Raises:
            UserError: a device's process failed or died; the others have finished their parts by then.
        """
        context = multiprocessing.get_context("spawn")
        running = {}
        for number, device in enumerate(self.devices):
            part = todo[len(todo) * number // len(self.devices) : len(todo) * (number + 1) // len(self.devices)]
            ours, theirs = context.Pipe(duplex=False)
            arguments = (theirs, job, self.spec, device, len(self.devices), part, self.readers)
            process = context.Process(target=_work, args=arguments)
            process.start()
            theirs.close()
            running[ours] = (device, process)
        problems = []
        processes = list(running.values())
        try:
            while running:
                for connection in wait(list(running)):
                    assert isinstance(connection, Connection)
                    device, process = running[connection]
                    if (message := _receive(connection)) is None:
                        process.join()
                        del running[connection]
                        if process.exitcode:
                            problems.append(f"{device}: its process ended with code {process.exitcode}")
                    elif isinstance(message, int):
                        advance(message)
                    elif isinstance(message, Exception):
                        problems.append(f"{device}: {message}")
                    else:
                        progress.log(f"{device}: {message}")
        finally:
            for _, process in processes:
                process.terminate()
                process.join()
        if problems:
            raise UserError(f"{'; '.join(problems)}; what is committed stays, the same command goes on from there")


def _receive(connection: Connection) -> object:
    try:
        return connection.recv()
    except EOFError:
        return None


def _work(
    connection: Connection, job: Job, spec: TeacherSpec, device: str, devices: int, todo: Sequence[Slice], readers: int
) -> None:
    """What a device's process does: send counts of sentences, and at the end what there is to say."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if device == "cpu":
            torch.set_num_threads(max(1, torch.get_num_threads() // devices))
        if todo:
            teacher = spec.load(device)
            connection.send(str(embed_slices(job, teacher, todo, readers=readers, advance=connection.send)))
    except (KeyboardInterrupt, BrokenPipeError):
        return  # told to stop, or nobody is left to tell
    except Exception as error:  # said where the run is
        connection.send(error)
