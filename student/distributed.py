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
    """This process among those of the run; if it is alone, every exchange is nothing.

    Gradients are summed by one reduction of them all after the backward pass. DistributedDataParallel hides its
    reductions in that pass; a student's dense weights are a megabyte or six, which leaves nothing to hide, and it would
    reduce the whole table of word embeddings.
    """

    def __init__(self, device: str) -> None:
        """Join the others; each of several processes takes a GPU of its own."""
        self.rank, self.size, self.device = 0, 1, pick_device(device)
        if any(int(os.environ.get(name) or 1) > 1 for name in _SIZES):
            here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE") or 1), torch.cuda.device_count()
            if self.device.type == "cuda" and here > gpus:
                raise UserError(f"{here} processes were started on a machine with {gpus} GPUs; start one for each")
            from accelerate import PartialState

            state = PartialState(cpu=self.device.type == "cpu")
            if state.device.type != self.device.type:
                raise UserError(
                    f"the launcher gave this process {state.device}, not {self.device}; start with torchrun"
                )
            self.rank, self.size = state.process_index, state.num_processes
            self.device = torch.device("cpu") if self.device.type == "cpu" else state.device
        self.main = self.rank == 0
        """Whether this process writes and reports."""
        self.share = slice(self.rank, None, self.size)
        """This process's rows of a batch."""

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
        """Give all processes the first one's weights: another machine may have reduced the embeddings otherwise."""
        with torch.no_grad():
            if not self.main:
                for weight in weights:
                    weight.zero_()
            self.sum(weights)

    def gather(self, share: torch.Tensor, rows: int) -> torch.Tensor:
        """Return all processes' rows of a batch, float32[rows, dim]; only this one's, `share`, carry a gradient."""
        if self.size == 1:
            return share
        whole = share.new_zeros(rows, share.shape[1])
        whole[self.share] = share.detach()
        self.sum([whole])
        whole[self.share] = share
        return whole
