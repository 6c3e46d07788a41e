"""Guiders and conditions: the evaluations of the network, where and when they count, and how they are combined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from doubles.network import NetworkModel
from doubles.sampling_cases import Conditioning
from doubles.typed import present, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from sluice.flux_core.models import latents
from sluice.flux_core.models.denoiser_inputs import DenoiserInputs
from sluice.flux_core.sampling.conditions import Area, Canvas, Condition, equal_areas, prepare
from sluice.flux_core.sampling.guider import BasicGuider, CFGGuider, Denoiser, DualCFGGuider, Guider
from sluice.flux_core.sampling.inpaint import DifferentialDiffusion, Inpaint
from sluice.flux_core.sampling.schedule import FluxShift
from torch import Tensor

FLUX = FluxShift()
HEIGHT, WIDTH = 12, 10


def entry(value: float = 0.0, length: int = 3, **values: Any) -> Conditioning:
    """A conditioning with one number as its text."""
    return [[torch.full((1, length, 4), value), {"pooled_output": torch.zeros(1, 5), **values}]]


def canvas(batch: int = 1, in_channels: int = 16, noise_mask: Tensor | None = None) -> Canvas:
    return Canvas(batch, HEIGHT, WIDTH, in_channels, torch.device("cpu"), torch.float32, noise_mask)


def fit(conditioning: Conditioning, **changes: Any) -> list[Condition]:
    return prepare(conditioning, canvas(**changes), FLUX)


def network_of_text(inputs: DenoiserInputs) -> Tensor:
    """A velocity for which D at x = 0 and sigma = 1 is the number in the text, everywhere."""
    return inputs.x[:, :16] * 0 - inputs.context.mean(dim=(1, 2)).reshape(-1, 1, 1, 1)


def view_of(conditionings: Sequence[Conditioning], guider: Guider | None, **changes: Any) -> Denoiser:
    guider = guider or BasicGuider(NetworkModel(network_of_text, FLUX), conditionings[0])
    lists = [fit(conditioning, **changes) for conditioning in conditionings]
    equal_areas(lists)
    return Denoiser(guider, network_of_text, lists, torch.float32)


def seen(
    conditionings: Sequence[Conditioning], guider: Guider | None = None, sigma: float = 1.0, **changes: Any
) -> Tensor:
    """D over a canvas of zeros."""
    return view_of(conditionings, guider, **changes)(zeros(**changes), sigma)


def seen_with_uncond(
    conditionings: Sequence[Conditioning], guider: Guider | None = None, sigma: float = 1.0, **changes: Any
) -> tuple[Tensor, Tensor]:
    """D and U over a canvas of zeros."""
    return view_of(conditionings, guider, **changes).with_uncond(zeros(**changes), sigma)


def zeros(batch: int = 1, **changes: Any) -> Tensor:
    return torch.zeros(batch, 16, HEIGHT, WIDTH)


def cfg(scale: float) -> CFGGuider:
    return CFGGuider(NetworkModel(network_of_text, FLUX), [], [], scale)


def dual(a: float, b: float, style: str = "regular") -> DualCFGGuider:
    return DualCFGGuider(NetworkModel(network_of_text, FLUX), [], [], [], a, b, style)


# Guidance.


@given(c=st.floats(-2, 2), u=st.floats(-2, 2), scale=st.floats(0, 10))
@settings(deadline=None, max_examples=30)
def test_cfg_goes_from_the_negative_through_the_positive(c: float, u: float, scale: float) -> None:
    D, U = seen_with_uncond([entry(c), entry(u)], cfg(scale))
    torch.testing.assert_close(D, torch.full_like(D, u + scale * (c - u)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(U, torch.full_like(U, u))


def test_cfg_plus_plus_sees_nothing_where_there_is_no_negative() -> None:
    D, U = seen_with_uncond([entry(0.5)])
    assert (D == 0.5).all() and not U.any()


@given(c1=st.floats(-2, 2), c2=st.floats(-2, 2), u=st.floats(-2, 2), a=st.floats(0, 5), b=st.floats(0, 5))
@settings(deadline=None, max_examples=30)
def test_two_prompts_are_guided_apart(c1: float, c2: float, u: float, a: float, b: float) -> None:
    for style, expected in (
        ("regular", u + b * (c2 - u) + a * (c1 - c2)),
        ("nested", u + b * (c2 + a * (c1 - c2) - u)),
    ):
        D = seen([entry(c1), entry(c2), entry(u)], dual(a, b, style))
        torch.testing.assert_close(D, torch.full_like(D, expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("a", "b", "calls"), [(2.0, 2.0, 3), (2.0, 1.0, 2), (1.0, 1.0, 1), (1.0, 2.0, 3)])
def test_dual_guidance_asks_no_more_than_counts(a: float, b: float, calls: int) -> None:
    made: list[int] = []

    def evaluate(which: Sequence[int]) -> list[Tensor]:
        made.extend(which)
        return [torch.zeros(1) for _ in which]

    dual(a, b).combine(evaluate, want_uncond=False)
    assert len(made) == calls


# When.


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.2, 0.7), (0.3, 0.3)])
def test_a_range_holds_both_its_ends(start: float, end: float) -> None:
    (condition,) = fit(entry(start_percent=start, end_percent=end))
    first, last = (torch.tensor(FLUX.percent_to_sigma(p)).item() for p in (start, end))
    assert condition.active(first) and condition.active(last)
    assert not condition.active(math.nextafter(first, 2)) and not condition.active(math.nextafter(last, -1))


def test_outside_every_range_nothing_is_seen() -> None:
    assert not seen([entry(0.7, start_percent=0.5)], sigma=0.99).any()


# Where.


def test_conditions_without_places_share_the_picture_evenly() -> None:
    D = seen([entry(1.0) + entry(3.0)])
    assert torch.equal(D, torch.full_like(D, 2.0))


def test_strength_weighs() -> None:
    D = seen([entry(1.0, strength=3.0) + entry(5.0, strength=1.0)])
    torch.testing.assert_close(D, torch.full_like(D, 2.0))


@given(
    area=st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(0, HEIGHT - 1), st.integers(0, WIDTH - 1)),
    strength=st.floats(0.1, 5),
)
@settings(deadline=None, max_examples=40)
def test_an_area_counts_inside_only_and_an_agreeing_one_changes_nothing(
    area: tuple[int, int, int, int], strength: float
) -> None:
    where: dict[str, Any] = {"area": area, "strength": strength}
    agreeing = seen([entry(2.0) + entry(2.0, **where)])
    torch.testing.assert_close(agreeing, torch.full_like(agreeing, 2.0))

    (condition,) = fit(entry(**where))
    inside = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    present(condition.area).of(inside).fill_(True)
    D = seen([entry(2.0) + entry(4.0, **where)])
    assert ((D > 2) == inside).all() and (D < 4).all()
    alone = seen([entry(4.0, **where)])
    torch.testing.assert_close(alone, inside.float().expand_as(alone) * 4)


def test_an_area_fades_to_its_inner_edges_only() -> None:
    (condition,) = fit(entry(area=(8, 4, 0, 3)))
    rows = tensor(condition.weight)[0, 0, :, 1]
    assert rows.tolist() == [1, 1, 1, 1, 1, 1, 1, 0.5]  # the upper edge is the picture's
    columns = tensor(fit(entry(area=(HEIGHT, 8, 0, 1)))[0].weight)[0, 0, 5]
    assert columns.tolist() == [0.5, 1, 1, 1, 1, 1, 1, 0.5]
    wide = prepare(entry(area=(50, 60, 0, 0)), Canvas(1, 50, 80, 16, torch.device("cpu"), torch.float32), FLUX)
    assert tensor(wide[0].weight)[0, 0, 0, -8:].tolist() == pytest.approx(
        [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )


def test_percentages_are_of_the_latent() -> None:
    (condition,) = fit(entry(area=("percentage", 0.5, 0.25, 0.1, 0.5)))
    assert condition.area == Area(6, 2, 1, 5)
    (tiny,) = fit(entry(area=("percentage", 0.0, 0.0, 0.0, 0.0)))
    assert tiny.area == Area(1, 1, 0, 0)


def test_a_mask_weighs_cell_by_cell() -> None:
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[:, 3:6, 2:4] = 0.5
    D = seen([entry(1.0) + entry(4.0, mask=mask, mask_strength=0.5, strength=2.0)])
    torch.testing.assert_close(D[0, 0], 1 + 3 * (mask[0] / (1 + mask[0])))


def test_a_mask_may_bound_the_area_to_at_least_8_cells() -> None:
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[:, 2:12, 1:3] = 1
    (condition,) = fit(entry(mask=mask, set_area_to_bounds=True))
    assert condition.area == Area(10, 8, 2, 1)
    weight = tensor(condition.weight)
    assert weight.shape == (1, 1, 10, 8) and weight.sum() == mask.sum()


def test_an_area_on_one_side_gets_a_counterpart_on_the_other() -> None:
    """Where only the positive has an area, cfg would otherwise compare it with nothing of its size."""
    positive, negative = entry(3.0) + entry(5.0, area=(6, 6, 2, 2)), entry(1.0)
    lists = [fit(positive), fit(negative)]
    equal_areas(lists)
    assert [c.area for c in lists[1]] == [None, Area(6, 6, 2, 2)]
    assert torch.equal(lists[1][1].context, lists[1][0].context)
    equal_areas(lists)
    assert len(lists[0]) == len(lists[1]) == 2
    torch.testing.assert_close(seen([positive, negative], cfg(0.0)), torch.ones(1, 16, HEIGHT, WIDTH))


def test_a_counterpart_sees_through_the_smallest_area_around_it() -> None:
    lists = [
        fit(entry(area=(4, 4, 4, 4))),
        fit(
            entry(1.0) + entry(2.0, area=(10, 8, 1, 1)) + entry(3.0, area=(8, 6, 3, 3)) + entry(4.0, area=(3, 3, 0, 0))
        ),
    ]
    equal_areas(lists)
    assert lists[1][-1].area == Area(4, 4, 4, 4) and lists[1][-1].context.mean() == 3
    no_room = [fit(entry(area=(4, 4, 4, 4))), fit(entry(area=(3, 3, 0, 0)))]
    equal_areas(no_room)
    assert [len(each) for each in no_room] == [1, 1]


# What.


def test_guidance_is_3_5_where_nothing_is_said_and_none_where_none_is() -> None:
    assert [c.guidance for c in fit(entry() + entry(guidance=2) + entry(guidance=None))] == [3.5, 2.0, None]


def test_a_plain_network_reads_nothing_beside_the_latent() -> None:
    (condition,) = fit(entry(concat_latent_image=torch.ones(1, 16, 4, 4)))
    assert condition.concat is None


def test_a_missing_control_picture_is_black_in_the_autoencoders_scale() -> None:
    (condition,) = fit(entry(), in_channels=32)
    torch.testing.assert_close(condition.concat, latents.process_in(torch.zeros(1, 16, HEIGHT, WIDTH)))


def test_a_fill_mask_has_a_channel_for_each_pixel_of_a_cell() -> None:
    mask = torch.rand(1, 1, HEIGHT * 8, WIDTH * 8)
    (condition,) = fit(entry(concat_mask=mask), in_channels=96)
    concat = present(condition.concat)
    assert concat.shape == (1, 80, HEIGHT, WIDTH)
    for dy, dx, row, column in [(0, 0, 0, 0), (3, 5, 2, 7), (7, 7, HEIGHT - 1, WIDTH - 1)]:
        assert concat[0, 16 + dy * 8 + dx, row, column] == mask[0, 0, row * 8 + dy, column * 8 + dx]


def test_without_a_mask_of_its_own_fill_takes_the_samplers_and_without_that_all() -> None:
    whole = present(fit(entry(), in_channels=96)[0].concat)[:, 16:]
    assert (whole == 1).all()
    half = torch.zeros(1, 1, HEIGHT, WIDTH)
    half[..., :5] = 1
    taken = present(fit(entry(), in_channels=96, noise_mask=half)[0].concat)[:, 16:]
    assert (taken[..., :4] == 1).all() and (taken[..., 6:] == 0).all()


@pytest.mark.parametrize(
    ("have", "batch", "picks"),
    [(3, 1, [0]), (2, 4, [0, 0, 1, 1]), (5, 3, [0, 2, 4]), (3, 3, [0, 1, 2]), (2, 3, [0, 1, 1])],
)
def test_pictures_are_spread_over_the_batch(have: int, batch: int, picks: list[int]) -> None:
    pictures = torch.arange(have).float().reshape(have, 1, 1, 1).expand(have, 16, HEIGHT, WIDTH)
    (condition,) = fit(entry(concat_latent_image=pictures), in_channels=32, batch=batch)
    torch.testing.assert_close(present(condition.concat)[:, 0, 0, 0], latents.process_in(torch.tensor(picks).float()))


def test_an_attention_mask_is_stretched_over_the_image_tokens_only() -> None:
    text, tokens = 3, (HEIGHT // 2) * (WIDTH // 2)
    mask = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15.0]])
    (condition,) = fit(entry(attention_mask=mask, attention_mask_img_shape=(1, 1)))
    stretched = present(condition.attention_mask)
    assert stretched.shape == (1, text + tokens, text + tokens)
    repeats = torch.tensor([1] * text + [tokens])
    torch.testing.assert_close(stretched[0], mask.repeat_interleave(repeats, 0).repeat_interleave(repeats, 1))


def test_an_attention_mask_that_forbids_stays_forbidding() -> None:
    mask = torch.zeros(4, 4)
    mask[0, 3] = -math.inf
    (condition,) = fit(entry(attention_mask=mask.half(), attention_mask_img_shape=(1, 1)))
    forbidding = present(condition.attention_mask)
    assert (forbidding[0, 0, 3:] < -1e30).all() and not forbidding.isnan().any()


def test_only_what_an_entry_has_is_handed_to_the_network() -> None:
    got: list[DenoiserInputs] = []

    def network(inputs: DenoiserInputs) -> Tensor:
        got.append(inputs)
        return inputs.x

    conditions = fit(
        entry()
        + entry(reference_latents=[torch.zeros(1, 16, 3, 3)])
        + entry(reference_latents=[torch.zeros(1, 16, 3, 3)], reference_latents_method="uxo")
    )
    model = NetworkModel(network, FLUX)
    Denoiser(BasicGuider(model, []), network, [conditions], torch.float32)(torch.zeros(2, 16, HEIGHT, WIDTH), 1.0)
    assert [len(inputs.references) for inputs in got] == [0, 1, 1]
    assert [inputs.reference_method for inputs in got] == ["offset", "offset", "uxo"]
    assert [(inputs.attention_mask, inputs.control) for inputs in got] == [(None, None)] * 3
    torch.testing.assert_close(got[1].references[0], latents.process_in(torch.zeros(2, 16, 3, 3)))


def test_what_names_a_step_stays_on_the_cpu_wherever_the_picture_is() -> None:
    """Reading it back from a GPU would wait for all that is queued there."""
    got: list[DenoiserInputs] = []

    def network(inputs: DenoiserInputs) -> Tensor:
        got.append(inputs)
        return inputs.x

    conditions = prepare(entry(), Canvas(1, HEIGHT, WIDTH, 16, torch.device("meta"), torch.float32, None), FLUX)
    Denoiser(BasicGuider(NetworkModel(network, FLUX), []), network, [conditions], torch.float32)(
        torch.zeros(1, 16, HEIGHT, WIDTH, device="meta"), 1.0
    )
    assert (got[0].x.device.type, got[0].context.device.type) == ("meta", "meta")
    assert {each.device.type for each in (got[0].timesteps, got[0].pooled, present(got[0].guidance))} == {"cpu"}


# Inpainting.


def test_differential_diffusion_opens_cells_in_the_order_of_the_mask() -> None:
    mask = torch.linspace(0, 1, 101).reshape(1, 1, 1, 101)
    sigmas = [0.8, 0.5, 0.2, 0.0]
    opened = [DifferentialDiffusion()(mask, s, sigmas, FLUX) for s in (0.8, 0.6, 0.4, 0.2, 0.01)]
    assert [o.sum().item() for o in opened] == sorted(o.sum().item() for o in opened)
    assert opened[0].sum() == 1 and opened[-1].sum() >= 99
    for earlier, later in zip(opened, opened[1:], strict=False):
        assert (later >= earlier).all(), "a cell once painted is painted to the end"
    half = DifferentialDiffusion(0.25)(mask, 0.4, sigmas, FLUX)
    torch.testing.assert_close(half, 0.25 * opened[2] + 0.75 * mask)


def test_the_outside_is_shown_at_the_level_of_the_rest() -> None:
    shown: list[Tensor] = []

    class Inner:
        def __call__(self, x: Tensor, sigma: float) -> Tensor:
            shown.append(x)
            return torch.full_like(x, 9.0)

        def with_uncond(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
            return self(x, sigma), torch.full_like(x, 7.0)

    noise, latent = torch.full((1, 16, 2, 2), 5.0), torch.full((1, 16, 2, 2), 3.0)
    mask = torch.tensor([[[[0.0, 1.0], [0.25, 1.0]]]])
    inpaint = Inpaint(Inner(), mask, noise, latent, [1.0, 0.0], FLUX)
    x = torch.full((1, 16, 2, 2), 100.0)
    D, U = inpaint.with_uncond(x, 0.5)
    assert shown[0][0, 0].tolist() == [[4.0, 100.0], [28.0, 100.0]]
    assert D[0, 0].tolist() == [[3.0, 9.0], [4.5, 9.0]]
    assert (U == 7).all()
    assert torch.equal(inpaint(x, 0.5), D)
