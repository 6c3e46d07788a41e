"""ControlNets: equal to ComfyUI's, applied as its nodes apply them, and the same bits under any budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles.simulated import SimulatedMemory
from safetensors.torch import load_file, save_file
from sluice.flux_core.checkpoint.names import FLUX_DOUBLE, FLUX_SINGLE, FLUX_TOP, FUSED
from sluice.flux_core.commands import cli
from sluice.flux_core.errors import FileFormatError, InputError
from sluice.flux_core.facade.link_values import to_engine, to_pack
from sluice.flux_core.memory.budget import Allowed
from sluice.flux_core.memory.manager import Manager
from sluice.flux_core.memory.source import FileSource
from sluice.flux_core.memory.workload import MiB
from sluice.flux_core.models.attention import attention
from sluice.flux_core.models.controlnet import ControlNet
from sluice.flux_core.models.controlnet_config import ControlNetConfig
from sluice.flux_core.models.denoiser_inputs import ControlInput, DenoiserInputs
from sluice.flux_core.models.flux import Flux, with_attention, with_controlnets
from sluice.flux_core.models.flux_config import FluxConfig
from sluice.flux_core.models.latents import process_in
from sluice.flux_core.quant.int8 import Integers
from sluice.flux_core.runtime import model_weights
from sluice.flux_core.runtime.controlnets import load_controlnet
from sluice.flux_core.runtime.handles import load_flux
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from sluice.flux_core.sampling.sample import ksampler
from sluice.nodes import controlnet as nodes
from torch import Tensor, nn
from torch.testing import assert_close

Fill = Callable[[nn.Module], nn.Module]
Seeded = Callable[[str, Sequence[int]], Tensor]

CPU = torch.device("cpu")
REFERENCE = load_file(Path(__file__).parents[1] / "fixtures" / "controlnet.safetensors")
BODY = FluxConfig(
    in_channels=16, out_channels=16, hidden=128, heads=1, head_dim=128, mlp=512, depth=2, depth_single=3,
    context_dim=24, vec_dim=16, guidance=True, axes_dim=(16, 56, 56),
)  # fmt: skip
ONE = replace(BODY, depth=1, depth_single=0)
UNION = ControlNetConfig(BODY, "latent", 16, 4)
XLABS = ControlNetConfig(replace(BODY, depth_single=0), "picture", 16)
ALIMAMA = ControlNetConfig(ONE, "latent", 17)
CASES = {  # config, picture, kinds of pictures
    "latent": (UNION, "hint", ()),
    "union": (UNION, "hint", (2,)),
    "mask": (ALIMAMA, "hint17", ()),
    "picture": (XLABS, "picture", ()),
    "mistoline": (ControlNetConfig(replace(BODY, depth=1, depth_single=1), "mistoline", 16), "picture", ()),
    "bf16": (ControlNetConfig(ONE, "latent", 16), "hint", ()),
}


def hint(name: str, seeded: Seeded) -> Tensor:
    shape = {"hint": (1, 16, 8, 6), "hint17": (2, 17, 8, 6), "picture": (1, 3, 64, 48)}[name]
    return seeded(name, shape).sigmoid() if name == "picture" else seeded(name, shape)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_residuals_equal_those_of_comfyui_block_by_block(case: str, fill: Fill, seeded: Seeded) -> None:
    config, picture, modes = CASES[case]
    x, net = seeded("x", (2, 16, 8, 6)), fill(ControlNet(config))
    if case == "bf16":
        x, net = x.bfloat16(), net.bfloat16()
    time, guidance = torch.tensor([0.73, 0.2]), torch.tensor([3.5, 2.7])
    inputs = DenoiserInputs(x, time, seeded("context", (2, 5, 24)), seeded("y", (2, 16)), guidance)
    found = net(inputs, ControlInput("", hint(picture, seeded), 1.0, modes))
    rtol, atol = (1e-4, 1e-5) if case != "bf16" else (0.02, 0.04)
    for kind, residuals in (("input", found.double), ("output", found.single)):
        order = REFERENCE.get(f"{case}.{kind}.order", torch.tensor([])).tolist()
        assert len(residuals) == len(order)
        for residual, number in zip(residuals, order, strict=True):
            assert_close(residual.float(), REFERENCE[f"{case}.{kind}.{number}"], rtol=rtol, atol=atol)


def test_a_union_is_told_only_of_kinds_it_knows(fill: Fill, seeded: Seeded) -> None:
    inputs = DenoiserInputs(seeded("x", (1, 16, 8, 6)), torch.ones(1), seeded("c", (1, 5, 24)), seeded("y", (1, 16)))
    net, picture = fill(ControlNet(UNION)), hint("hint", seeded)
    with pytest.raises(InputError, match="0 to 3 and was asked for 7"):
        net(inputs, ControlInput("", picture, 1.0, (7,)))


# -- files -------------------------------------------------------------------------------------------------------------


def in_diffusers_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same ControlNet as InstantX and Shakker publish theirs."""
    made: dict[str, Tensor] = {}
    tables = {"double_blocks": ("transformer_blocks", FLUX_DOUBLE),
              "single_blocks": ("single_transformer_blocks", FLUX_SINGLE)}  # fmt: skip
    tops = {ours: theirs for theirs, (ours, _) in FLUX_TOP.items()}
    for name, value in weights.items():
        path, _, kind = name.rpartition(".")
        family, _, inside = path.partition(".")
        if family in tables:
            number, _, module = inside.partition(".")
            blocks, table = tables[family]
            there = sorted((part, theirs) for theirs, (ours, part) in table.items() if ours == module)
            sizes = [128, 128, 128, 512] if module == "linear1" else [value.shape[0] // len(there)] * len(there)
            assert len(there) == FUSED.get(module, 1)
            kind = "weight" if kind == "scale" else kind
            for (_, theirs), part in zip(there, value.split(sizes), strict=True):
                made[f"{blocks}.{number}.{theirs}.{kind}"] = part
        else:
            path = "controlnet_x_embedder" if path == "pos_embed_input" else tops.get(path, path)
            made[f"{path}.{kind}"] = value
    return made


@dataclass
class Setup:
    """A runtime with a transformer and ControlNets in files."""

    runtime: Runtime
    folder: Path

    def model(self) -> Any:
        return load_flux(self.runtime, self.folder / "flux.safetensors")

    def net(self, name: str) -> Any:
        return load_controlnet(self.runtime, self.folder / f"{name}.safetensors")

    def budget(self, nbytes: int) -> Manager:
        """So many bytes in addition to the workspace."""
        self.runtime.budget = Allowed(ram=nbytes)
        manager = self.runtime.managers[CPU] = Manager(CPU, self.runtime.budget, emit=self.runtime.events.emit)
        manager.memory = SimulatedMemory(nbytes + 128 * MiB)
        return manager


@pytest.fixture
def setup(fill: Fill, tmp_path: Path) -> Iterator[Setup]:
    def save(name: str, module: nn.Module, change: Any = None) -> None:
        weights = {key: value.bfloat16().contiguous() for key, value in fill(module).state_dict().items()}
        save_file(change(weights) if change else weights, tmp_path / f"{name}.safetensors")

    save("flux", Flux(replace(BODY, depth_single=2)))
    save(
        "union", ControlNet(UNION), lambda weights: {k: v.contiguous() for k, v in in_diffusers_names(weights).items()}
    )
    save("xlabs", ControlNet(XLABS))
    save("alimama", ControlNet(ALIMAMA))
    save("wide", ControlNet(ControlNetConfig(replace(ONE, hidden=256, heads=2), "latent", 16)))
    yield Setup(Runtime(Settings("cpu", "fp32")), tmp_path)


def test_diffusers_names_mean_the_same_tensors(setup: Setup, fill: Fill) -> None:
    state = fill(ControlNet(UNION)).state_dict()
    loaded = setup.net("union").weights.module(CPU, torch.float32).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], value.bfloat16().float()) for name, value in state.items())


