"""One image on several devices has the numbers of one device, for every kind of split. Here the devices are threads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles import stored_formats
from doubles.seeded import fill_module, seeded_tensor
from doubles.threads import Board, ThreadWire, on_threads
from sluice.flux_core.checkpoint.load import read
from sluice.flux_core.models.attention import attention
from sluice.flux_core.models.controlnet import ControlNet
from sluice.flux_core.models.controlnet_config import ControlNetConfig
from sluice.flux_core.models.copies import deep
from sluice.flux_core.models.denoiser_inputs import ControlInput, ControlResiduals, DenoiserInputs
from sluice.flux_core.models.flux import Flux, with_controlnets, with_sharing
from sluice.flux_core.models.flux_config import FluxConfig
from sluice.flux_core.models.linear import Linear
from sluice.flux_core.parallel.agree import AgreedOutOfMemory, AgreeingWire, Agreement
from sluice.flux_core.parallel.sharded import OwnRows, ShardedWeight, cut_rows, row_spans
from sluice.flux_core.parallel.split import Split, exchanged_bytes, gathered_bytes, spans
from sluice.flux_core.parallel.tokens import TokenSharing, merged, with_lse
from sluice.flux_core.parallel.wire import wrong_partners
from sluice.flux_core.quant.formats import decode
from sluice.flux_core.runtime.handles import load_flux
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from torch import Tensor

CONFIG = FluxConfig(
    in_channels=16, out_channels=16, hidden=192, heads=3, head_dim=64, mlp=384, depth=2, depth_single=2,
    context_dim=24, vec_dim=16, guidance=True, axes_dim=(8, 28, 28),
)  # fmt: skip
TOLERANCE = 5e-6


def inputs(
    cells: tuple[int, int] = (16, 12), text: int = 7, batch: int = 1, dtype: torch.dtype = torch.float32
) -> DenoiserInputs:
    return DenoiserInputs(
        seeded_tensor("x", (batch, 16, *cells)).to(dtype), torch.full((batch,), 0.73),
        seeded_tensor("context", (batch, text, 24)).to(dtype), seeded_tensor("pooled", (batch, 16)).to(dtype),
        torch.full((batch,), 4.0),
    )  # fmt: skip


def with_everything() -> DenoiserInputs:
    """References, a mask that hides some tokens from some, residuals for the first image tokens."""
    plain = inputs((10, 6), 5)
    tokens = 5 + 15 + 6
    mask = seeded_tensor("mask", (1, tokens, tokens))
    mask[:, 3:9, 2:20] = -torch.inf
    residual = seeded_tensor("residual", (1, 11, 192))
    return replace(
        plain, references=(seeded_tensor("reference", (1, 16, 4, 6)),), attention_mask=mask,
        control=ControlResiduals((None, residual), (residual,)),
    )  # fmt: skip


def with_controlnets_and_images() -> DenoiserInputs:
    """Two ControlNets, one of them with a token for the kind of its image, and an image that the model looks at."""
    hints = [seeded_tensor(f"hint {number}", (1, 16, 10, 6)) for number in range(2)]
    controls = ControlInput("net", hints[0], 0.8, (1,)), ControlInput("net", hints[1], 0.4)
    looks = tuple(seeded_tensor(f"seen {number}", (2, 1, 4, 192)) for number in range(2))
    return replace(inputs((10, 6), 5), controls=controls, seen=(looks,))


NET = ControlNetConfig(replace(CONFIG, depth=2, depth_single=1), "latent", 16, 4)
CASES = {
    "even": inputs(), "odd and wrapped": inputs((15, 17), 10), "one text token": inputs((16, 16), 1),
    "three image tokens": inputs((2, 6), 9), "a batch": inputs((8, 6), 4, 2), "everything": with_everything(),
    "controlnets and images": with_controlnets_and_images(),
    "controlnets and references": replace(
        with_everything(), control=None, controls=with_controlnets_and_images().controls
    ),
    "style and everything": replace(with_everything(), style=seeded_tensor("style", (1, 6, 192))),
}  # fmt: skip


def filled(config: FluxConfig) -> Flux:
    model = fill_module(Flux(config)).requires_grad_(False)  # as weights of files are
    assert isinstance(model, Flux)
    return with_controlnets(model, {"net": fill_module(ControlNet(NET)).requires_grad_(False)})


@pytest.fixture(scope="module")
def flux() -> Flux:
    return filled(CONFIG)


def linear_of(model: Flux, name: str) -> Linear:
    linear = model.get_submodule(name)
    assert isinstance(linear, Linear)
    return linear


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def split_in_tokens(
    flux: Flux, given: DenoiserInputs, split: Split, wires: list[ThreadWire] | None = None
) -> list[Tensor]:
    board = Board(split.sp)
    ends = [ThreadWire(board, rank) for rank in range(split.sp)]
    if wires is not None:
        wires += ends
    return on_threads(split.sp, lambda rank: with_sharing(flux, TokenSharing(ends[rank], split, split.sp))(given))


def tensor_parallel(flux: Flux, board: Board, rank: int) -> Flux:
    """A copy of the model in which one device has some rows of each matrix of the blocks."""
    model, wire = deep(flux), ThreadWire(board, rank)
    for name, linear in model.named_modules():
        if (
            name.startswith(("double_blocks.", "single_blocks."))
            and isinstance(linear, Linear)
            and not name.endswith(".lin")
        ):
            rows = spans(linear.out_features, board.size)
            linear.held = ShardedWeight(OwnRows(linear.own_weight[slice(*rows[rank])].detach()), rows, wire)
            linear.weight = None
    return model


@pytest.mark.parametrize("attending", ["ulysses", "gather", "ring"])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_tokens_of_several_devices_give_the_velocity_of_one(flux: Flux, case: str, size: int, attending: str) -> None:
    with torch.inference_mode():
        expected = flux(CASES[case])
    got = split_in_tokens(flux, CASES[case], Split(size, 1, attending))
    assert all(torch.equal(one, got[0]) for one in got)
    assert distance(got[0], expected) < TOLERANCE


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("case", ["odd and wrapped", "a batch", "style and everything", "controlnets and references"])
def test_rows_of_several_devices_give_the_velocity_of_one(flux: Flux, case: str, size: int) -> None:
    with torch.inference_mode():
        expected = flux(CASES[case])
    board = Board(size)
    got = on_threads(size, lambda rank: tensor_parallel(flux, board, rank)(CASES[case]))
    assert all(distance(one, expected) < TOLERANCE for one in got)


@pytest.mark.parametrize("case", CASES)
def test_both_ways_together_and_unequal_devices(flux: Flux, case: str) -> None:
    given = CASES[case]
    with torch.inference_mode():
        expected = flux(given)
    rows, tokens = [Board(2) for _ in range(2)], [Board(2) for _ in range(2)]

    def device(number: int) -> Tensor:
        sp, tp = divmod(number, 2)
        sharing = TokenSharing(ThreadWire(tokens[tp], sp), Split(2, 2), (3.0, 1.0))
        velocity: Tensor = with_sharing(tensor_parallel(flux, rows[sp], tp), sharing)(given)
        return velocity

    assert all(distance(one, expected) < TOLERANCE for one in on_threads(4, device))


@pytest.mark.parametrize("point", range(5))
def test_memory_that_runs_out_on_one_device_makes_all_begin_the_block_again(flux: Flux, point: int) -> None:
    """Before a block's first message, after it, before and after the second one, and in the next block."""
    given, calls = CASES["everything"], [0, 0]
    with torch.inference_mode():
        expected = flux(given)
    boards = [Board(2) for _ in range(2)]

    def again(agreement: Agreement, work: Callable[[], Any]) -> Any:
        for _ in range(2):
            with contextlib.suppress(AgreedOutOfMemory):
                return agreement.of(work)
        return agreement.of(work)

    def device(rank: int) -> Tensor:
        agreement, failed = Agreement(ThreadWire(boards[0], rank)), list[bool]()

        class Failing(AgreeingWire):
            """Device 1 runs out of memory at a moment of its own, once."""

            def exchange(self, out: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
                self.out_of_memory(2 * len(messages))
                got = super().exchange(out, shapes)
                messages.append(len(got))
                self.out_of_memory(2 * len(messages) - 1)
                return got

            def out_of_memory(self, moment: int) -> None:
                if rank == 1 and moment == point and not failed:
                    failed.append(True)
                    raise torch.OutOfMemoryError("injected")

        messages: list[int] = []
        sharing = TokenSharing(Failing(ThreadWire(boards[1], rank), agreement), Split(2), 2)

        def block(module: Any, *args: Any) -> Any:
            calls[rank] += 1
            return again(agreement, lambda: module(*args))

        velocity: Tensor = again(agreement, lambda: with_sharing(flux, sharing)(given, run_block=block))
        assert failed == [True] * rank
        return velocity

    got = on_threads(2, device)
    assert torch.equal(got[0], got[1]) and distance(got[0], expected) < TOLERANCE
    assert calls[0] == calls[1] == 4


def test_memory_that_stays_short_on_one_device_is_an_error_on_all() -> None:
    board = Board(3)

    def device(rank: int) -> None:
        def work() -> None:
            if rank == 2:
                raise torch.OutOfMemoryError("injected")

        with pytest.raises(AgreedOutOfMemory, match="injected" if rank == 2 else "Another device"):
            Agreement(ThreadWire(board, rank)).of(work)

    on_threads(3, device)


def test_bfloat16_is_as_near_to_float32_as_on_one_device(flux: Flux) -> None:
    half, given = filled(CONFIG).to(torch.bfloat16), inputs(dtype=torch.bfloat16)
    with torch.inference_mode():
        exact = flux(inputs())
        single = distance(half(given).float(), exact)
    for attending in ("ulysses", "gather", "ring"):
        got = split_in_tokens(half, given, Split(2, 1, attending))[0].float()
        assert distance(got, exact) < 1.5 * single
    board = Board(2)
    rows = on_threads(2, lambda rank: tensor_parallel(half, board, rank)(given).float())
    assert distance(rows[0], exact) < 1.5 * single


@pytest.mark.parametrize(("attending", "verb"), [("ulysses", "exchange"), ("gather", "gather"), ("ring", "shift")])
def test_the_bytes_that_leave_a_device_are_those_of_the_formula(flux: Flux, attending: str, verb: str) -> None:
    """24 + 96 tokens and 4 heads divide evenly: only queries, keys, values and the velocity are exchanged."""
    config = FluxConfig(**{**vars(CONFIG), "heads": 4, "hidden": 256})
    model, given = filled(config), inputs((16, 24), 24)
    split, wires = Split(2, 1, attending), list[ThreadWire]()
    split_in_tokens(model, given, split, wires)
    velocity = 48 * 64 * 4
    expected = exchanged_bytes(split, 4, 1, 120, 256, 4)
    for wire in wires:
        assert sum(wire.sent.values()) == expected + velocity
        assert wire.sent[verb] == expected + (velocity if verb == "gather" else 0)


def test_the_bytes_of_divided_rows_are_those_of_the_formula(flux: Flux) -> None:
    board, models = Board(2), list[Flux]()

    def device(rank: int) -> Tensor:
        models.append(tensor_parallel(flux, board, rank))
        velocity: Tensor = models[-1](inputs())
        return velocity

    on_threads(2, device)
    expected = gathered_bytes(Split(1, 2), CONFIG, 1, 7 + 48, 4)
    for model in models:
        held = {
            part.held.wire
            for part in model.modules()
            if isinstance(part, Linear) and isinstance(part.held, ShardedWeight)
        }
        (wire,) = held
        assert sum(wire.sent.values()) == expected


def test_partial_attention_is_put_together_by_its_log_sum_exp() -> None:
    q, k, v = (seeded_tensor(name, (2, 9, 3, 8)) for name in "qkv")
    mask = seeded_tensor("m", (2, 1, 9, 9))
    mask[..., :4, :5] = -torch.inf  # these see nothing of the first part
    parts = [with_lse(q, k[:, cut], v[:, cut], mask[..., cut]) for cut in (slice(0, 5), slice(5, 9))]
    out, lse = merged(*parts[0], *parts[1])
    assert distance(out.flatten(2), attention(q, k, v, mask)) < 1e-6
    logits = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1)) * 8**-0.5 + mask
    assert torch.allclose(lse[..., 0].transpose(1, 2), logits.logsumexp(-1), atol=1e-5)


