"""comfy.ops: PyTorch's layers for weights of checkpoints, with which packs build networks of their own.

    disable_weight_init.Linear   torch.nn.Linear whose weights are left uninitialised: a checkpoint fills them
    manual_cast.Linear           the same; each call converts the weights to the number type and device of its input

Networks of packs are whole in memory. The weights of our own models are elsewhere (models/linear.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....models.products import before_product
from .model_management import cast_to

__all__ = [
    "CastWeightBiasOp",
    "cast_bias_weight",
    "cast_to",
    "cast_to_input",
    "disable_weight_init",
    "manual_cast",
    "pick_operations",
    "run_every_op",
    "scaled_dot_product_attention",
    "uncast_bias_weight",
]

Change = Callable[[Tensor], Tensor]


def run_every_op() -> None:
    """Raises Interrupted if the run must stop."""
    before_product()


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """PyTorch's function of this name: q, k, v [B, H, L, d]."""
    before_product()
    return F.scaled_dot_product_attention(q, k, v, *args, **kwargs)


def cast_to_input(weight: Tensor, input: Tensor, non_blocking: bool = False, copy: bool = True) -> Tensor:
    """The weight in the number type and on the device of `input`."""
    return cast_to(weight, input.dtype, input.device, non_blocking=non_blocking, copy=copy)


def cast_bias_weight(
    s: Any,
    input: Tensor | None = None,
    dtype: torch.dtype | None = None,
    device: Any = None,
    bias_dtype: torch.dtype | None = None,
    offloadable: bool = False,
    **newer: Any,
) -> tuple[Any, ...]:
    """(weight, bias) of a layer for one call, converted and changed by the functions on the layer.

    A layer without one of the two gives None for it. offloadable: the caller passes a third value back to
    `uncast_bias_weight`; it is None here, as weights are converted on the stream that computes.
    """
    if input is not None:
        dtype, device = dtype or input.dtype, device or input.device
    weight = _changed(getattr(s, "weight", None), dtype, device, getattr(s, "weight_function", ()))
    bias = _changed(getattr(s, "bias", None), bias_dtype or dtype, device, getattr(s, "bias_function", ()))
    return (weight, bias, None) if offloadable else (weight, bias)


def _changed(tensor: Tensor | None, dtype: torch.dtype | None, device: Any, functions: Sequence[Change]) -> Any:
    if tensor is None:
        return None
    tensor = cast_to(tensor, dtype, device)
    for function in functions:
        tensor = function(tensor)
    return tensor


def uncast_bias_weight(s: Any, weight: Any, bias: Any, offload_stream: Any = None) -> None:
    """Does nothing: the tensors of one call are freed when nothing refers to them."""


class CastWeightBiasOp:
    """A layer that can convert its weights at each call.

    comfy_cast_weights: whether it does. weight_function, bias_function: functions that change the converted tensors.
    """

    comfy_cast_weights = False
    weight_function: Sequence[Change] = ()
    bias_function: Sequence[Change] = ()

    def reset_parameters(self) -> None:
        """Weights are left as they are: a checkpoint fills them."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        before_product()
        if self.comfy_cast_weights or self.weight_function or self.bias_function:
            return self.forward_comfy_cast_weights(*args, **kwargs)
        return super().forward(*args, **kwargs)  # type: ignore[misc]  # the layer of PyTorch

    def forward_comfy_cast_weights(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not say how it uses converted weights")


class disable_weight_init:
    """Layers whose weights are left uninitialised."""

    class Linear(CastWeightBiasOp, nn.Linear):
        def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
            return F.linear(input, *cast_bias_weight(self, input))

    class Conv1d(CastWeightBiasOp, nn.Conv1d):
        def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
            out: Tensor = self._conv_forward(input, *cast_bias_weight(self, input))
            return out

    class Conv2d(CastWeightBiasOp, nn.Conv2d):
        def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
            out: Tensor = self._conv_forward(input, *cast_bias_weight(self, input))
            return out

    class Conv3d(CastWeightBiasOp, nn.Conv3d):
        def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
            out: Tensor = self._conv_forward(input, *cast_bias_weight(self, input))
            return out

    class ConvTranspose1d(CastWeightBiasOp, nn.ConvTranspose1d):
        def forward_comfy_cast_weights(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
            return _transposed(self, F.conv_transpose1d, input, output_size)

    class ConvTranspose2d(CastWeightBiasOp, nn.ConvTranspose2d):
        def forward_comfy_cast_weights(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
            return _transposed(self, F.conv_transpose2d, input, output_size)

    class GroupNorm(CastWeightBiasOp, nn.GroupNorm):
        def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
            weight, bias = cast_bias_weight(self, input)
            return F.group_norm(input, self.num_groups, weight, bias, self.eps)

    class LayerNorm(CastWeightBiasOp, nn.LayerNorm):
        def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
            weight, bias = cast_bias_weight(self, input)
            return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)

    class RMSNorm(CastWeightBiasOp, nn.RMSNorm):
        def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
            weight, _ = cast_bias_weight(self, input)
            return F.rms_norm(input, self.normalized_shape, weight, self.eps)

    class Embedding(CastWeightBiasOp, nn.Embedding):
        def forward(self, input: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
            """Rows of the table, in `out_dtype` or in the type of the table."""
            found: Tensor = super().forward(input)
            return found if out_dtype is None else found.to(out_dtype)

        def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
            weight, _ = cast_bias_weight(self, device=input.device)
            return F.embedding(
                input, weight, self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse
            )

    @classmethod
    def conv_nd(cls, dims: int, *args: Any, **kwargs: Any) -> Any:
        """A convolution over 1, 2 or 3 dimensions. Raises ValueError for another number."""
        if dims not in (1, 2, 3):
            raise ValueError(f"There are convolutions over 1, 2 and 3 dimensions, and none over {dims}.")
        return getattr(cls, f"Conv{dims}d")(*args, **kwargs)


def _transposed(layer: Any, convolve: Callable[..., Tensor], input: Tensor, output_size: list[int] | None) -> Tensor:
    sizes = (layer.stride, layer.padding, layer.kernel_size)
    further = layer._output_padding(input, output_size, *sizes, len(layer.kernel_size), layer.dilation)
    weight, bias = cast_bias_weight(layer, input)
    return convolve(input, weight, bias, layer.stride, layer.padding, further, layer.groups, layer.dilation)


class manual_cast(disable_weight_init):
    """Layers that convert their weights to the number type and device of their input."""

    class Linear(disable_weight_init.Linear):
        comfy_cast_weights = True

    class Conv1d(disable_weight_init.Conv1d):
        comfy_cast_weights = True

    class Conv2d(disable_weight_init.Conv2d):
        comfy_cast_weights = True

    class Conv3d(disable_weight_init.Conv3d):
        comfy_cast_weights = True

    class ConvTranspose1d(disable_weight_init.ConvTranspose1d):
        comfy_cast_weights = True

    class ConvTranspose2d(disable_weight_init.ConvTranspose2d):
        comfy_cast_weights = True

    class GroupNorm(disable_weight_init.GroupNorm):
        comfy_cast_weights = True

    class LayerNorm(disable_weight_init.LayerNorm):
        comfy_cast_weights = True

    class RMSNorm(disable_weight_init.RMSNorm):
        comfy_cast_weights = True

    class Embedding(disable_weight_init.Embedding):
        comfy_cast_weights = True


def pick_operations(weight_dtype: Any, compute_dtype: Any = None, *args: Any, **kwargs: Any) -> type[Any]:
    """The layers for weights of one number type in a network that computes in another."""
    return disable_weight_init if compute_dtype in (None, weight_dtype) else manual_cast
