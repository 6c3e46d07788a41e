"""The kind of a file, from its names and shapes; for the wrong kind, the error names the kind and the right folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sluice.flux_core.checkpoint.complete import missing
from sluice.flux_core.checkpoint.describe import as_text, describe
from sluice.flux_core.checkpoint.detect import detect, refuse
from sluice.flux_core.checkpoint.kinds import KINDS
from sluice.flux_core.checkpoint.names import FLUX_DOUBLE, FLUX_SINGLE, FLUX_TOP
from sluice.flux_core.checkpoint.shapes import misshapen
from sluice.flux_core.checkpoint.stored import TensorEntry, WeightFile
from sluice.flux_core.errors import FileFormatError

Shapes = dict[str, tuple[int, ...]]


def holding(shapes: Shapes, name: str = "model.safetensors") -> WeightFile:
    """A file with these tensors, without there being one."""
    entries = {name: TensorEntry(name, "BF16", shape, 0, 0) for name, shape in shapes.items()}
    return WeightFile(Path(name), 0, 0, entries, {}, ((0, Path(name), 0, 0),), "safetensors")


def whole(kind: str, shapes: Shapes, prefix: str = "") -> Shapes:
    """With what is missing for a model of as many blocks, in the shapes that it needs."""
    plain = {name[len(prefix) :]: shape for name, shape in shapes.items()}
    full = {name: (8, 8) for name in missing(kind, plain)} | plain
    while wrong := misshapen(kind, full):
        full[wrong[0]] = wrong[1]
    return {prefix + name: shape for name, shape in full.items()}


def flux(columns: int = 64, guidance: bool = True, double: int = 2, single: int = 3) -> Shapes:
    shapes: Shapes = {
        "img_in.weight": (128, columns),
        "txt_in.weight": (128, 32),
        "vector_in.in_layer.weight": (128, 16),
        "final_layer.linear.weight": (64, 128),
    }
    for number in range(double):
        shapes[f"double_blocks.{number}.img_attn.norm.key_norm.scale"] = (128,)
        shapes[f"double_blocks.{number}.img_mlp.0.weight"] = (512, 128)
    shapes |= {f"single_blocks.{number}.linear1.weight": (896, 128) for number in range(single)}
    return whole("flux", shapes | ({"guidance_in.in_layer.weight": (128, 256)} if guidance else {}))


def flux_of_diffusers() -> Shapes:
    """The same under diffusers' names, one block of each kind, 8 wide, with an MLP as wide."""
    modules = [theirs for theirs, (module, _) in FLUX_TOP.items() if not module.startswith("guidance")]
    for family, table in (("transformer_blocks.0", FLUX_DOUBLE), ("single_transformer_blocks.0", FLUX_SINGLE)):
        modules += [f"{family}.{theirs}" for theirs in table]
    sizes = {
        "x_embedder": (8, 64), "proj_out": (64, 8), "norm_out.linear": (16, 8),
        "time_text_embed.timestep_embedder.linear_1": (8, 256), "transformer_blocks.0.norm1.linear": (48, 8),
        "transformer_blocks.0.norm1_context.linear": (48, 8), "single_transformer_blocks.0.norm.linear": (24, 8),
        "single_transformer_blocks.0.proj_out": (8, 16),
    }  # fmt: skip
    norms = [module for module in modules if ".norm_" in module]
    shapes: Shapes = {f"{module}.weight": (8,) if module in norms else sizes.get(module, (8, 8)) for module in modules}
    return shapes | {f"{module}.bias": shapes[f"{module}.weight"][:1] for module in modules if module not in norms}


def clip(layers: int = 12, prefix: str = "text_model.") -> Shapes:
    shapes: Shapes = {f"{prefix}embeddings.token_embedding.weight": (49408, 768)}
    shapes[f"{prefix}embeddings.position_ids"] = (1, 77)
    shapes |= {f"{prefix}encoder.layers.{n}.mlp.fc1.weight": (3072, 768) for n in range(layers)}
    full = whole("clip_l", {f"text_model.{name.removeprefix(prefix)}": shape for name, shape in shapes.items()})
    return {prefix + name.removeprefix("text_model."): shape for name, shape in full.items()}