# -- nodes and runs ----------------------------------------------------------------------------------------------------


class Coder:
    """An autoencoder that remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def encode_image(self, image: Tensor) -> Tensor:
        self.seen.append(image)
        small = torch.nn.functional.avg_pool2d(image.movedim(-1, 1), 8)
        return (2 * small).repeat(1, 6, 1, 1)[:, :16]


def prompt(name: str, seeded: Seeded, **values: Any) -> list[Any]:
    return [[seeded(name, (1, 5, 24)), {"pooled_output": seeded(f"{name} y", (1, 16)), **values}]]


def applied(
    net: Any, seeded: Seeded, *before: Any, start: float = 0.0, end: float = 1.0, vae: Any = None
) -> tuple[Any, Any]:
    positive, negative = before or (prompt("positive", seeded), prompt("negative", seeded))
    picture = seeded("control", (1, 40, 60, 3)).sigmoid()
    both = nodes.ControlNetApplyAdvanced().apply(positive, negative, net, picture, 0.8, start, end, vae)
    return both[0], both[1]


def run(
    model: Any, positive: Any, negative: Any, cfg: float = 1.0, batch: int = 1, size: tuple[int, int] = (8, 6)
) -> Tensor:
    empty = {"samples": torch.zeros(batch, 16, *size)}
    samples: Tensor = ksampler(model, 7, 3, cfg, "euler", "simple", positive, negative, empty)["samples"]
    return samples


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[DenoiserInputs]:
    """What the transformer is given, evaluation by evaluation."""
    given: list[DenoiserInputs] = []
    forward = Flux.forward

    def noting(self: Flux, inputs: DenoiserInputs, **more: Any) -> Tensor:
        given.append(inputs)
        return forward(self, inputs, **more)

    monkeypatch.setattr(Flux, "forward", noting)
    return given


def test_the_transformer_gets_the_sum_of_all_residuals(setup: Setup, seeded: Seeded, fill: Fill) -> None:
    flux = fill(Flux(replace(BODY, depth_single=2)))
    nets = {"a": fill(ControlNet(UNION)), "b": fill(ControlNet(XLABS))}
    x, y = seeded("x", (1, 16, 8, 6)), seeded("y", (1, 16))
    inputs = DenoiserInputs(x, torch.tensor([0.6]), seeded("c", (1, 5, 24)), y, torch.tensor([3.5]))
    first, second = ControlInput("a", hint("hint", seeded), 0.5, (1,)), ControlInput("b", hint("picture", seeded), 0.9)
    with torch.no_grad():
        both = with_controlnets(flux, nets)(replace(inputs, controls=(first, second)))  # type: ignore[arg-type]
        one, other = nets["a"](inputs, first), nets["b"](inputs, second)
        total = replace(one, double=tuple(p + q for p, q in zip(one.double, other.double, strict=True)))
        assert_close(both, flux(replace(inputs, control=total)), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(both, flux(inputs), atol=1e-2)
        heads: list[int] = []

        def counting(q: Tensor, *more: Any) -> Tensor:
            heads.append(q.shape[1])
            return attention(q, *more)

        module = with_attention(with_controlnets(flux, nets), counting)  # type: ignore[arg-type]
        assert torch.equal(module(replace(inputs, controls=(first, second))), both)
        blocks = [len(list(net.blocks())) for net in (flux, nets["a"], nets["b"])]  # type: ignore[operator]
        assert len(heads) == sum(blocks) and min(blocks) > 0
    assert not list(flux.children())[-1]._modules, "the shared model has none"


def test_range_strength_and_union_type_reach_the_model(
    setup: Setup, seeded: Seeded, evaluations: list[DenoiserInputs]
) -> None:
    (union,) = nodes.SetUnionControlNetType().set_type(setup.net("union"), "hed/pidi/scribble/ted")
    run(setup.model(), *applied(union, seeded, start=0.0, end=0.5, vae=Coder()))
    active = [[(control.strength, control.modes) for control in inputs.controls] for inputs in evaluations]
    assert active == [[(0.8, (2,))], [(0.8, (2,))], []]
    assert nodes.SetUnionControlNetType().set_type(union, "auto")[0].modes == ()


def test_the_picture_is_fitted_and_encoded_once(
    setup: Setup, seeded: Seeded, evaluations: list[DenoiserInputs]
) -> None:
    coder = Coder()
    run(setup.model(), *applied(setup.net("union"), seeded, vae=coder), cfg=2.0, batch=2)
    (seen,) = coder.seen
    assert seen.shape == (1, 64, 48, 3)
    expected = process_in(Coder().encode_image(seen))
    assert len(evaluations) == 6 and all(torch.equal(each.controls[0].hint, expected) for each in evaluations)


def test_several_follow_one_another(setup: Setup, seeded: Seeded, evaluations: list[DenoiserInputs]) -> None:
    first = applied(setup.net("union"), seeded, vae=Coder())
    run(setup.model(), *applied(setup.net("xlabs"), seeded, *first))
    names = [control.net.rpartition("-")[0] for control in evaluations[0].controls]
    assert names == ["union", "xlabs"]


def test_the_old_node_also_gives_it_to_the_negative_prompt_and_the_new_one_to_both(
    setup: Setup, seeded: Seeded, evaluations: list[DenoiserInputs]
) -> None:
    picture, net = seeded("control", (1, 40, 60, 3)).sigmoid(), setup.net("xlabs")
    (old,) = nodes.ControlNetApply().apply(prompt("positive", seeded), net, picture, 0.8)
    run(setup.model(), old, prompt("negative", seeded), cfg=2.0)
    assert [len(each.controls) for each in evaluations] == [1] * 6
    evaluations.clear()
    positive, _ = applied(net, seeded)
    run(setup.model(), positive, prompt("negative", seeded), cfg=2.0)
    assert [len(each.controls) for each in evaluations] == [1, 0] * 3
    unchanged = prompt("positive", seeded)
    assert nodes.ControlNetApply().apply(unchanged, net, picture, 0.0) == (unchanged,)


def test_an_area_sees_the_whole_picture_at_its_own_size(
    setup: Setup, seeded: Seeded, evaluations: list[DenoiserInputs]
) -> None:
    positive, negative = applied(setup.net("xlabs"), seeded)
    positive[0][1]["area"] = (4, 6, 2, 0)
    run(setup.model(), positive + prompt("rest", seeded), negative)
    sizes = [[control.hint.shape[-2:] for control in each.controls] for each in evaluations[:2]]
    assert sizes == [[(32, 48)], []]


def test_the_inpainting_one_gets_what_is_kept_and_a_mask(
    setup: Setup, seeded: Seeded, evaluations: list[DenoiserInputs]
) -> None:
    coder, picture = Coder(), torch.full((1, 64, 48, 3), 0.5)
    mask = torch.zeros(1, 64, 48)
    mask[:, :32] = 1
    prompts = prompt("positive", seeded), prompt("negative", seeded)
    node = nodes.ControlNetInpaintingAliMamaApply()
    run(setup.model(), *node.apply_inpaint(*prompts, setup.net("alimama"), coder, picture, mask, 1.0, 0.0, 1.0))
    (seen,) = coder.seen
    assert not seen[:, :32].any() and (seen[:, 32:] == 0.5).all()
    kept = evaluations[0].controls[0].hint[:, 16]
    assert not kept[:, :4].any() and (kept[:, 4:] == 1).all()
    run(setup.model(), *applied(setup.net("alimama"), seeded, vae=Coder()))  # another node: nothing is masked
    assert (evaluations[-1].controls[0].hint[:, 16] == 1).all()


def test_a_pack_applies_it_with_comfyuis_methods(setup: Setup, seeded: Seeded) -> None:
    net, picture = setup.net("union"), seeded("control", (1, 40, 60, 3)).sigmoid()
    theirs, coder = to_pack(net), Coder()
    made = theirs.copy().set_cond_hint(picture.movedim(-1, 1), 0.8, (0.0, 0.5), vae=coder)

    def pair(control: Any) -> tuple[Any, Any]:
        values = {"control": control, "control_apply_to_uncond": False}
        return prompt("positive", seeded, **values), prompt("negative", seeded, **values)

    ours = applied(net, seeded, end=0.5, vae=coder)
    expected = run(setup.model(), *ours)
    assert torch.equal(run(setup.model(), *pair(made)), expected) and to_engine(made) is net
    both = run(setup.model(), *applied(net, seeded, *ours, vae=coder))
    assert torch.equal(run(setup.model(), *applied(net, seeded, *pair(made), vae=coder)), both)
    after = theirs.copy().set_cond_hint(picture.movedim(-1, 1), 0.8, vae=coder).set_previous_controlnet(made)
    assert torch.equal(run(setup.model(), *pair(after)), both) and not torch.equal(both, expected)
    after.set_extra_arg("control_type", [1])
    assert after.control_use().network.modes == (1,) and made.control_use().network.modes == ()
    with pytest.raises(InputError, match="without an image"):
        run(setup.model(), *pair(theirs))


def test_what_cannot_be_applied_says_what_to_do(setup: Setup, seeded: Seeded) -> None:
    with pytest.raises(InputError, match="connect its input vae"):
        run(setup.model(), *applied(setup.net("union"), seeded))
    with pytest.raises(InputError, match="multiples of 16 pixels; this one is 48x56"):
        run(setup.model(), *applied(setup.net("xlabs"), seeded), size=(7, 6))
    with pytest.raises(InputError, match="256 wide"):
        run(setup.model(), *applied(setup.net("wide"), seeded, vae=Coder()))
    with pytest.raises(InputError, match="another program"):
        run(setup.model(), prompt("positive", seeded, control=object()), prompt("negative", seeded))
    with pytest.raises(FileFormatError, match="not a ControlNet"):
        setup.net("flux")
    with pytest.raises(FileFormatError, match="Load it with the node Load ControlNet Model"):
        load_flux(setup.runtime, setup.folder / "xlabs.safetensors")


# -- memory ------------------------------------------------------------------------------------------------------------


def test_under_any_budget_the_bits_are_the_same_and_every_block_is_in_the_plan(setup: Setup, seeded: Seeded) -> None:
    def pictures() -> list[Tensor]:
        model, union, xlabs = setup.model(), setup.net("union"), setup.net("xlabs")
        two = applied(xlabs, seeded, *applied(union, seeded, end=0.5, vae=Coder()))
        plain = prompt("positive", seeded), prompt("negative", seeded)
        return [run(model, *two, cfg=2.0), run(model, *plain), run(model, *applied(union, seeded, vae=Coder()))]

    setup.runtime.budget = Allowed(managed=False)
    expected = pictures()
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)
    for nbytes in (16 * MiB, 4 * MiB, 3 * MiB):
        setup.budget(nbytes)
        plans: list[Any] = []
        forget = setup.runtime.events.listen(lambda event, plans=plans: plans.append(event))  # type: ignore[misc]
        assert all(torch.equal(*pair) for pair in zip(pictures(), expected, strict=True))
        forget()
        made = [event["plan"] for event in plans if event["type"] == "memory.job" and event["model"] == "transformer"]
        owners = [{unit["name"].split(".")[1].rpartition("-")[0] for unit in plan["units"]
                   if unit["name"].startswith("controlnets.")} for plan in made]  # fmt: skip
        assert owners == [{"union", "xlabs"}, set(), {"union"}]
        stays = {unit["class"] for plan in made for unit in plan["units"]}
        assert stays == ({"V"} if nbytes == 16 * MiB else {"V", "D"} if nbytes == 4 * MiB else stays)
        assert all(plan["peak_bytes"] <= nbytes + 128 * MiB for plan in made)


def test_in_integers_the_bits_are_those_of_a_model_loaded_whole(
    setup: Setup, seeded: Seeded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def picture() -> Tensor:
        return run(setup.model(), *applied(setup.net("union"), seeded, vae=Coder()))

    setup.runtime.budget = Allowed(managed=False)
    exact = picture()
    setup.runtime.compute = "int8"
    whole = picture()
    assert not torch.equal(whole, exact)
    manager = setup.budget(112 * MiB)  # quantising alone takes 96
    assert torch.equal(picture(), whole)
    plain = Integers()  # what the transformer gets if it is too large to be quantised in the memory that is allowed
    monkeypatch.setattr(model_weights, "within_ram", lambda integers, manager, tensors: plain)
    model = setup.model()
    model.weights.unload()
    run(model, *applied(setup.net("union"), seeded, vae=Coder()))
    blocks = model.weights.managed(manager, torch.float32, "int8").blocks
    assert blocks.integers is plain and isinstance(blocks.source, FileSource)


def test_what_streams_is_grouped_by_blocks_of_one_size(setup: Setup, seeded: Seeded) -> None:
    manager = setup.budget(16 * MiB)
    model, net = setup.model(), setup.net("union")
    run(model, *applied(net, seeded, vae=Coder()))
    names = {weight.name: weight.group for weight in model.weights.managed(manager, torch.float32).blocks.weights}
    key = net.weights.key
    assert len(set(names.values())) == 2 * 2 + 2 + 2 * 2 + 3  # halves and single blocks of both
    layer, block = (
        f"controlnets.{key}.controlnet_blocks.1.weight",
        f"controlnets.{key}.double_blocks.1.img_mlp.2.weight",
    )
    assert names[layer] == names[block]


def test_a_plan_counts_controlnets(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    flux, net = (str(setup.folder / f"{name}.safetensors") for name in ("flux", "union"))
    options = ["--card", "cpu", "--ram", "1100M", "--size", "128x128"]
    assert cli.main(["plan", flux, "--controlnet", net, *options]) == 0
    told = capsys.readouterr().out
    assert "union double img  " in told and "union single" in told
    assert cli.main(["plan", flux, "--controlnet", flux, *options]) != 0
    assert "not a ControlNet" in capsys.readouterr().err