def test_side_branches_on_rows_of_several_devices(flux: Flux) -> None:
    branches = {}
    for name in ("double_blocks.0.img_attn.qkv", "single_blocks.1.linear2"):
        linear = linear_of(flux, name)
        down, up = seeded_tensor("d", (4, linear.in_features)), seeded_tensor("u", (linear.out_features, 4))
        branches[name] = down * 0.05, up * 0.05

    class Added:
        rows = None

        def __init__(self, down: Tensor, up: Tensor) -> None:
            self.down, self.up = down, up

        def __call__(self, x: Tensor) -> Tensor:
            return x @ self.down.T @ self.up.T

    def branched(model: Flux) -> Flux:
        for name, tensors in branches.items():
            linear_of(model, name).branches = (Added(*tensors),)
        return model

    with torch.inference_mode():
        plain, expected = flux(inputs()), branched(deep(flux))(inputs())
    board = Board(2)
    got = on_threads(2, lambda rank: branched(tensor_parallel(flux, board, rank))(inputs()))
    assert distance(got[0], expected) < TOLERANCE < distance(plain, expected)


def test_a_sharded_matrix_is_one_to_whoever_asks() -> None:
    weight, x = seeded_tensor("w", (7, 6)), seeded_tensor("x", (5, 6))
    grad, bias = seeded_tensor("g", (5, 7)), seeded_tensor("b", (7,))
    board, rows = Board(3), spans(7, 3)

    def device(rank: int) -> None:
        held = ShardedWeight(OwnRows(weight[slice(*rows[rank])]), rows, ThreadWire(board, rank))
        assert torch.allclose(held.multiply(x, bias), x @ weight.T + bias, atol=1e-6)
        assert torch.allclose(held.multiply_transposed(grad), grad @ weight, atol=1e-6)
        with held.dense(torch.float32) as whole, held.fetched(torch.float32) as again:
            assert torch.equal(whole, weight)
            assert torch.allclose(again.multiply(x, None), x @ weight.T, atol=1e-6)

    on_threads(3, device)