def clip_of_openai() -> Shapes:
    shapes: Shapes = {"token_embedding.weight": (49408, 8), "positional_embedding": (77, 8),
                      "ln_final.weight": (8,), "ln_final.bias": (8,), "text_projection": (8, 8)}  # fmt: skip
    for layer in range(12):
        block = f"transformer.resblocks.{layer}."
        shapes |= {f"{block}attn.in_proj_weight": (24, 8), f"{block}attn.in_proj_bias": (24,)}
        for module in ("attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj"):
            shapes |= {f"{block}{module}.weight": (8,) if "ln_" in module else (8, 8), f"{block}{module}.bias": (8,)}
    return shapes | {"visual.class_embedding": (1024,), "logit_scale": ()}


def t5(prefix: str = "", gated: bool = True) -> Shapes:
    shapes: Shapes = {f"{prefix}shared.weight": (32128, 64)}
    for number in range(3):
        block = f"{prefix}encoder.block.{number}.layer."
        shapes[f"{block}0.SelfAttention.q.weight"] = (64, 64)
        shapes[f"{block}1.DenseReluDense.{'wi_0' if gated else 'wi'}.weight"] = (128, 64)
    return whole("t5", shapes, prefix) if gated else shapes


def autoencoder(channels: int = 16, prefix: str = "") -> Shapes:
    return {
        f"{prefix}encoder.conv_in.weight": (32, 3, 3, 3),
        f"{prefix}decoder.conv_in.weight": (128, channels, 3, 3),
        f"{prefix}decoder.conv_out.weight": (3, 32, 3, 3),
        f"{prefix}decoder.mid.attn_1.q.weight": (128, 128, 1, 1),
    }


