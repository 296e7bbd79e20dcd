"""Processes that train together."""

import os
from collections.abc import Sequence

import torch
from torch import distributed

from sentence_distill.data.errors import UserError, first_line
from sentence_distill.pipeline.hardware import pick_device

# What launchers tell a process of how many it is one of: torchrun and accelerate launch, then those of MPI.
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


class LostProcessError(UserError):
    """Another process of the run is gone."""


class ProcessGroup:
    """This process among those of the run; where there is only one, every exchange is nothing.

    Gradients are summed by one reduction of them all behind the backward pass. DistributedDataParallel hides its
    reductions in that pass; a student's dense weights are a megabyte or six, which leaves nothing to hide, and it would
    reduce the whole table of word embeddings.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        device: of this process.
    """

    def __init__(self, device: str) -> None:
        """Join the others.

        Args:
            device: "auto", "cpu", "cuda" or "cuda:N"; of several processes each takes a GPU of its own.

        Raises:
            UserError: there is no such device, or fewer of them than processes.
        """
        self.rank, self.size, self.device = 0, 1, pick_device(device)
        if not any(int(os.environ.get(name) or 1) > 1 for name in _SIZES):
            return
        here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE") or 1), torch.cuda.device_count()
        if self.device.type == "cuda" and here > gpus:
            raise UserError(f"{here} processes were started on a machine with {gpus} GPUs; start one for each")
        from accelerate import PartialState

        state = PartialState(cpu=self.device.type == "cpu")
        if state.device.type != self.device.type:
            raise UserError(f"the launcher gave this process {state.device}, not {self.device}; start with torchrun")
        self.rank, self.size = state.process_index, state.num_processes
        self.device = torch.device("cpu") if self.device.type == "cpu" else state.device

    @property
    def main(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    @property
    def share(self) -> slice:
        """Which rows of a batch are this process's."""
        return slice(self.rank, None, self.size)

    def sum(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its sum over all processes.

        Raises:
            LostProcessError: another process is gone.
        """
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
        """Give all processes the first one's weights: another machine may have reduced the embeddings otherwise.

        Raises:
            LostProcessError: another process is gone.
        """
        with torch.no_grad():
            if not self.main:
                for weight in weights:
                    weight.zero_()
            self.sum(weights)

    def gather(self, share: torch.Tensor, rows: int) -> torch.Tensor:
        """All processes' rows of a batch, of which only this one's carry a gradient.

        Args:
            share: float32[b, dim], this process's rows, those of `self.share`.
            rows: of the whole batch.

        Returns:
            float32[rows, dim].
        """
        if self.size == 1:
            return share
        whole = share.new_zeros(rows, share.shape[1])
        whole[self.share] = share.detach()
        self.sum([whole])
        whole[self.share] = share
        return whole
