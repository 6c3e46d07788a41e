"""Vision encoders and Redux: equal to ComfyUI's, and the same bits under a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles.simulated import SimulatedMemory
from safetensors.torch import load_file, save_file
from sluice.flux_core.conditioning.style import thinned, with_style
from sluice.flux_core.errors import FileFormatError, InputError
from sluice.flux_core.facade.link_values import to_engine, to_pack
from sluice.flux_core.facade.offered.comfy import clip_vision
from sluice.flux_core.memory import workload
from sluice.flux_core.memory.budget import Allowed
from sluice.flux_core.memory.manager import Manager
from sluice.flux_core.memory.workload import MiB
from sluice.flux_core.models.clip_text import ClipConfig, ClipTextModel
from sluice.flux_core.models.clip_vision import VisionConfig, VisionEncoder, pixels_for
from sluice.flux_core.models.redux import Redux, ReduxConfig
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from sluice.flux_core.runtime.vision import load_style, load_vision
from sluice.nodes import redux as nodes
from sluice.nodes.other_packs.redux import StyleModelApplySimple
from torch import Tensor, nn
from torch.testing import assert_close

Fill = Callable[[nn.Module], nn.Module]
Seeded = Callable[[str, Sequence[int]], Tensor]

CPU = torch.device("cpu")
REFERENCE = load_file(Path(__file__).parents[1] / "fixtures" / "redux.safetensors")
SIGLIP = VisionConfig(width=32, mlp=48, layers=3, heads=2, patch=7, size=28, siglip=True, activation="tanh")
CLIP = VisionConfig(32, 48, 3, 2, 7, 28, siglip=False, activation="quick", projection=16)
REDUX = ReduxConfig(32, 72, 24)
EXACT: Any = {"rtol": 1e-4, "atol": 1e-5}


@torch.no_grad()
@pytest.mark.parametrize("crop", (True, False))
@pytest.mark.parametrize(("name", "config"), [("siglip", SIGLIP), ("clip", CLIP)])
def test_a_picture_is_seen_as_comfyui_sees_it(
    name: str, config: VisionConfig, crop: bool, fill: Fill, seeded: Seeded
) -> None:
    pixels = pixels_for(seeded("seen", (2, 40, 25, 3)).sigmoid(), config, crop)
    assert_close(pixels, REFERENCE[f"{name}.pixels.{crop}"], rtol=0, atol=1e-6)
    last, before, embedding = fill(VisionEncoder(config))(pixels)
    for kind, found in (("last", last), ("before", before), ("embedding", embedding)):
        assert_close(found, REFERENCE[f"{name}.{kind}.{crop}"], **EXACT)


@torch.no_grad()
def test_redux_makes_comfyuis_tokens(fill: Fill) -> None:
    assert_close(fill(Redux(REDUX))(REFERENCE["siglip.last.True"]), REFERENCE["tokens"], **EXACT)


def test_sizes_are_read_off_the_published_files() -> None:
    def shapes(width: int, mlp: int, positions: int, layers: int, **more: tuple[int, ...]) -> dict[str, Sequence[int]]:
        found: dict[str, Sequence[int]] = {f"vision_model.encoder.layers.{n}.mlp.fc1.weight": (mlp, width)
                                           for n in range(layers)}  # fmt: skip
        found["vision_model.embeddings.patch_embedding.weight"] = (width, 3, 14, 14)
        found["vision_model.embeddings.position_embedding.weight"] = (positions, width)
        return found | more

    token = {"vision_model.embeddings.class_embedding": (1024,), "visual_projection.weight": (768, 1024)}
    assert VisionConfig.from_shapes(shapes(1152, 4304, 729, 27)) == VisionConfig(
        1152, 4304, 27, 16, 14, 384, siglip=True, activation="tanh"
    )
    assert VisionConfig.from_shapes(shapes(1024, 4096, 257, 24, **token)) == VisionConfig(
        1024, 4096, 24, 16, 14, 224, siglip=False, activation="quick", projection=768
    )
    assert VisionConfig.from_shapes(shapes(1152, 4304, 729, 27)).tokens == 729
    with pytest.raises(FileFormatError, match="not a vision encoder"):
        VisionConfig.from_shapes({})


def applied(case: str, seeded: Seeded) -> list[Any]:
    """The results of StyleModelApply for the cases of the fixture."""
    text, tokens = seeded("text", (1, 5, 24)), REFERENCE["tokens"].flatten(0, 1)[None]
    plain = [[text, {}]]
    mask = {"attention_mask": seeded("mask", (1, 11, 11)) > 0, "attention_mask_img_shape": (2, 3)}
    made = {
        "multiply": lambda: with_style(plain, tokens, 0.6, as_bias=False),
        "bias": lambda: with_style(plain, tokens, 0.6, as_bias=True),
        "bias_one": lambda: with_style(plain, tokens, 1.0, as_bias=True),
        "bias_zero": lambda: with_style(plain, tokens, 0.0, as_bias=True),
        "bias_multiply": lambda: with_style(with_style(plain, tokens, 0.6, as_bias=True), tokens, 0.5, as_bias=False),
        "bool": lambda: with_style([[text, mask]], tokens, 0.7, as_bias=True),
    }
    (entry,) = made[case]()
    return entry


@pytest.mark.parametrize("case", ("multiply", "bias", "bias_one", "bias_zero", "bias_multiply", "bool"))
def test_tokens_and_masks_are_those_of_comfyui(case: str, seeded: Seeded) -> None:
    text, values = applied(case, seeded)
    assert_close(text, REFERENCE[f"apply.{case}.text"], **EXACT)
    mask = REFERENCE.get(f"apply.{case}.mask")
    if mask is None:
        assert "attention_mask" not in values
    else:
        assert torch.equal(values["attention_mask"], mask) and values["attention_mask"].dtype == mask.dtype


@pytest.fixture
def folder(fill: Fill, tmp_path: Path) -> Path:
    for name, module in (("sig", VisionEncoder(SIGLIP)), ("clip", VisionEncoder(CLIP)), ("redux", Redux(REDUX))):
        weights = {key: value.half() for key, value in fill(module).state_dict().items()}
        save_file(weights | ({"vision_model.head.probe": torch.zeros(1)} if name == "sig" else {}), tmp_path / name)
    return tmp_path


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    yield Runtime(Settings("cpu", "fp32"))


def seen_and_made(runtime: Runtime, folder: Path, image: Tensor) -> tuple[Tensor, Tensor]:
    (seen,) = nodes.CLIPVisionEncode().encode(load_vision(runtime, folder / "sig"), image, "center")
    text, style = [[torch.zeros(1, 5, 24), {}]], load_style(runtime, folder / "redux")
    (made,) = nodes.StyleModelApply().apply(text, style, seen, 0.5, "multiply")
    return seen.last_hidden_state, made[0][0]


def test_files_are_read_and_a_budget_changes_no_bit(
    runtime: Runtime, folder: Path, seeded: Seeded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "SLOT_BYTES", 4096)
    image = seeded("seen", (2, 40, 25, 3)).sigmoid()
    runtime.budget = Allowed(managed=False)
    expected = seen_and_made(runtime, folder, image)
    assert_close(expected[0], REFERENCE["siglip.last.True"], rtol=0.01, atol=0.01)  # the file is in float16
    assert expected[1].shape == (1, 5 + 2 * 16, 24)
    events: list[dict[str, Any]] = []
    runtime.events.listen(events.append)
    for nbytes, homes in ((129 * MiB, {"V"}), (128 * MiB + 120 * 1024, {"V", "D"})):
        events.clear()
        runtime.budget = Allowed(ram=nbytes)
        manager = runtime.managers[CPU] = Manager(CPU, runtime.budget, emit=runtime.events.emit)
        manager.memory = SimulatedMemory(nbytes)
        assert all(torch.equal(*pair) for pair in zip(seen_and_made(runtime, folder, image), expected, strict=True))
        jobs = [event for event in events if event["type"] == "memory.job"]
        assert [job["model"] for job in jobs] == ["vision encoder", "vision encoder", "Redux"]
        assert all(job["plan"]["peak_bytes"] <= nbytes for job in jobs)
        assert {unit["class"] for job in jobs for unit in job["plan"]["units"]} == homes
    runtime.budget = Allowed(managed=False)
    events.clear()
    assert torch.equal(seen_and_made(runtime, folder, image)[1], expected[1])
    assert {event["model"] for event in events} == {"vision encoder", "Redux"}, "loaded whole, they report as well"


def test_packs_get_the_same_from_comfyuis_methods(runtime: Runtime, folder: Path, seeded: Seeded) -> None:
    image, encoder, redux = seeded("seen", (2, 40, 25, 3)).sigmoid(), folder / "sig", folder / "redux"
    theirs, style = to_pack(load_vision(runtime, encoder)), to_pack(load_style(runtime, redux))
    seen = theirs.encode_image(image, crop="center")
    assert torch.equal(seen["last_hidden_state"], load_vision(runtime, encoder).encode(image).last_hidden_state)
    tokens = load_style(runtime, redux).tokens(seen)
    assert style.get_cond(seen).shape == (2, 16, 24) and torch.equal(style.get_cond(seen).flatten(0, 1)[None], tokens)
    assert to_engine(theirs) == load_vision(runtime, encoder) and to_engine(style) == load_style(runtime, redux)
    pixels = clip_vision.clip_preprocess(image, theirs.image_size, [0.5] * 3, [0.5] * 3)
    assert torch.equal(pixels, pixels_for(image, SIGLIP, crop=True))


def test_what_does_not_fit_says_what_to_load(runtime: Runtime, folder: Path, fill: Fill, seeded: Seeded) -> None:
    wide = fill(Redux(ReduxConfig(40, 16, 24))).state_dict()
    save_file(wide, folder / "wide")
    seen = load_vision(runtime, folder / "clip").encode(seeded("seen", (1, 40, 25, 3)).sigmoid())
    assert seen.image_embeds.shape == (1, 16) and seen["last_hidden_state"] is seen.last_hidden_state
    with pytest.raises(InputError, match="40 wide, and this vision encoder makes them 32 wide"):
        load_style(runtime, folder / "wide").tokens(seen)
    with pytest.raises(FileFormatError, match="Load it with the node Load Style Model"):
        load_vision(runtime, folder / "redux")
    with pytest.raises(FileFormatError, match="Load it with the node Load CLIP Vision"):
        load_style(runtime, folder / "sig")


def test_a_whole_clip_has_a_vision_encoder_too(runtime: Runtime, folder: Path, fill: Fill) -> None:
    text = fill(ClipTextModel(ClipConfig(60, 77, 32, 48, 2, 2))).state_dict()
    save_file(text | load_file(folder / "clip"), folder / "whole")
    assert load_vision(runtime, folder / "whole").weights.config == CLIP


@pytest.mark.parametrize(
    ("strength", "count"), [("highest", 36), ("high", 9), ("medium", 4), ("low", 1), ("lowest", 1)]
)
def test_redux_is_weakened_by_fewer_tokens(strength: str, count: int, seeded: Seeded) -> None:
    class Style:
        def tokens(self, seen: Any) -> Tensor:
            return seeded("tokens", (1, 36, 24))

    prompt = [[seeded("prompt", (1, 7, 24)), {}]]
    ((joined, _),) = StyleModelApplySimple().apply(prompt, Style(), None, strength)[0]
    assert joined.shape == (1, 7 + count, 24)
    square = seeded("tokens", (1, 36, 24)).reshape(6, 6, 24)
    if strength == "medium":  # the mean of 3 x 3 tokens each
        assert_close(joined[0, 7], square[:3, :3].mean((0, 1)))
        assert_close(joined[0, 8], square[:3, 3:].mean((0, 1)))


def test_tokens_of_several_images_are_no_square() -> None:
    with pytest.raises(InputError, match="one image at a time"):
        thinned(torch.zeros(1, 50, 8), 2, "area")