def under(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


ALL_IN_ONE = (
    under("model.diffusion_model.", flux())
    | clip(prefix="text_encoders.clip_l.transformer.text_model.")
    | {"text_encoders.clip_l.logit_scale": ()}
    | t5(prefix="text_encoders.t5xxl.transformer.")
    | autoencoder(prefix="vae.")
)

LORA = ".lora_A.weight"
RECOGNISED: dict[str, tuple[Shapes, str, str]] = {
    "dev": (flux(), "flux", "(dev)"),
    "schnell": (flux(guidance=False), "flux", "(schnell)"),
    "fill": (flux(columns=384), "flux", "(fill)"),
    "canny or depth": (flux(columns=128), "flux", "(canny or depth)"),
    "a transformer under a prefix": (under("model.diffusion_model.", flux()), "flux", "(dev)"),
    "a transformer in diffusers' layout": (flux_of_diffusers(), "flux", "(schnell)"),
    "all in one": (ALL_IN_ONE, "checkpoint", "all-in-one"),
    "CLIP-L": (clip(), "clip_l", "CLIP-L"),
    "CLIP-L of a whole CLIP": (clip() | {"vision_model.embeddings.class_embedding": (1024,)}, "clip_l", "CLIP-L"),
    "CLIP-L without text_model": (clip(prefix=""), "clip_l", "CLIP-L"),
    "CLIP-L in OpenAI's names": (clip_of_openai(), "clip_l", "CLIP-L"),
    "nunchaku": (
        {f"transformer_blocks.0.qkv_proj.{part}": (8, 8) for part in ("qweight", "wscales", "lora_down", "lora_up")},
        "unknown", "quantised by nunchaku (SVDQuant)",
    ),
    "nunchaku's T5": (
        {f"encoder.block.0.layer.0.SelfAttention.q.{part}": (8, 8) for part in ("qweight", "scales", "scaled_zeros")},
        "t5", "a T5 text encoder quantised by nunchaku (AWQ)",
    ),
    "nunchaku's LoRA": (
        {f"transformer_blocks.0.qkv_proj.lora_{part}": (8, 8) for part in ("down", "up")}, "other", "for nunchaku",
    ),
    "GPTQ": ({"a.qweight": (8, 8), "a.g_idx": (8,), "a.scales": (1, 8)}, "unknown", "quantised by GPTQ"),
    "CLIP-G": (clip(layers=32), "other_text", "32 layers"),
    "T5": (t5(), "t5", "T5"),
    "T5 v1.0": (t5(gated=False), "other_text", "another generation"),
    "autoencoder": (autoencoder(), "autoencoder", "autoencoder"),
    "autoencoder of SDXL": (autoencoder(channels=4) | {"quant_conv.weight": (8, 8)}, "other_autoencoder", "4 latent"),
    "LoRA by kohya": ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 8)}, "lora", "kohya"),
    "LoRA in BFL names": ({f"diffusion_model.single_blocks.3.linear1{LORA}": (4, 8)}, "lora", "BFL names"),
    "LoRA by diffusers": ({f"transformer.single_transformer_blocks.0.attn.to_q{LORA}": (4, 8)}, "lora", "diffusers"),
    "LoRA by XLabs": ({"double_blocks.0.processor.qkv_lora1.down.weight": (4, 8)}, "lora", "XLabs"),
    "Depth LoRA": (
        {f"img_in{LORA}": (4, 128), f"double_blocks.0.img_attn.proj{LORA}": (4, 8),
         "double_blocks.0.img_attn.norm.key_norm.scale": (128,)}, "lora", "control",
    ),
    "LoRA by PEFT": ({f"base_model.model.single_transformer_blocks.37.attn.to_q{LORA}": (4, 8)}, "lora", "diffusers"),
    "LoRA without a prefix": ({f"transformer_blocks.18.attn.to_q{LORA}": (4, 8)}, "lora", "diffusers"),
    "LoRA of an UNet by name": ({f"unet.transformer_blocks.0.attn.to_q{LORA}": (4, 8)}, "lora", "diffusers"),
    "LoRA by kohya in diffusers' names": (
        {"lora_unet_transformer_blocks_0_attn_to_q_.lora_down.weight": (4, 8)}, "lora", "kohya with diffusers",
    ),
    "LoRA with an adapter's name": ({"transformer.x_embedder.lora_A.default.weight": (4, 8)}, "lora", "diffusers"),
    "LoRA of a text encoder": (
        {"lora_te1.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": (4, 8)}, "lora", "the text encoder CLIP-L alone",
    ),
    "LoRA of both text encoders": (
        {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 8),
         "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight": (4, 8)},
        "lora", "the text encoders CLIP-L and T5 alone",
    ),
    "OFT by LyCORIS": ({"lycoris_transformer_blocks_0_attn_to_q.oft_blocks": (4, 8, 8)}, "lora", "an OFT for FLUX.1"),
    "OFT by kohya": ({"oft_unet_single_blocks_0_linear2.oft_blocks.0": (4, 8, 8)}, "lora", "an OFT for FLUX.1"),
    "OFT by PEFT": ({"transformer.transformer_blocks.0.attn.to_q.oft_R.weight": (4, 8)}, "lora", "an OFT for FLUX.1"),
    "LoRA for Qwen-Image": ({f"transformer.transformer_blocks.59.attn.to_q{LORA}": (4, 8)}, "other", "another model"),
    "LoRA for PixArt": ({f"transformer.transformer_blocks.0.attn1.to_q{LORA}": (4, 8)}, "other", "another model"),
    "LoRA for SDXL with encoders": (
        {"lora_unet_input_blocks_4_1_proj_in.lora_down.weight": (4, 8),
         "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 8)}, "other", "another model family",
    ),
    "LoRA for SDXL": ({"lora_unet_input_blocks_4_1_proj_in.lora_down.weight": (4, 8)}, "other", "another model family"),
    "ControlNet by InstantX": (
        {"controlnet_blocks.0.weight": (8, 8), "controlnet_x_embedder.weight": (8, 8)} | flux_of_diffusers(),
        "controlnet", "InstantX",
    ),
    "ControlNet by XLabs": (
        {"controlnet_blocks.0.weight": (8, 8), "input_hint_block.0.weight": (16, 3, 3, 3)} | flux(),
        "controlnet", "XLabs",
    ),
    "ControlNet by MistoLine": ({"controlnet_blocks.0.linear.weight": (8, 8)} | flux(), "controlnet", "MistoLine"),
    "ControlNet for Qwen-Image": (
        {"controlnet_blocks.0.weight": (8, 8), "transformer_blocks.0.img_mod.1.weight": (8, 8)},
        "other", "another model family",
    ),
    "style projector": (
        {"feature_embedder.mid_layer_norm.bias": (8,), "feature_embedder.mid_projection.weight": (8, 8)},
        "style_projector", "USO",
    ),
    "model patch for Qwen-Image": (
        {"controlnet_blocks.0.y_rms.weight": (8,), "controlnet_blocks.0.input_proj.weight": (8, 8)},
        "other", "Qwen-Image",
    ),
    "Redux": ({"redux_up.weight": (8, 8), "redux_down.weight": (8, 8)}, "redux", "Redux"),
    "SigLIP": ({"vision_model.embeddings.patch_embedding.weight": (8, 3, 14, 14)}, "clip_vision", "vision"),
    "embedding": ({"clip_l": (4, 768), "t5xxl": (4, 4096)}, "embedding", "textual inversion"),
    "SD 1.5": (
        {"model.diffusion_model.input_blocks.1.0.in_layers.0.weight": (8,),
         "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768)},
        "other_checkpoint", "Stable Diffusion 1",
    ),
    "SDXL": (
        {"model.diffusion_model.input_blocks.1.0.in_layers.0.weight": (8,), "conditioner.embedders.0.x": (8,)},
        "other_checkpoint", "SDXL",
    ),
    "SD 3": ({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (8, 8)}, "other_model", "Diffusion 3"),
    "Chroma": (flux() | {"distilled_guidance_layer.in_proj.weight": (8, 8)}, "other_model", "Chroma"),
    "nothing known": ({"weights.0": (8, 8)}, "unknown", "unknown"),
    "nothing at all": ({}, "unknown", "unknown"),
}  # fmt: skip


@pytest.mark.parametrize("case", RECOGNISED)
def test_a_file_is_recognised_whatever_it_is_called(case: str) -> None:
    shapes, kind, words = RECOGNISED[case]
    found = detect(holding(shapes, name="a_lora_flux_vae.safetensors"))
    assert (found.kind, words in found.noun) == (kind, True), found.noun


def test_an_all_in_one_checkpoint_is_split_into_models_with_their_own_names() -> None:
    parts = detect(holding(ALL_IN_ONE)).parts
    assert parts.keys() == {"flux", "clip_l", "t5", "autoencoder"}
    assert parts["flux"].keys() == flux().keys()
    assert parts["autoencoder"].keys() == autoencoder().keys()
    assert parts["t5"].keys() == t5().keys()
    assert all(name.startswith("text_model.") for name in parts["clip_l"])


def test_sizes_are_counted() -> None:
    facts = detect(holding(flux(double=5, single=7))).facts
    assert (facts["double_blocks"], facts["single_blocks"], facts["hidden"]) == (5, 7, 128)


@pytest.mark.parametrize("shape", [(64,), (0, 64), (64, 64, 1)])
def test_a_model_with_impossible_shapes_is_a_damaged_file(shape: tuple[int, ...]) -> None:
    with pytest.raises(FileFormatError, match="should be a matrix"):
        detect(holding(flux() | {"img_in.weight": shape}))


@pytest.mark.parametrize(
    ("kind", "name", "shape"),
    [
        ("flux", "double_blocks.1.img_mlp.2.weight", (127, 512)),
        ("flux", "single_blocks.2.linear2.bias", (129,)),
        ("flux", "double_blocks.0.txt_attn.norm.query_norm.scale", (64,)),
        ("clip_l", "text_model.encoder.layers.3.self_attn.k_proj.weight", (768, 767)),
        ("t5", "encoder.block.2.layer.1.DenseReluDense.wo.weight", (128, 64)),
    ],
)
def test_a_tensor_whose_shape_contradicts_the_others_is_named(kind: str, name: str, shape: tuple[int, ...]) -> None:
    shapes = flux() if kind == "flux" else clip() if kind == "clip_l" else t5()
    assert name in shapes
    found = detect(holding(shapes | {name: shape}))
    assert kind not in found.parts
    assert f"{name} has the shape {list(shape)}, and the other tensors require" in found.refusals[kind]


def test_an_attention_of_matrices_becomes_one_of_convolutions() -> None:
    shapes = autoencoder() | {"decoder.mid.attn_1.q.weight": (128, 128)}
    assert detect(holding(shapes)).parts["autoencoder"]["decoder.mid.attn_1.q.weight"].shape == (128, 128, 1, 1)


@pytest.mark.parametrize(
    ("case", "wanted", "said"),
    [
        ("SDXL", "flux", "x.safetensors is an SDXL checkpoint, not a FLUX.1 transformer"),
        (
            "LoRA by kohya",
            "flux",
            "is a LoRA for FLUX.1 (kohya), not a FLUX.1 transformer. Load it with the node Load LoRA, from",
        ),
        ("LoRA by kohya", "flux", "folder models/loras"),
        ("CLIP-L", "autoencoder", "not a FLUX.1 autoencoder (VAE). Load it with the node DualCLIPLoader"),
        ("autoencoder of SDXL", "autoencoder", "4 latent channels"),
        ("nothing known", "flux", "Could not detect the model type of x.safetensors"),
        (
            "nunchaku",
            "flux",
            "it is quantised by nunchaku (SVDQuant), which cannot be read. Take a GGUF",
        ),
    ],
)
def test_the_wrong_file_is_told_what_it_is_and_where_it_belongs(case: str, wanted: str, said: str) -> None:
    with pytest.raises(FileFormatError) as refusal:
        refuse(Path("models/unet/x.safetensors"), detect(holding(RECOGNISED[case][0])), wanted)
    assert said in str(refusal.value)


def test_every_kind_that_is_found_has_a_name_and_a_place() -> None:
    assert {kind for _, kind, _ in RECOGNISED.values()} <= KINDS.keys()


def test_a_description_is_data_and_text(tmp_path: Path) -> None:
    metadata = {"title": "x" * 1000, "half": "\ud800", "modelspec.trigger_phrase": "a\n\x1b[31m fox"}
    header: dict[str, Any] = {"__metadata__": metadata}
    shapes, data = flux(), b""
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [len(data), len(data) + size]}
        data += bytes(size)
    text = json.dumps(header).encode()
    (tmp_path / "some.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    facts = json.loads(json.dumps(describe(tmp_path / "some.safetensors")))
    assert (facts["kind"], facts["container"], facts["tensors"]) == ("flux", "safetensors", len(shapes))
    assert facts["formats"] == {"BF16": {"tensors": len(shapes), "bytes": len(data)}}
    assert facts["parameters"] * 2 == len(data)
    assert len(facts["metadata"]["title"]) == 200
    told = as_text(facts)
    assert "FLUX.1 transformer (dev)" in told and "models/diffusion_models" in told
    rows = {line[2:20].strip(): line[20:] for line in told.splitlines()}
    assert (rows["double blocks"], rows["trigger phrase"]) == ("2", "a [31m fox")
    told.encode()


@pytest.mark.parametrize(
    ("names", "changes"),
    [
        ([], "transformer"),
        (["lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"], "transformer, CLIP-L"),
        (["text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight"], "transformer, CLIP-L"),
        (["lora_te_text_model_x.lora_up.weight", "lora_te2_encoder_x.lora_up.weight"], "transformer, CLIP-L, T5"),
    ],
)
def test_a_lora_tells_what_it_changes(names: list[str], changes: str) -> None:
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
        ["lora_unet_double_blocks_0_img_mlp_0.lora_up.weight", *names], (8, 4)
    )
    assert detect(holding(shapes)).facts["changes"] == changes
