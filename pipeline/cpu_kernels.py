"""The teacher's two slow spots on a CPU, replaced: linear layers and attention over short sentences.

Measured with PyTorch 2.13 on two cores with AVX512-BF16, MiniLM's shapes, 4,096 tokens of sentences of 30:
`nn.Linear` reaches 340 GFLOP/s in bfloat16, where it copies its bias and reorders its weight at every call, and
130 in float32; with the weight reordered once they are 425 and 195. `scaled_dot_product_attention` takes 10 ms a
layer in bfloat16, most of them for a softmax that has no vector code for short rows; as two batched products with
the softmax in float32 it takes 3.
"""

from typing import Any

import torch
from torch import nn

from sentence_distill.pipeline.allocator import keep_freed_memory
from sentence_distill.pipeline.hardware import computes

ATTENTION = "sentence_distill_cpu"
_PLAIN_ENCODERS = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "mpnet")


class PackedLinear(nn.Module):
    """`nn.Linear` for inference, its weight kept in the layout that oneDNN multiplies with."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[…, in_features] to […, out_features], in the type of the weight."""
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
    """Scaled dot-product attention, the softmax in float32; the signature is that of transformers' registry.

    Args:
        module: the layer that asks; not used.
        query: bfloat16 or float32[batch, heads, length, width].
        key: like `query`.
        value: like `query`.
        attention_mask: None: exact-length batches have none.
        scaling: of the scores; None is width ** -0.5.

    Returns:
        [batch, length, heads, width] in the type of `query`, and None for the weights.
    """
    assert attention_mask is None, "exact-length batches need no mask"
    batch, heads, length, width = query.shape
    query, key, value = (states.reshape(batch * heads, length, width) for states in (query, key, value))
    scores = torch.bmm(query, key.transpose(1, 2)).float().mul_(width**-0.5 if scaling is None else scaling)
    context = torch.bmm(torch.softmax(scores, dim=-1).to(value.dtype), value)
    return context.view(batch, heads, length, width).transpose(1, 2), None


def use_cpu_kernels(model: Any) -> None:
    """Replace, in an encoder on the CPU, what PyTorch computes slowly; its vectors stay within rounding.

    Only in architectures whose attention sees the whole sentence and whose linear layers are plain: others, with a
    local window for example, keep what they have. MPNet takes its attention from no registry and keeps it. Linear
    layers stay as they are if oneDNN has no kernel for their type here: it has none in bfloat16 on processors without
    instructions for it, and its operators may change with PyTorch's version.
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
    keep_freed_memory()
