"""Which floating-point format the hardware multiplies fastest."""

import torch

from sentence_distill.data.errors import UserError


def pick_device(name: str) -> torch.device:
    """The device `name`; "auto" is CUDA where there is one.

    Raises:
        UserError: it is neither a CPU nor a CUDA device, or not there.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    # PyTorch has names for many more, most of which it can't compute on here.
    if name != "cpu" and name.partition(":")[0] != "cuda":
        raise UserError(f"device {name!r} is none of auto, cpu, cuda and cuda:N; name one of them")
    if name != "cpu" and not available:
        raise UserError(f"device {name!r}: PyTorch sees no CUDA device here; leave the flag out or use cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device {name!r}: PyTorch knows no such device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name!r}: PyTorch sees {torch.cuda.device_count()} CUDA devices here, from cuda:0 on")
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The compute type of `name`; "auto" is bfloat16 where `device` has instructions for it.

    A CPU without them would still compute bfloat16, more slowly than float32. What the processor reports is
    tried once, because a build of PyTorch may lack the kernels.
    """
    if name != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]
    return torch.bfloat16 if has_bf16(device) else torch.float32


def has_bf16(device: torch.device) -> bool:
    """Whether `device` has instructions that multiply bfloat16, and this PyTorch the kernels for them."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return False
    try:
        sample = torch.ones(64, 64, dtype=torch.bfloat16)
        return bool(torch.isfinite(sample @ sample).all())
    except RuntimeError:
        return False
