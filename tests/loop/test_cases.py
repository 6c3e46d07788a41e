"""Files of the kinds that people report, with the command line: each is read, or refused in one sentence.

All are made of the small model that comes with the program. Further kinds have their tests elsewhere:

    nodes that exist only in the editor          tests/pure/test_editor_only.py, tests/pure/test_canvas.py
    a backslash in the prefix of an image        tests/server/test_clients.py, tests/pure/test_saving.py
    workflows in EXIF, one broken text of two    tests/pure/test_workflow_files.py, tests/pure/test_embedded.py
    canvases sent as prompts, keys like _comment tests/server/test_clients.py, tests/pure/test_embedded.py
    OFT                                          tests/cpu/test_lora.py, tests/pure/test_detect.py
    files of nunchaku and quanto                 tests/cpu/test_nunchaku.py, tests/cpu/test_quantized.py
    pickles and dead links in a model folder     tests/pure/test_folders.py
    a number in place of a file's name           tests/cpu/test_nodes_values.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sluice.flux_core.checkpoint.names import FLUX_DOUBLE, FLUX_SINGLE, FLUX_TOP, FUSED
from sluice.flux_core.commands import cli
from sluice.flux_core.io.folders import TINY_MODELS
from torch import Tensor

State = dict[str, Tensor]
Put = Callable[..., str]
Picture = Callable[..., np.ndarray]
Told = Callable[..., str]
FP8 = torch.float8_e4m3fn


def state_of(path: str) -> State:
    return load_file(TINY_MODELS / path)


@pytest.fixture(scope="module")
def flux() -> State:
    return state_of("diffusion_models/sluice-tiny.safetensors")


@pytest.fixture(scope="module")
def clip() -> State:
    return state_of("text_encoders/sluice-tiny-clip_l.safetensors")


@pytest.fixture(scope="module")
def t5() -> State:
    return state_of("text_encoders/sluice-tiny-t5xxl.safetensors")


@pytest.fixture
def put(here: Path) -> Put:
    """put(folder, name, state, metadata): a file in the model store; its name."""

    def save(folder: str, name: str, state: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> str:
        path = here / "models" / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in state.items()}, path, metadata)
        return name

    return save


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def prompt(
    unet: str = "sluice-tiny.safetensors",
    clip: str = "sluice-tiny-clip_l.safetensors",
    t5: str = "sluice-tiny-t5xxl.safetensors",
    lora: str | None = None,
    both: bool = False,
    checkpoint: str | None = None,
    text: str = "a red circle",
) -> dict[str, Any]:
    nodes = {
        "1": node("UNETLoader", unet_name=unet, weight_dtype="default"),
        "2": node("DualCLIPLoader", clip_name1=clip, clip_name2=t5, type="flux"),
        "3": node("VAELoader", vae_name="sluice-tiny-ae.safetensors"),
    }
    model, encoders, vae = ["1", 0], ["2", 0], ["3", 0]
    if checkpoint:
        nodes = {"1": node("CheckpointLoaderSimple", ckpt_name=checkpoint)}
        encoders, vae = ["1", 1], ["1", 2]
    if lora and both:
        inputs = {"lora_name": lora, "strength_model": 1.0, "strength_clip": 1.0}
        nodes["20"] = node("LoraLoader", model=model, clip=encoders, **inputs)
        model, encoders = ["20", 0], ["20", 1]
    elif lora:
        nodes["20"] = node("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=1.0)
        model = ["20", 0]
    return nodes | {
        "4": node("CLIPTextEncode", text=text, clip=encoders),
        "7": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "8": node(
            "KSampler", seed=7, steps=2, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0, model=model,
            positive=["4", 0], negative=["4", 0], latent_image=["7", 0],
        ),
        "9": node("VAEDecode", samples=["8", 0], vae=vae),
        "10": node("SaveImage", filename_prefix="out", images=["9", 0]),
    }  # fmt: skip


@pytest.fixture
def picture(here: Path, capsys: pytest.CaptureFixture[str]) -> Picture:
    """picture(**files): the pixels that a prompt gives, in float32."""

    def run(*options: str, **files: Any) -> np.ndarray:
        (here / "w.json").write_text(json.dumps(prompt(**files)))
        capsys.readouterr()
        code = cli.main(["run", "w.json", "--dtype", "fp32", "--device", "cpu", *options])
        told = capsys.readouterr()
        assert code == 0, told.err
        return np.asarray(Image.open(here / told.out.splitlines()[-1]).convert("RGB")).astype(int)

    return run


@pytest.fixture
def refused(here: Path, capsys: pytest.CaptureFixture[str]) -> Told:
    """refused(code, **files): the one sentence that a run ends with, after checking that no picture came of it."""

    def run(code: int = 1, **files: Any) -> str:
        (here / "w.json").write_text(json.dumps(prompt(**files)))
        assert cli.main(["run", "w.json", "--dtype", "fp32", "--device", "cpu"]) == code
        told = capsys.readouterr()
        assert told.out == "" and "Traceback" not in told.err and not list(here.rglob("*.png"))
        return told.err.strip().splitlines()[-1]

    return run


@pytest.fixture
def inspected(capsys: pytest.CaptureFixture[str]) -> Callable[[Path], dict[str, Any]]:
    """inspected(path): the output of `sluice inspect`."""

    def run(path: Path) -> dict[str, Any]:
        capsys.readouterr()
        assert cli.main(["inspect", str(path), "--json"]) == 0
        facts: dict[str, Any] = json.loads(capsys.readouterr().out)
        return facts

    return run


def far(a: np.ndarray, b: np.ndarray) -> int:
    return int(abs(a - b).max())


# -- shards and half files -------------------------------------------------------------------------------------------


def as_diffusers(flux: State) -> State:
    """The transformer under diffusers' names, joined matrices taken apart."""
    hidden, mlp = 192, 768
    families = {
        "double_blocks": ("transformer_blocks", FLUX_DOUBLE),
        "single_blocks": ("single_transformer_blocks", FLUX_SINGLE),
    }
    out = {}
    for theirs, (module, _) in FLUX_TOP.items():
        for kind in ("weight", "bias"):
            value = flux[f"{module}.{kind}"]
            out[f"{theirs}.{kind}"] = torch.cat(value.chunk(2)[::-1]) if theirs == "norm_out.linear" else value
    for name, value in flux.items():
        family, _, rest = name.partition(".")
        if family not in families:
            continue
        (block, _, rest), (prefix, table) = rest.partition("."), families[family]
        module, _, kind = rest.rpartition(".")
        parts = sorted((part, theirs) for theirs, (own, part) in table.items() if own == module)
        sizes = [hidden, hidden, hidden, mlp][: len(parts)] if module in FUSED else [len(value)]
        for (_, theirs), rows in zip(parts, value.split(sizes), strict=True):
            out[f"{prefix}.{block}.{theirs}.{'weight' if kind == 'scale' else kind}"] = rows.clone()
    return out


