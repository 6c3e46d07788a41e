"""Two optimisers side by side, and the moving average of the weights.

Matrices inside transformer blocks go to Muon, everything else (embeddings, norms, biases, first and last layers,
convolutions) to AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from .recipe import Phase


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024): all directions of a matrix change by the same length.

    The step is scaled to the size of AdamW's (Liu et al. 2025, section 2.2), so that rates can be compared.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        # torch declares overloads for it, which no subclass of its own repeats
        assert closure is None, "this optimiser looks at the loss once a step"
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                direction = orthogonal(weight.grad.lerp(momentum, group["momentum"]))
                weight.add_(direction.to(weight.dtype), alpha=-0.2 * max(weight.shape) ** 0.5 * group["lr"])
        return None


def orthogonal(matrix: Tensor) -> Tensor:
    """Approximately U V^T of the matrix's singular value decomposition: five Newton-Schulz steps in bfloat16."""
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.T).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x if wide else x.T


def optimisers(module: nn.Module, phase: Phase) -> list[torch.optim.Optimizer]:
    """Assigns the parameters to the two optimisers; their learning rates are set before every step."""
    matrices = list(_block_matrices(module)) if phase.matrix_rate else []
    taken = {id(weight) for weight in matrices}
    rest = [weight for weight in module.parameters() if weight.requires_grad and id(weight) not in taken]
    adam = torch.optim.AdamW(rest, lr=phase.rate, betas=(0.9, 0.98), weight_decay=0.0)
    for group in adam.param_groups:
        group["peak"] = phase.rate
    if not matrices:
        return [adam]
    muon = Muon(matrices, lr=phase.matrix_rate)
    for group in muon.param_groups:
        group["peak"] = phase.matrix_rate
    return [adam, muon]


def _block_matrices(module: nn.Module) -> Iterator[nn.Parameter]:
    """Weights [out, in] of the layers inside blocks, without adaLN (it starts at zero) and position tables."""
    inside = ("_blocks.", "encoder.block.", "encoder.layers.")
    outside = ("mod.lin", "modulation.lin", "relative_attention_bias")
    for name, weight in module.named_parameters():
        if weight.ndim == 2 and any(part in name for part in inside) and not any(part in name for part in outside):
            yield weight


def rate_at(step: int, phase: Phase) -> float:
    """The learning rate of a step as a fraction of its peak: rising, constant, falling to zero."""
    falling = max(1, round(phase.steps * phase.cool_down))
    return min(1.0, (step + 1) / max(1, phase.warm_up), (phase.steps - step) / falling)


@torch.no_grad()
def average_into(averages: list[Tensor], weights: list[Tensor], decay: float, step: int) -> None:
    """Move the averages towards the weights; faster in the first steps, so that the initial values lose their influence
    soon.
    """
    torch._foreach_lerp_(averages, weights, 1 - min(decay, (step + 1) / (step + 10)))
