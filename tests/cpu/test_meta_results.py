"""Results on the meta device: our rules give what PyTorch gives, and its compiler is not imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sluice.flux_core.models.autoencoder import Autoencoder, AutoencoderConfig
from sluice.flux_core.models.clip_text import ClipConfig, ClipTextModel
from sluice.flux_core.models.denoiser_inputs import DenoiserInputs
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_config import FluxConfig
from sluice.flux_core.models.t5 import T5Config, T5Encoder
from sluice.flux_core.runtime.meta_results import META, MetaResults, new_like, result_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Facts = list[tuple[torch.dtype, tuple[int, ...], tuple[int, ...]]]


def facts(result: Any) -> Facts:
    """Type, shape and strides; the stride of an axis of length one says nothing."""
    return [
        (leaf.dtype, tuple(leaf.shape), tuple(s for s, n in zip(leaf.stride(), leaf.shape, strict=True) if n > 1))
        for leaf in tree_leaves(result)
        if isinstance(leaf, Tensor)
    ]


class Compared(TorchDispatchMode):
    """Every operation by its rule and by PyTorch. left: the names of those on the meta device that have no rule."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ours: list[str] = []
        self.left: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_rule = result_of(func, args, kwargs or {})
        theirs = func(*args, **(kwargs or {}))
        if by_rule is NotImplemented:
            self.left += [str(func)] if any(leaf.is_meta for leaf in tree_leaves(theirs)) else []
        else:
            self.ours.append(str(func))
            assert facts(by_rule) == facts(theirs), (func, facts(args))
        return theirs


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


X, ROW, NUMBERS = meta(2, 5, 8), meta(8), meta(2, 5, dtype=torch.int64)
PART, TURNED = meta(2, 9, 24)[:, 2:7, 8:16], meta(5, 8, 2).permute(2, 0, 1)
HEADS, OTHERS = meta(2, 3, 5, 8), meta(2, 3, 7, 8)
TURNED_HEADS = meta(2, 5, 3, 8).transpose(1, 2)
IMAGE = meta(2, 32, 6, 4)
CHANNELS_LAST = meta(2, 6, 4, 32).movedim(-1, 1)
ODD_BATCH = IMAGE[:1].as_strided((1, 32, 6, 4), (32, 1, 128, 32))
KERNEL, POINT, GROUPED = meta(8, 32, 3, 3), meta(32, 32, 1, 1), meta(32, 1, 3, 3)
FUNCTIONS = (torch.exp, torch.sin, torch.cos, torch.log, torch.sigmoid, torch.rsqrt, torch.abs, torch.tanh,
             torch.isfinite, torch.isnan, torch.square, torch.neg, F.silu, F.gelu, F.relu)  # fmt: skip
