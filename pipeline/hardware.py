"""Devices, compute dtypes and CPU kernels: probes of what this machine can compute, and computes fast."""

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from sentence_distill.data.errors import UserError
from sentence_distill.data.progress import counted

# Operations of each kind of job; keys of `_SAMPLES`.
TEACHER = ("linear", "attention")
STUDENT = ("linear", "lstm")
TRAINING = ("linear", "lstm backward")
FINETUNING = ("linear backward", "lstm backward")
_BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def pick_device(name: str) -> torch.device:
    """Return the device auto, cpu, cuda or cuda:N; "auto" is CUDA if it is available."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    # PyTorch knows many more device names, most of which it can't compute on here.
    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if found is None:
        raise UserError(f"device {name!r} is not one of auto, cpu, cuda and cuda:N; name one of them")
    if name != "cpu" and int(found[1] or 0) >= count:
        devices = counted(count, "CUDA device")
        raise UserError(f"device {name!r}: PyTorch sees {devices} here; leave the flag out or use cpu")
    return torch.device(name)


def pick_precision(name: str, device: torch.device, operations: Sequence[str]) -> torch.dtype:
    """Return the compute dtype (auto, bf16 or fp32) for a job that consists of `operations`.

    "auto" is bfloat16 if `device` has instructions for it and all operations run in it.
    """
    if name == "auto":
        return torch.bfloat16 if fast_in_bf16(device, operations) else torch.float32
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[name]
    require_precision(dtype, device, operations)
    return dtype


def require_precision(dtype: torch.dtype, device: torch.device, operations: Sequence[str]) -> None:
    """Refuse a compute dtype in which an operation does not run on `device`."""
    if dtype != torch.float32 and (missing := [name for name in operations if not computes(name, dtype, device)]):
        where = "this CPU" if device.type == "cpu" else str(device)
        raise UserError(
            f"--precision bf16: PyTorch computes no {missing[0]} in bfloat16 on {where}; use --precision fp32, or auto"
        )


def fast_in_bf16(device: torch.device, operations: Sequence[str]) -> bool:
    """Return True if `device` has instructions for bfloat16 and runs all `operations` in it."""
    return _has_bf16_instructions(device) and all(computes(name, torch.bfloat16, device) for name in operations)


@cache
def computes(operation: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Run an operation of `_SAMPLES` once in `dtype` on `device`; return True if the result is finite."""
    try:
        with torch.random.fork_rng(devices=[]):
            return bool(torch.isfinite(_SAMPLES[operation](dtype, device).float()).all())
    # A missing kernel raises RuntimeError; a private operator may be gone, or take other arguments.
    except (RuntimeError, NotImplementedError, AttributeError, TypeError):
        return False


def _has_bf16_instructions(device: torch.device) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    # oneDNN's own answer respects its environment variables. Some versions and builds lack it, or the capabilities.
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    if not supported():
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in _BFLOAT16_INSTRUCTIONS)
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def _linear(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    weight, sample = (torch.ones(rows, 64, dtype=dtype, device=device) for rows in (32, 8))
    return functional.linear(sample, weight)


def _packed_linear(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return PackedLinear(nn.Linear(64, 32, dtype=dtype, device=device))(torch.ones(8, 64, dtype=dtype, device=device))  # type: ignore[no-any-return]


def _attention(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    states = torch.ones(2, 4, 8, 16, dtype=dtype, device=device)
    return functional.scaled_dot_product_attention(states, states, states)


def _lstm(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    with torch.no_grad():
        return _under_autocast(_new_lstm(), dtype, device)


def _trained(layer: nn.Module, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    with torch.enable_grad():
        _under_autocast(layer, dtype, device).float().sum().backward()
    return torch.cat([weight.grad.flatten() for weight in layer.parameters() if weight.grad is not None])


def _under_autocast(layer: nn.Module, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Run a layer under autocast, as LSTMs and all training run."""
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        output = layer.to(device)(torch.ones(4, 8, 16, device=device))
    return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]


def _new_lstm() -> nn.LSTM:
    return nn.LSTM(16, 8, batch_first=True, bidirectional=True)


_SAMPLES: dict[str, Callable[[torch.dtype, torch.device], torch.Tensor]] = {
    "linear": _linear,
    "packed linear": _packed_linear,
    "attention": _attention,
    "linear backward": lambda dtype, device: _trained(nn.Linear(16, 8), dtype, device),
    "lstm": _lstm,
    "lstm backward": lambda dtype, device: _trained(_new_lstm(), dtype, device),
}


# Replacements for the two bottlenecks of the teacher on a CPU: linear layers, and attention over short sentences.

ATTENTION = "sentence_distill_cpu"
_PLAIN_ENCODERS = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "mpnet")


class PackedLinear(nn.Module):
    """`nn.Linear` for inference with its weight in oneDNN's blocked layout, which `nn.Linear` makes at every call."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Map […, in_features] to […, out_features], in the dtype of the weight."""
        return torch.ops.mkldnn._linear_pointwise(states, self.weight, self.bias, "none", [], "")  # type: ignore[no-any-return]


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute scaled dot-product attention with a softmax in float32; the signature is transformers' own.

    Inputs are bfloat16 or float32[batch, heads, length, width], without a mask: exact-length batches need none. Returns
    [batch, length, heads, width] in the dtype of `query`, and None for the weights.
    """
    assert attention_mask is None, "exact-length batches need no mask"
    batch, heads, length, width = query.shape
    query, key, value = (states.reshape(batch * heads, length, width) for states in (query, key, value))
    scores = torch.bmm(query, key.transpose(1, 2)).float().mul_(width**-0.5 if scaling is None else scaling)
    context = torch.bmm(torch.softmax(scores, dim=-1).to(value.dtype), value)
    return context.view(batch, heads, length, width).transpose(1, 2), None


def use_cpu_kernels(model: Any) -> None:
    """Replace slow layers of an encoder on the CPU; its vectors stay the same up to rounding.

    This is done only for architectures with full attention and plain linear layers; others, for example with a local
    window, are left alone. MPNet does not use the attention registry, so it keeps its own attention. Linear layers are
    kept if oneDNN has no kernel for their dtype: there is none for bfloat16 on processors without instructions for it,
    and its operators may change with PyTorch's version.
    """
    if model.config.model_type not in _PLAIN_ENCODERS or getattr(model.config, "is_decoder", False):
        return
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attention)
    if getattr(model, "_supports_attention_backend", False):
        model.set_attn_implementation(ATTENTION)
    packed = computes("packed linear", model.dtype, torch.device("cpu"))
    for parent in list(model.modules()) if packed else ():
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child))