OF_BLOCKS = FluxConfig(
    in_channels=16, out_channels=16, hidden=512, heads=4, head_dim=128, mlp=1024, depth=1, depth_single=2,
    context_dim=24, vec_dim=16, guidance=True, axes_dim=(16, 56, 56),
)  # fmt: skip
NOT_IN_ROWS = {"AWQ4", "W4A8", "NF4", "FP4"}


@pytest.mark.parametrize("file", [*stored_formats.FILES, "GGUF"])
def test_rows_of_every_stored_format_are_those_of_the_whole(tmp_path: Path, file: str) -> None:
    """A matrix is cut by its bytes, or stays whole where rows are no runs of bytes: then nothing is cut at all."""
    state = fill_module(Flux(OF_BLOCKS)).state_dict()
    path = stored_formats.write(tmp_path, state, OF_BLOCKS, file, False)
    tensors = load_flux(Runtime(Settings("cpu", "fp32")), path).weights.tensors
    matrices = {name: one for name, one in tensors.items() if len(one.shape) == 2 and "_blocks." in name}
    cut = set()
    for name, stored in matrices.items():
        whole = decode(read(stored), stored.encoding, stored.shape, torch.float32)
        for size in (2, 3):
            for start, end in row_spans(stored.shape[0], size):
                part = cut_rows(stored, (start, end))
                if part is None:
                    continue
                cut.add(name)
                assert part.nbytes == part.encoding.nbytes(part.shape)
                assert part.shape == (end - start, stored.shape[1])
                got = decode(read(part), part.encoding, part.shape, torch.float32)
                assert torch.equal(got, whole[start:end]), (name, stored.encoding)
    kept = {stored.format for name, stored in matrices.items() if name not in cut}
    assert kept == NOT_IN_ROWS & {stored.format for stored in matrices.values()}


def test_a_pair_that_changes_what_it_is_sent_is_found() -> None:
    class Zeros(ThreadWire):
        """Device 2 receives zeros from device 0."""

        def exchange(self, out: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
            got = super().exchange(out, shapes)
            return [part * 0 if (self.rank, other) == (2, 0) else part for other, part in enumerate(got)]

    board = Board(3)
    assert on_threads(3, lambda rank: wrong_partners(Zeros(board, rank), torch.device("cpu"))) == [[], [], [0]]