LIKE = (torch.empty_like, torch.zeros_like, torch.ones_like)
NORMS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: F.layer_norm(x, (8,), eps=1e-6),
    lambda x: F.layer_norm(x, (8,), ROW, ROW),
    lambda x: F.rms_norm(x, (8,), ROW, 1e-6),
)
CALLS: dict[str, Callable[[], object]] = {
    "sums": lambda: (X + ROW, X - 1, X * TURNED, TURNED / ROW, -PART, X[:, :1] * PART, NUMBERS + 0.5),
    "half precision": lambda: (X.half() * 2.0, X.bfloat16() + X, X.bfloat16() * torch.ones((), device=META)),
    "functions": lambda: [function(x) for function in FUNCTIONS for x in (X, PART, TURNED, CHANNELS_LAST)],
    "integers": lambda: (NUMBERS.abs(), NUMBERS.clamp(max=3), NUMBERS / 2, NUMBERS * (NUMBERS < 3), ~(NUMBERS > 1)),
    "choices": lambda: (torch.where(X > 0, PART, 1.0), X.masked_fill(X > 0, 0.0), X.nan_to_num(), X.clamp(0, 1)),
    "powers": lambda: (X**2, 10_000.0**X, NUMBERS**0.5),
    "fused": lambda: (torch.addcmul(X, ROW, PART), torch.addcmul(ROW, X, TURNED)),
    "in place": lambda: (X.clone().add_(1), PART.clone().mul_(ROW), F.silu(X.clone(), inplace=True)),
    "into a tensor": lambda: (torch.mul(X, ROW, out=meta(2, 5, 8)), torch.add(X, ROW, out=meta(2, 5, 16)[..., ::2])),
    "like another": lambda: [function(x) for function in LIKE for x in (X, PART, TURNED)],
    "sequences": lambda: (
        torch.arange(7, device=META),
        torch.arange(1, 9, 2, dtype=torch.float32, device=META),
        torch.linspace(0, 1, 9, dtype=torch.float64, device=META),
        torch.full((3, 3), 0.5, device=META).triu(1),
    ),
    "linear": lambda: (F.linear(X, meta(16, 8)), F.linear(PART, meta(16, 8), meta(16)), F.linear(X[0], meta(3, 8))),
    "matrices": lambda: (X @ meta(8, 3), X[0] @ meta(8, 3), X @ meta(2, 8, 4), meta(2, 3, 5, 8) @ meta(3, 8, 2)),
    "attention": lambda: [
        F.scaled_dot_product_attention(query, key, key, attn_mask=mask)
        for query, key in ((HEADS, HEADS), (HEADS, OTHERS), (TURNED_HEADS, TURNED_HEADS))
        for mask in (None, meta(query.shape[-2], key.shape[-2]))
    ],
    "norms": lambda: [norm(x) for norm in NORMS for x in (X, PART, TURNED)],
    "group norm": lambda: [F.group_norm(x, 4, meta(32), meta(32)) for x in (IMAGE, CHANNELS_LAST, ODD_BATCH)],
    "convolutions": lambda: [
        F.conv2d(x, weight, bias, stride, padding, groups=groups)
        for x in (IMAGE, CHANNELS_LAST, ODD_BATCH)
        for weight, bias, groups in ((KERNEL, meta(8), 1), (POINT, None, 1), (GROUPED, None, 32))
        for stride, padding in ((1, 1), (2, 0))
    ],
    "enlarged": lambda: [F.interpolate(x, scale_factor=2.0, mode="nearest") for x in (IMAGE, CHANNELS_LAST, ODD_BATCH)],
    "joined": lambda: (
        *(torch.cat((X, PART), 1), torch.cat((X, X), -1), torch.cat((IMAGE, CHANNELS_LAST), 1)),
        *(torch.cat((TURNED_HEADS, TURNED_HEADS), 2), torch.stack((X, TURNED), -1), torch.stack((X, PART))),
        *(torch.stack((HEADS, TURNED_HEADS), axis) for axis in (0, 2, 4, -2)),
        *(torch.stack((TURNED_HEADS, TURNED_HEADS)), torch.stack((IMAGE, CHANNELS_LAST))),
    ),
    "rows": lambda: (
        *(F.embedding(NUMBERS, meta(10, 4)), X[NUMBERS[:, 0], NUMBERS[:, 1]], X[NUMBERS[0]]),
        *(X.repeat(2, 1, 3), X.repeat(4, 1, 1, 1)),
    ),
    "reduced": lambda: (
        *(X.sum(), X.mean(dim=-1), X.mean(dim=(0, 2), keepdim=True), X.sum(1)),
        *(X.logsumexp(-1), X.logsumexp(-1, keepdim=True)),
        *(torch.linalg.vector_norm(X, dim=1, keepdim=True), (X > 0).all(dim=1).any(), X.any(dim=-1, keepdim=True)),
    ),
    "softmax": lambda: (X.softmax(-1), X.bfloat16().softmax(1)),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_rule_gives_what_pytorch_gives(case: str) -> None:
    with torch.inference_mode(), Compared() as compared:
        CALLS[case]()
    assert compared.ours


COMPILED = (
    "_to_copy alias as_strided chunk contiguous copy_ detach empty empty_strided expand flatten full movedim ones pad "
    "permute reshape select slice split split_with_sizes squeeze to transpose unbind unflatten unsqueeze view zeros"
).split()


def test_the_models_need_no_function_of_pytorchs_in_python() -> None:
    """What is left to PyTorch is written in C++: views, copies and new tensors."""
    with META:
        flux = Flux(FluxConfig(16, 16, 128, 1, 128, 512, 2, 2, 24, 16, True, (16, 56, 56))).half().eval()
        t5, clip = T5Encoder(T5Config(64, 64, 64, 2, 128, 2)), ClipTextModel(ClipConfig(60, 77, 64, 128, 2, 2))
        vae = Autoencoder(AutoencoderConfig(3, 32, (1, 2), 1, 16))
    x, context, pooled, one = (meta(2, *shape, dtype=torch.float16) for shape in ((16, 8, 6), (5, 24), (16,), ()))
    with torch.inference_mode(), Compared() as compared:
        flux(DenoiserInputs(x, one, context, pooled, one))
        t5(meta(1, 9, 64))
        clip(meta(1, 77, 64), meta(1, dtype=torch.int64))
        vae.decode(meta(1, 16, 8, 8))
        vae.encode(meta(1, 3, 16, 16))
    assert {name.split(".")[1] for name in compared.left} - {*COMPILED} == set()


def test_what_no_rule_describes_is_left_to_pytorch() -> None:
    with MetaResults():
        values, places = X.topk(3)
        assert values.shape == places.shape == (2, 5, 3) and places.dtype == torch.int64
        assert facts(torch.cat((X, X.half()))) == [(torch.float32, (4, 5, 8), (40, 8, 1))]
        on_cpu = torch.ones(3) + torch.arange(3)
        assert on_cpu.tolist() == [1, 2, 3]
    wrongs: tuple[Callable[[], object], ...] = (
        lambda: X + meta(7),
        lambda: F.linear(X, meta(3, 7)),
        lambda: F.conv2d(IMAGE, meta(8, 31, 3, 3)),
    )
    for wrong in wrongs:
        with pytest.raises(RuntimeError) as theirs:
            wrong()
        with pytest.raises(RuntimeError) as ours, MetaResults():
            wrong()
        assert str(ours.value) == str(theirs.value)


def test_a_tensor_like_another_has_its_order_of_axes() -> None:
    on_cpu = torch.ones(5, 8, 2).permute(2, 0, 1), torch.ones(3, 1).expand(3, 4), torch.ones(()), torch.ones(0, 3)
    for x in (X, PART, TURNED, IMAGE, CHANNELS_LAST, NUMBERS, *on_cpu):
        assert facts(new_like(x)) == facts(torch.empty_like(x, device=META))


def test_the_first_image_of_a_process_imports_no_compiler(prologue: str, tmp_path: Path) -> None:
    """Neither with models in memory as a whole nor with managed ones."""
    code = prologue + (
        "from sluice.flux_core.commands.cli import main\n"
        "from sluice.flux_core.commands.make_workflows import WORKFLOWS\n"
        "run = ['run', str(WORKFLOWS / 'text_to_image.png'), '--device', 'cpu', '--out']\n"
        f"codes = main([*run, {str(tmp_path)!r}]), main([*run, {str(tmp_path)!r}, '--ram', '1G', '--seed', '2'])\n"
        "print(codes, {'torch._dynamo', 'sympy'} & {*sys.modules})\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.splitlines()[-1] == "(0, 0) set()", ran.stderr
