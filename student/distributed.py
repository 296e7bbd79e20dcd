"""Distributed training: the processes of a run, and their communication."""

import os
from collections.abc import Sequence

import torch
from torch import distributed

from sentence_distill.data.errors import UserError, first_line
from sentence_distill.data.progress import counted
from sentence_distill.pipeline.hardware import pick_device

# Variables in which launchers set the number of processes: torchrun and accelerate launch, then those of MPI.
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


class LostProcessError(UserError):
    """Another process of the run is gone."""


class ProcessGroup:
    """The processes of a run; with a single process, communication is a no-op.

    All gradients are summed by a single all-reduce after the backward pass. DistributedDataParallel overlaps its
    reductions with that pass, but a student's dense weights take only one to six megabytes, so there is nothing to
    gain; and it would reduce the whole table of word embeddings, of which a batch touches few rows.
    """

    def __init__(self, device: str) -> None:
        """Join the group; with several processes, each takes its own GPU."""
        self.rank, self.size, self.device = 0, 1, pick_device(device)
        if any(int(os.environ.get(name) or 1) > 1 for name in _SIZES):
            here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE") or 1), torch.cuda.device_count()
            if self.device.type == "cuda" and here > gpus:
                raise UserError(f"{here} processes on a machine with {counted(gpus, 'GPU')}; start one per GPU")
            from accelerate import PartialState

            state = PartialState(cpu=self.device.type == "cpu")
            if state.device.type != self.device.type:
                raise UserError(
                    f"the launcher gave this process {state.device}, not {self.device}; start with torchrun"
                )
            self.rank, self.size = state.process_index, state.num_processes
            self.device = torch.device("cpu") if self.device.type == "cpu" else state.device
        self.main = self.rank == 0
        """True in the process that writes and reports."""
        self.share = slice(self.rank, None, self.size)
        """Rows of a batch that this process computes."""

    def sum(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten().float() for tensor in tensors])
        try:
            distributed.all_reduce(flat)
        except RuntimeError as error:
            raise LostProcessError(f"another process of the run is gone ({first_line(error)})") from error
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def share_first(self, weights: Sequence[torch.Tensor]) -> None:
        """Copy the weights of the first process to all others: each machine may round the initial ones differently."""
        with torch.no_grad():
            # A sum in which all other processes contribute zeros is a broadcast.
            if not self.main:
                for weight in weights:
                    weight.zero_()
            self.sum(weights)

    def gather(self, share: torch.Tensor, rows: int) -> torch.Tensor:
        """Return the rows of all processes, float32[rows, dim]; only this process's rows, `share`, have a gradient."""
        if self.size == 1:
            return share
        whole = share.new_zeros(rows, share.shape[1])
        whole[self.share] = share.detach()
        self.sum([whole])
        whole[self.share] = share
        return whole