def shards_of(state: State, stem: str, count: int) -> Iterator[tuple[str, State]]:
    names = sorted(state)
    for number in range(count):
        yield f"{stem}-{number + 1:05}-of-{count:05}.safetensors", {name: state[name] for name in names[number::count]}


def test_a_sharded_folder_runs_by_whatever_name_it_has(
    flux: State, put: Put, picture: Picture, inspected: Callable[[Path], dict[str, Any]], here: Path
) -> None:
    stem, state = "fine/diffusion_pytorch_model", as_diffusers(flux)
    expected = picture()
    where: dict[str, str] = {}
    for name, part in shards_of(state, stem, 3):
        put("diffusion_models", name, part)
        where |= dict.fromkeys(part, name.rpartition("/")[2])
    folder = here / "models/diffusion_models/fine"
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    for name in ("fine", "fine/diffusion_pytorch_model-00002-of-00003.safetensors", f"fine/{index.name}"):
        assert far(picture(unet=name), expected) == 0
        assert inspected(here / "models/diffusion_models" / name)["kind"] == "flux"
    index.unlink()
    assert far(picture(unet="fine"), expected) == 0
    assert inspected(folder)["container"] == "3 shards of safetensors"


def test_half_of_a_sharded_file_says_which_part_is_missing(
    t5: State, put: Put, refused: Told, capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    (name, first), _ = shards_of(t5, "model", 2)
    put("text_encoders", name, first)
    told = "has only 1 of the 2 files of this model; model-00002-of-00002.safetensors is missing"
    assert told in refused(t5=name)
    assert cli.main(["inspect", str(here / "models/text_encoders" / name)]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "lost",
    ["encoder.final_layer_norm.weight", "shared.weight", "encoder.block.1.layer.1.DenseReluDense.wo.weight",
     "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"],
)  # fmt: skip
def test_an_encoder_without_one_tensor_is_incomplete_for_all(
    t5: State, put: Put, refused: Told, inspected: Callable[[Path], dict[str, Any]], here: Path, lost: str
) -> None:
    name = put("text_encoders", "t5.safetensors", {key: value for key, value in t5.items() if key != lost})
    told = refused(t5=name)
    assert "t5.safetensors is incomplete" in told and f"the first is {lost}" in told
    facts = inspected(here / "models/text_encoders" / name)
    assert "cannot be used" in facts["noun"] and lost in facts["refusals"]["t5"]


def test_a_transformer_without_one_tensor_is_incomplete_for_all(
    flux: State, put: Put, refused: Told, capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    lost = "single_blocks.1.modulation.lin.bias"
    name = put("diffusion_models", "part.safetensors", {key: value for key, value in flux.items() if key != lost})
    assert f"the first is {lost}" in refused(unet=name)
    for command in ("inspect", "plan"):
        code = cli.main([command, str(here / "models/diffusion_models" / name)])
        told = capsys.readouterr()
        assert (code, lost in told.out + told.err) == (int(command == "plan"), True)


# -- text encoders ---------------------------------------------------------------------------------------------------


def test_clip_in_openais_names_gives_the_same_picture(
    clip: State, put: Put, picture: Picture, inspected: Callable[[Path], dict[str, Any]], here: Path
) -> None:
    ours = "text_model.encoder.layers."
    state = {
        "positional_embedding": clip["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": clip["text_model.embeddings.token_embedding.weight"],
        "ln_final.weight": clip["text_model.final_layer_norm.weight"],
        "ln_final.bias": clip["text_model.final_layer_norm.bias"],
        "text_projection": torch.eye(128, dtype=torch.bfloat16),
        "logit_scale": torch.tensor(4.6),
        "visual.conv1.weight": torch.zeros(8, 3, 14, 14),
    }
    renamed = (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"),
               ("attn.out_proj", "self_attn.out_proj"))  # fmt: skip
    for layer in {name.split(".")[3] for name in clip if name.startswith(ours)}:
        block = f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            parts = [clip[f"{ours}{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            state[f"{block}attn.in_proj_{kind}"] = torch.cat(parts)
            state |= {f"{block}{a}.{kind}": clip[f"{ours}{layer}.{b}.{kind}"] for a, b in renamed}
    name = put("text_encoders", "ViT-L-14-ft.safetensors", state)
    assert far(picture(clip=name), picture()) == 0
    assert inspected(here / "models/text_encoders" / name)["kind"] == "clip_l"


# -- quantised files -------------------------------------------------------------------------------------------------


def matrices(state: State) -> Iterator[str]:
    """The layers that such files quantise."""
    yield from (
        name[:-7] for name, value in state.items() if name.endswith(".weight") and "blocks." in name and value.ndim == 2
    )


def said(**conf: Any) -> Tensor:
    return torch.tensor(list(json.dumps(conf).encode()), dtype=torch.uint8)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_scales_of_scaled_fp8_may_be_of_any_float_type(
    flux: State, put: Put, picture: Picture, kind: torch.dtype
) -> None:
    stored, meant = dict(flux), dict(flux)
    for layer in matrices(flux):
        weight = flux[f"{layer}.weight"].float()
        scale = (weight.abs().max() / 448).to(kind)
        stored[f"{layer}.weight"] = (weight / scale.float()).to(FP8)
        stored[f"{layer}.scale_weight"] = scale.reshape(())
        meant[f"{layer}.weight"] = stored[f"{layer}.weight"].float() * scale.float()
    assert far(picture(unet=put("diffusion_models", "s.safetensors", stored)),
               picture(unet=put("diffusion_models", "m.safetensors", meant))) == 0  # fmt: skip


def rotated(weight: Tensor, group: int) -> Tensor:
    four = torch.tensor([[1.0, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]])
    h = torch.ones(1, 1)
    while len(h) < group:
        h = torch.kron(h, four)
    turned: Tensor = weight.unflatten(1, (-1, group)) @ (h / group**0.5)
    return turned.flatten(1)


def test_what_comfy_quant_says_is_done(
    flux: State, put: Put, picture: Picture, inspected: Callable[[Path], dict[str, Any]], here: Path
) -> None:
    """fp8 kept as bytes, and int8 with a rotation and one scale: both once gave noise without a word."""
    fp8, int8 = dict(flux), dict(flux)
    meant: dict[str, State] = {"fp8": dict(flux), "int8": dict(flux)}
    for layer in matrices(flux):
        weight, name = flux[f"{layer}.weight"].float(), f"{layer}.weight"
        scale = (weight.abs().max() / 448).reshape(())
        fp8[name] = (weight / scale).to(FP8).view(torch.uint8)
        fp8 |= {f"{layer}.weight_scale": scale, f"{layer}.comfy_quant": said(format="float8_e4m3fn")}
        meant["fp8"][name] = fp8[name].view(FP8).float() * scale
        turned = rotated(weight, 64)
        scale = (turned.abs().max() / 127).reshape(())
        int8[name] = (turned / scale).round().to(torch.int8)
        conf = said(format="int8_tensorwise", convrot=True, convrot_groupsize=64)
        int8 |= {f"{layer}.weight_scale": scale, f"{layer}.comfy_quant": conf}
        meant["int8"][name] = rotated(int8[name].float() * scale, 64)
    for name, state in (("fp8", fp8), ("int8", int8)):
        expected = picture(unet=put("diffusion_models", f"{name} meant.safetensors", meant[name]))
        assert far(picture(unet=put("diffusion_models", f"{name}.safetensors", state)), expected) <= 1
    facts = inspected(here / "models/diffusion_models/int8.safetensors")
    assert "INT8, rotated by 64" in facts["formats"]


def test_an_unknown_quantisation_is_named_by_all(
    flux: State, put: Put, refused: Told, capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    layer = next(matrices(flux))
    state = flux | {f"{layer}.comfy_quant": said(format="int3_magic")}
    name = put("diffusion_models", "q.safetensors", state)
    told = refused(unet=name)
    assert f"{layer}.weight is stored as 'int3_magic'" in told and "Take a GGUF, fp8 or int8 file" in told
    for command, code in (("inspect", 0), ("plan", 1)):
        assert cli.main([command, str(here / "models/diffusion_models" / name)]) == code
        out = capsys.readouterr()
        assert "'int3_magic'" in out.out + out.err


def test_integers_without_a_word_are_refused(flux: State, put: Put, refused: Told) -> None:
    state = dict(flux)
    for layer in matrices(flux):
        weight = flux[f"{layer}.weight"].float()
        scale = weight.abs().amax(1, keepdim=True) / 127
        state |= {f"{layer}.weight": (weight / scale).round().to(torch.int8), f"{layer}.weight_scale": scale}
    told = refused(unet=put("diffusion_models", "q.safetensors", state))
    assert "does not say how to decode them" in told


NF4 = torch.tensor([-1, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.09105, 0, 0.0795803, 0.1609302,
                    0.2461123, 0.3379152, 0.4407098, 0.562617, 0.7229568, 1])  # fmt: skip


def in_nf4(state: State, prefix: str = "") -> tuple[State, State]:
    """As Forge's files have it: the stored tensors, and what they stand for."""
    stored, meant = {prefix + name: value for name, value in state.items()}, {prefix + n: v for n, v in state.items()}
    for layer in matrices(state):
        weight, name = state[f"{layer}.weight"].float(), f"{prefix}{layer}.weight"
        absmax = weight.view(-1, 64).abs().amax(1)
        codes = (weight.view(-1, 64, 1) / absmax[:, None, None] - NF4).abs().argmin(2).view(-1, 2).to(torch.uint8)
        stored[name] = (codes[:, :1] << 4 | codes[:, 1:]).reshape(-1, 1)
        conf = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(weight.shape)}
        stored |= {f"{name}.absmax": absmax, f"{name}.quant_map": NF4.clone()}
        stored[f"{name}.quant_state.bitsandbytes__nf4"] = said(**conf)
        meant[name] = (NF4[codes.view(-1).long()].view(-1, 64) * absmax[:, None]).view(weight.shape)
    return stored, meant


def test_nf4_runs_alone_and_all_in_one(
    flux: State,
    clip: State,
    t5: State,
    put: Put,
    picture: Picture,
    inspected: Callable[[Path], dict[str, Any]],
    here: Path,
) -> None:
    stored, meant = in_nf4(flux)
    expected = picture(unet=put("diffusion_models", "meant.safetensors", meant))
    name = put("diffusion_models", "flux1-dev-bnb-nf4.safetensors", stored)
    assert far(picture(unet=name), expected) == 0
    assert far(picture("--ram", "1500M", unet=name), expected) <= 1
    assert "NF4" in inspected(here / "models/diffusion_models" / name)["formats"]
    whole = in_nf4(flux, "model.diffusion_model.")[0]
    whole |= {f"text_encoders.clip_l.transformer.{key}": value for key, value in clip.items()}
    whole |= {f"text_encoders.t5xxl.transformer.{key}": value for key, value in t5.items()}
    whole |= {f"vae.{key}": value for key, value in state_of("vae/sluice-tiny-ae.safetensors").items()}
    checkpoint = put("checkpoints", "flux1-dev-bnb-nf4-v2.safetensors", whole)
    assert far(picture(checkpoint=checkpoint), expected) == 0


# -- LoRAs -----------------------------------------------------------------------------------------------------------


def changes(seed: int = 1) -> dict[str, tuple[Tensor, Tensor]]:
    """diffusers' module -> (down, up), for the attention of both double blocks."""
    generator = torch.Generator().manual_seed(seed)
    modules = [f"transformer_blocks.{block}.attn.{part}" for block in range(2) for part in ("to_q", "to_v", "to_out.0")]
    return {
        module: (torch.randn(4, 192, generator=generator) * 0.07, torch.randn(192, 4, generator=generator) * 0.3)
        for module in modules
    }


def as_lora(name: Callable[[str], str], down: str, up: str) -> State:
    made: State = {}
    for module, (a, b) in changes().items():
        made |= {f"{name(module)}{down}": a, f"{name(module)}{up}": b}
    return made


AB, DOWN_UP = (".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight")
PREFIXES: dict[str, tuple[Callable[[str], str], str, str]] = {
    "SimpleTuner": (lambda m: f"transformer.base_model.model.{m}", *AB),
    "PEFT": (lambda m: f"base_model.model.{m}", *AB),
    "PEFT with the adapter's name": (
        lambda m: f"base_model.model.{m}", ".lora_A.default.weight", ".lora_B.default.weight",
    ),
    "diffusers without a prefix": (lambda m: m, *AB),
    "unet": (lambda m: f"unet.{m}", *AB),
    "kohya with diffusers' names": (lambda m: f"lora_unet_{m.replace('.', '_')}", *DOWN_UP),
    "and a stray underscore": (lambda m: f"lora_unet_{m.replace('.', '_')}_", *DOWN_UP),
}  # fmt: skip


def test_loras_run_under_every_prefix_and_inspect_says_so(
    put: Put, picture: Picture, inspected: Callable[[Path], dict[str, Any]], here: Path
) -> None:
    expected = picture(lora=put("loras", "r.safetensors", as_lora(lambda m: f"transformer.{m}", *AB)))
    assert far(expected, picture()) > 20
    for number, (name, down, up) in enumerate(PREFIXES.values()):
        file = put("loras", f"{number}.safetensors", as_lora(name, down, up))
        assert far(picture(lora=file), expected) == 0
        assert inspected(here / "models/loras" / file)["kind"] == "lora"


def test_a_lora_of_a_text_encoder_alone_runs_where_it_can_and_says_so_where_it_cannot(
    clip: State, put: Put, picture: Picture, refused: Told, inspected: Callable[[Path], dict[str, Any]], here: Path
) -> None:
    generator, made = torch.Generator().manual_seed(2), {}
    for name, value in clip.items():
        if name.endswith("_proj.weight"):
            made[f"lora_te1.{name[:-7]}.lora_A.weight"] = torch.randn(4, value.shape[1], generator=generator)
            made[f"lora_te1.{name[:-7]}.lora_B.weight"] = torch.randn(value.shape[0], 4, generator=generator)
    file = put("loras", "te.safetensors", made)
    told = refused(lora=file)
    assert "a LoRA for the text encoder CLIP-L alone: it changes nothing of the transformer" in told
    assert far(picture(lora=file, both=True), picture()) > 5
    assert inspected(here / "models/loras" / file)["facts"]["changes"] == "CLIP-L"


def test_a_lora_for_another_family_is_told_by_both(
    put: Put, refused: Told, inspected: Callable[[Path], dict[str, Any]], here: Path
) -> None:
    file = put("loras", "sdxl.safetensors", {"lora_unet_input_blocks_4_1_proj_in.lora_down.weight": torch.zeros(4, 8)})
    assert "sdxl.safetensors is a LoRA for another model family" in refused(lora=file)
    assert "another model family" in inspected(here / "models/loras" / file)["noun"]


# -- numbers that are none -------------------------------------------------------------------------------------------

NAN = float("nan")


def test_a_nan_in_a_lora_is_told_with_its_tensor(put: Put, refused: Told) -> None:
    made = as_lora(lambda m: f"transformer.{m}", *AB)
    made["transformer.transformer_blocks.0.attn.to_q.lora_B.weight"][0, 0] = NAN
    told = refused(lora=put("loras", "nan.safetensors", made))
    assert (
        "nan.safetensors: transformer.transformer_blocks.0.attn.to_q.lora_B.weight holds numbers that are not" in told
    )


@pytest.mark.parametrize(
    "tensor", ["img_in.weight", "single_blocks.1.linear2.bias", "double_blocks.1.img_mlp.0.weight"]
)
def test_a_nan_in_the_transformer_is_told_with_step_and_tensor(
    flux: State, put: Put, refused: Told, tensor: str
) -> None:
    state = flux | {tensor: flux[tensor].clone()}
    state[tensor].view(-1)[5] = NAN
    told = refused(unet=put("diffusion_models", "nan.safetensors", state))
    assert "At step 1 of 2 the image's numbers stopped being finite" in told and "node 8 (KSampler)" in told
    assert f"{tensor} in nan.safetensors contains numbers that are not finite" in told


@pytest.mark.parametrize("part", ["clip", "t5", "vae"])
def test_a_nan_in_another_model_is_told_with_its_tensor(
    clip: State, t5: State, put: Put, refused: Told, part: str
) -> None:
    state = {"clip": clip, "t5": t5, "vae": state_of("vae/sluice-tiny-ae.safetensors")}[part]
    tensor = {"clip": "text_model.final_layer_norm.bias", "t5": "encoder.block.0.layer.1.DenseReluDense.wo.weight",
              "vae": "decoder.conv_in.weight"}[part]  # fmt: skip
    state = state | {tensor: state[tensor].clone()}
    state[tensor].view(-1)[:] = NAN
    if part == "vae":
        put("vae", "sluice-tiny-ae.safetensors", state)
        told = refused()
    else:
        told = refused(**{part: put("text_encoders", "nan.safetensors", state)})
    assert f"{tensor} in " in told and "not finite" in told


def test_a_huge_prompt_weight_is_told(refused: Told) -> None:
    told = refused(text="(red:1e30) circle")
    assert "At step 1 of 2" in told and "remove very large weights from the prompt" in told


def test_a_huge_strength_is_told_to_be_one(
    put: Put, refused: Told, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finite numbers in every file, and a product that is not."""
    made = {key: value * 1e20 for key, value in as_lora(lambda m: f"transformer.{m}", *AB).items()}
    told = refused(lora=put("loras", "huge.safetensors", made))
    assert "At step 1 of 2" in told and "strengths of LoRAs" in told


# -- workflows with parts that are not for this program ---------------------------------------------------------------


def test_what_runs_of_a_workflow_runs_when_asked_for(picture: Picture, here: Path, capsys: Any) -> None:
    whole = picture()
    made = prompt()
    last = next(node_id for node_id, one in made.items() if one["class_type"] == "VAEDecode")
    made["90"] = node("Alien", image=[last, 0])
    made["91"] = node("PreviewImage", images=["90", 0])
    made["92"] = node("Fast Groups Muter (rgthree)")
    (here / "part.json").write_text(json.dumps(made))
    assert cli.main(["run", "part.json", "--dtype", "fp32", "--device", "cpu", "--partial"]) == 0
    told = capsys.readouterr()
    assert "Node 91 (PreviewImage) does not run" in told.err and "muter" not in told.err.lower()
    assert far(np.asarray(Image.open(here / told.out.strip()).convert("RGB")).astype(int), whole) == 0
