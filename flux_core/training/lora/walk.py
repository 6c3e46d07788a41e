"""One training step of a transformer whose weights may be streamed: forward without a graph, then backward block by
block.

    forward    the model's unchanged forward; only the inputs of each block are kept
    backward   from the last block to the first trained one: the block is run again with a graph, and its gradients
               are computed at once

So two blocks' matrices and one block's graph are in memory at any time, and a block that runs out of memory is run
again. The gradients are identical to those of autograd over the whole model. Unused results are not computed: blocks
below the first trained one, gradients of that one's inputs, and the last products of every block, whose values go only
into a residual with a gate that has no gradient.

The trained tensors are those with `requires_grad` in the side branches of the model's Linears. Uses no storage, no LoRA
file and no optimiser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...cancel import check_cancelled
from ...models.copies import deep
from ...models.denoiser_inputs import DenoiserInputs
from ...models.flux import Flux
from ...models.flux_blocks import DoubleStreamBlock, SingleStreamBlock, finite
from ...models.linear import HeldWeight, Linear
from ...models.tensor_trees import tensors_of
from ...quant.held import DenseProducts
from ...runtime.modulation import branches_on_rows, modulators_of
from .kept import Kept, OnDevice

Block = DoubleStreamBlock | SingleStreamBlock
Result = TypeVar("Result")
Attempt = Callable[[Callable[[], Any]], Any]  # runs the work; if memory runs out, frees some and runs it again
Loss = Callable[[Tensor, Tensor], Tensor]  # velocity and target [B, C, h, w] in float32 -> the loss of each number

LAST_PRODUCTS = {DoubleStreamBlock: ("img_mlp.2", "txt_mlp.2"), SingleStreamBlock: ("linear2",)}


@dataclass(frozen=True)
class Batch:
    """The input of one step.

    inputs   noisy latents, times and texts; on the compute device
    rows     the modulation rows of the model without side branches
    active   silu of the vector on which modulation depends [B, D]; only needed if adaLN layers are trained
    target   the target velocity [B, C, h, w], float32
    weights  of each value of the velocity (a mask) [B, 1, h, w] in 0..1, or None
    """

    inputs: DenoiserInputs
    rows: tuple[Tensor, ...]
    target: Tensor
    active: Tensor | None = None
    weights: Tensor | None = None


@dataclass(frozen=True)
class Gradients:
    """losses [B]: of each image. gradients: of the mean of the losses, for `Walk.trained` in its order."""

    losses: Tensor
    gradients: tuple[Tensor, ...]


def squared(velocity: Tensor, target: Tensor) -> Tensor:
    return (velocity - target).square()


def at_once(work: Callable[[], Result]) -> Result:
    """An `Attempt` without handling of memory errors."""
    return work()


class Walk:
    """The training steps of one model."""

    def __init__(self, flux: Flux, kept: Kept | None = None, loss: Loss = squared) -> None:
        """flux: made for inference, with side branches some of whose tensors require gradients. It is not changed.

        Raises ValueError if no tensor requires gradients, or if one outside the blocks does.
        """
        self.flux, self.kept, self.loss = _with_numbers(flux), kept or OnDevice(), loss
        self.graph = deep(self.flux).train()
        self.blocks: list[Block] = list(self.graph.blocks())
        self.by_block = [list(_trained(block)) for block in self.blocks]
        self.trained = [tensor for tensors in self.by_block for tensor in tensors]
        if not self.trained or len(self.trained) != len(list(_trained(flux))):
            raise ValueError("only side branches of blocks can be trained, and none requires gradients")
        self.first = next(number for number, tensors in enumerate(self.by_block) if tensors)
        for block in self.blocks:
            _leave_out_last_products(block)

    def __call__(self, batch: Batch, attempt: Attempt = at_once) -> Gradients:
        """Losses and gradients. attempt: runs each block; work that is repeated must not change its inputs."""
        output, beside = self._forward(batch, attempt)
        with _in_this_thread():
            losses, slope = attempt(partial(self._loss, batch, output, True))
            del output
            return Gradients(losses, tuple(self._backward(batch, slope, beside, attempt)))

    def losses(self, batch: Batch, attempt: Attempt = at_once) -> Tensor:
        """The loss of each image [B], for a validation set."""
        output, _ = self._forward(batch, attempt, keep=False)
        losses: Tensor = attempt(partial(self._loss, batch, output, False))[0]
        return losses

    @torch.no_grad()
    def _forward(self, batch: Batch, attempt: Attempt, keep: bool = True) -> tuple[Tensor, tuple[Any, ...]]:
        """The last block's output, and the inputs of blocks besides their streams and rows. Block inputs are kept."""
        rows = batch.rows if batch.active is None else branches_on_rows(self.flux, batch.rows, batch.active)
        number, output, beside = -1, None, ()

        def run(block: nn.Module, *args: Any) -> Any:
            nonlocal number, output, beside
            number, output, beside = number + 1, None, args[_streams(block) + 1 :]
            if keep and number >= self.first:
                for place, stream in enumerate(args[: _streams(block)]):
                    self.kept.put(2 * number + place, stream)
            output = attempt(lambda: block(*args))
            return output

        self.flux(batch.inputs, modulation=rows, run_block=run)
        assert isinstance(output, Tensor), "the last block has one stream"
        return output, beside

    def _loss(self, batch: Batch, output: Tensor, slope: bool) -> tuple[Tensor, Tensor | None]:
        """The loss of each image, and the gradient of their mean with respect to the last block's output [B, L, D]."""
        with torch.set_grad_enabled(slope):
            output = output.detach().requires_grad_(slope)
            size, text = batch.inputs.x.shape[-2:], batch.inputs.context.shape[1]
            velocity = self.graph.velocity(output, text, batch.rows[-1], *size)
            errors = self.loss(velocity.float(), batch.target)
            if batch.weights is not None:
                errors = errors * batch.weights
            losses = errors.flatten(1).mean(1)
            if not slope:
                return losses, None
            return losses.detach(), torch.autograd.grad(losses.mean(), output)[0]

    def _backward(self, batch: Batch, slope: Tensor, beside: tuple[Any, ...], attempt: Attempt) -> list[Tensor]:
        """Gradients of the trained tensors, in their order. slope: with respect to the last block's output."""
        found: list[Tensor] = []
        slopes: tuple[Tensor, ...] = (slope,)
        text = batch.inputs.context.shape[1]
        for number in range(len(self.blocks) - 1, self.first - 1, -1):
            check_cancelled()
            if len(slopes) == 1 and isinstance(self.blocks[number], DoubleStreamBlock):
                (joined,) = slopes  # text, then image
                slopes = joined[:, text:], joined[:, :text]
            gradients, slopes = attempt(partial(self._block, batch, number, slopes, beside))
            found[:0] = gradients
            for place in range(2):
                self.kept.drop(2 * number + place)
        return found

    def _block(
        self, batch: Batch, number: int, slopes: tuple[Tensor, ...], beside: tuple[Any, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Gradients of the trained tensors in one block, and of its inputs (none for the first block)."""
        block, trained = self.blocks[number], self.by_block[number]
        inner = number > self.first
        with torch.enable_grad():
            kept = (self.kept.get(2 * number + place) for place in range(_streams(block)))
            streams = tuple(stream.detach().requires_grad_(inner) for stream in kept)
            row = batch.rows[number]
            if batch.active is not None:
                row = branches_on_rows(block, (row,), batch.active)[0]
            result = block(*streams, row, *beside)
            wanted = (*trained, *(streams if inner else ()))
            outputs = result if isinstance(result, tuple) else (result,)
            if number == self.graph.config.depth - 1:
                outputs = finite(outputs[0]), outputs[1]  # in fused order
            reaching = [(out, slope) for out, slope in zip(outputs, slopes, strict=True) if out.requires_grad]
            outs, slopes = tuple(out for out, _ in reaching), tuple(slope for _, slope in reaching)
            found = torch.autograd.grad(outs, wanted, slopes, allow_unused=True)
        whole = tuple(
            torch.zeros_like(tensor) if grad is None else grad for tensor, grad in zip(wanted, found, strict=True)
        )
        return whole[: len(trained)], whole[len(trained) :]


def _in_this_thread() -> AbstractContextManager[Any]:
    """Autograd runs in a separate thread for a GPU, but weights are fetched by one thread, and each has its own
    scratch.
    """
    return torch.autograd.set_multithreading_enabled(False)


def _streams(block: nn.Module) -> int:
    """How many streams a block takes: image and text, or both as one."""
    return 2 if isinstance(block, DoubleStreamBlock) else 1


def _trained(module: nn.Module) -> Iterator[Tensor]:
    """The tensors of side branches that require gradients, in the order of the modules."""
    for part in module.modules():
        if isinstance(part, Linear):
            yield from (tensor for tensor in tensors_of(part.branches) if tensor.requires_grad)


def _with_numbers(flux: Flux) -> Flux:
    """A copy whose held matrices are always decoded: gradients are those of such products, so the losses must be
    too.
    """
    copy = deep(flux)
    for part in copy.modules():
        if isinstance(part, Linear) and part.held is not None:
            part.held = _Numbers(part.held)
    return copy


class _Numbers(DenseProducts):
    """A held matrix, decoded for every product."""

    def __init__(self, held: HeldWeight) -> None:
        self.held = held

    def dense(self, dtype: torch.dtype) -> AbstractContextManager[Tensor]:
        return self.held.dense(dtype)

    def multiply_transposed(self, grad: Tensor) -> Tensor:
        return self.held.multiply_transposed(grad)


def _leave_out_last_products(block: Block) -> None:
    """Make the last layers of a block of the training copy compute gradients but no values, if the values are unused.

    The values are used if the gate has a gradient, that is if its adaLN layer is trained.
    """
    if any(tensor.requires_grad for linear in modulators_of(block) for tensor in tensors_of(linear.branches)):
        return
    for path in LAST_PRODUCTS[type(block)]:
        parent, _, name = path.rpartition(".")
        linear = block.get_submodule(path)
        assert isinstance(linear, Linear)
        if not linear.reweighings:
            block.get_submodule(parent)._modules[name] = _GradientOnly(linear)


class _GradientOnly(nn.Module):
    """A layer of which only the gradient is needed, and the gradients of its side branches, but not its product."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """In float16 the product is needed: blocks clip infinite values and store where they were."""
        if x.dtype == torch.float16:
            whole: Tensor = self.linear(x)
            return whole
        apply: Callable[..., Tensor] = _NoValues.apply
        return self.linear.add_branches(apply(x, self.linear), x)


class _NoValues(torch.autograd.Function):
    """x [..., in] -> uninitialised memory [..., out], which is never read."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: Linear) -> Tensor:
        ctx.linear = linear
        return x.new_empty(*x.shape[:-1], linear.out_features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        rows, linear = grad.flatten(0, -2), ctx.linear
        if linear.held is not None:
            found: Tensor = linear.held.multiply_transposed(rows)
        else:
            found = rows @ linear.own_weight.to(grad.dtype)
        return found.unflatten(0, grad.shape[:-1]), None


def mean_of(gradients: Sequence[Gradients]) -> Gradients:
    """Combines gradients of several batches of equal size: the gradient of the mean of all losses."""
    if len(gradients) == 1:
        return gradients[0]
    losses = torch.cat([each.losses for each in gradients])
    sums = [torch.stack(parts).float().mean(0) for parts in zip(*(g.gradients for g in gradients), strict=True)]
    return Gradients(losses, tuple(sums))
