"""One model in any layout: renaming, joining and swapping are done on names and ranges, and never on bytes."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from sluice.flux_core.checkpoint.files import open_weights
from sluice.flux_core.checkpoint.names import (
    FUSED,
    autoencoder_diffusers,
    clip_transformers,
    flux_bfl,
    flux_diffusers,
    flux_module,
    model_tensors,
    t5_llama,
    t5_transformers,
)
from sluice.flux_core.checkpoint.stored import TensorEntry, WeightFile
from sluice.flux_core.errors import FileFormatError
from sluice.flux_core.quant.encoding import Encoding
from sluice.flux_core.quant.sizes import nbytes_of

Shapes = dict[str, tuple[int, ...]]


def laid_out(shapes: Shapes, formats: dict[str, str] | None = None) -> WeightFile:
    """A file that holds these tensors one after the other, without there being one."""
    entries, offset = {}, 0
    for name, shape in shapes.items():
        format = (formats or {}).get(name, "BF16")
        entries[name] = TensorEntry(name, format, shape, offset, nbytes_of(format, shape))
        offset += entries[name].nbytes
    path = Path("model.safetensors")
    return WeightFile(path, offset, 0, entries, {}, ((0, path, offset, 0),), "safetensors")


def at(file: WeightFile, *names: str) -> tuple[tuple[int, int], ...]:
    return tuple((file.entries[name].offset, file.entries[name].nbytes) for name in names)


def test_a_fused_matrix_is_its_parts_in_the_order_of_the_model_wherever_they_lie() -> None:
    block = "single_transformer_blocks.7."
    file = laid_out(
        {
            f"{block}proj_mlp.weight": (32, 8),
            f"{block}attn.to_v.weight": (8, 8),
            f"{block}attn.to_q.weight": (8, 8),
            f"{block}attn.to_k.weight": (8, 8),
        }
    )
    stored = model_tensors(file, "", flux_diffusers)["single_blocks.7.linear1.weight"]
    assert stored.shape == (56, 8)
    parts = (f"{block}attn.to_q", f"{block}attn.to_k", f"{block}attn.to_v", f"{block}proj_mlp")
    assert stored.ranges == at(file, *(f"{part}.weight" for part in parts))


def test_the_halves_of_the_last_modulation_change_places() -> None:
    file = laid_out({"other": (3,), "norm_out.linear.weight": (16, 8), "norm_out.linear.bias": (16,)})
    tensors = model_tensors(file, "", flux_diffusers)
    for name in ("weight", "bias"):
        (offset, nbytes), half = at(file, f"norm_out.linear.{name}")[0], 0
        half = nbytes // 2
        stored = tensors[f"final_layer.adaLN_modulation.1.{name}"]
        assert stored.ranges == ((offset + half, half), (offset, half))


@pytest.mark.parametrize("missing", ["to_q", "to_k", "to_v"])
def test_a_fused_matrix_without_one_of_its_parts_is_an_error_that_names_what_is_there(missing: str) -> None:
    names = [f"transformer_blocks.0.attn.{part}.weight" for part in ("to_q", "to_k", "to_v") if part != missing]
    with pytest.raises(FileFormatError, match=r"img_attn.qkv.weight it has only transformer_blocks.0.attn"):
        model_tensors(laid_out({name: (8, 8) for name in names}), "", flux_diffusers)


def test_parts_in_different_formats_are_joined_as_they_are() -> None:
    names = [f"transformer_blocks.0.attn.{part}.weight" for part in ("to_q", "to_k", "to_v")]
    file = laid_out({name: (8, 32) for name in names}, {names[1]: "Q8_0"})
    stored = model_tensors(file, "", flux_diffusers)["double_blocks.0.img_attn.qkv.weight"]
    assert (stored.shape, stored.ranges) == ((24, 32), at(file, *names))
    parts = [(part.rows, part.nbytes, part.encoding.format) for part in stored.encoding.parts]
    assert parts == [(8, 512, "BF16"), (8, 272, "Q8_0"), (8, 512, "BF16")]


def test_parts_of_different_widths_are_told() -> None:
    names = [f"transformer_blocks.0.attn.{part}.weight" for part in ("to_q", "to_k", "to_v")]
    file = laid_out({name: (8, 32 + 8 * place) for place, name in enumerate(names)})
    with pytest.raises(FileFormatError, match="to_k.* are parts of the matrix .*qkv.weight but differ in width"):
        model_tensors(file, "", flux_diffusers)


def written(path: Path, scales: dict[str, float], mark: str = "F8_E4M3") -> Path:
    """A file of fp8 matrices [2, 2] with a scale each."""
    header, data = {}, b""
    for module, scale in scales.items():
        for name, dtype, shape, raw in (
            (f"{module}.weight", "F8_E4M3", [2, 2], bytes(4)),
            (f"{module}.scale_weight", "F32", [], struct.pack("<f", scale)),
            (f"{module}.scale_input", "F32", [], bytes(4)),
        ):
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
            data += raw
    header["scaled_fp8"] = {"dtype": mark, "shape": [0], "data_offsets": [len(data), len(data)]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_fp8_scales_go_with_their_matrices_and_are_no_tensors_themselves(tmp_path: Path) -> None:
    file = open_weights(written(tmp_path / "scaled.safetensors", {"img_in": 0.5, "txt_in": 0.25}))
    tensors = model_tensors(file, "", flux_bfl)
    assert {name: stored.encoding.scale for name, stored in tensors.items()} == {
        "img_in.weight": 0.5,
        "txt_in.weight": 0.25,
    }


@pytest.mark.parametrize("kind", ["F64", "F32", "F16", "BF16"])
def test_a_scale_may_be_of_any_float_type(tmp_path: Path, kind: str) -> None:
    raw = {"F64": struct.pack("<d", 0.1), "F32": struct.pack("<f", 0.1), "F16": struct.pack("<e", 0.1),
           "BF16": struct.pack("<f", 0.1)[2:]}[kind]  # fmt: skip
    header = {"img_in.weight": {"dtype": "F8_E4M3", "shape": [2, 4], "data_offsets": [0, 8]},
              "img_in.scale_weight": {"dtype": kind, "shape": [1], "data_offsets": [8, 8 + len(raw)]}}  # fmt: skip
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8) + raw)
    scale = model_tensors(open_weights(tmp_path / "x.safetensors"), "", flux_bfl)["img_in.weight"].encoding.scale
    expected = {"F64": struct.unpack("<f", struct.pack("<f", 0.1))[0], "F16": 0.0999755859375, "BF16": 0.099609375}
    assert scale == expected.get(kind, expected["F64"])


@pytest.mark.parametrize("mark, through", [("F8_E4M3", "F8_E4M3"), ("F8_E5M2", "F8_E5M2"), ("F32", "F8_E4M3")])
def test_the_mark_of_a_scaled_file_names_what_its_linear_layers_pass_through(
    tmp_path: Path, mark: str, through: str
) -> None:
    modules = {"img_in": 0.5, "single_blocks.0.norm.query_norm": 1.0}
    file = open_weights(written(tmp_path / "scaled.safetensors", modules, mark))
    renamed = {name.replace("norm.weight", "norm.scale"): entry for name, entry in file.entries.items()}
    file = replace(file, entries=renamed)
    tensors = model_tensors(file, "", flux_bfl)
    seen = {name: stored.through for name, stored in tensors.items()}
    assert seen == {"img_in.weight": through, "single_blocks.0.norm.query_norm.scale": None}


def test_parts_keep_their_scales(tmp_path: Path) -> None:
    modules = [f"transformer_blocks.0.attn.{part}" for part in ("to_q", "to_k", "to_v")]
    same = open_weights(written(tmp_path / "same.safetensors", dict.fromkeys(modules, 0.5)))
    qkv = "double_blocks.0.img_attn.qkv.weight"
    assert model_tensors(same, "", flux_diffusers)[qkv].encoding == Encoding("F8_E4M3", 0.5)
    mixed = open_weights(written(tmp_path / "mixed.safetensors", dict(zip(modules, (0.5, 0.5, 0.25), strict=True))))
    parts = model_tensors(mixed, "", flux_diffusers)[qkv].encoding.parts
    assert [part.encoding.scale for part in parts] == [0.5, 0.5, 0.25]


def test_only_what_stands_under_the_prefix_belongs_to_the_model() -> None:
    file = laid_out({"model.diffusion_model.img_in.weight": (4, 4), "img_in.weight": (2, 2), "vae.x": (1,)})
    assert model_tensors(file, "model.diffusion_model.", flux_bfl)["img_in.weight"].shape == (4, 4)
    assert model_tensors(file, "", flux_bfl).keys() == {"img_in.weight"}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("transformer_blocks.3.attn.to_k", ("double_blocks.3.img_attn.qkv", 1)),
        ("transformer_blocks.18.attn.add_v_proj", ("double_blocks.18.txt_attn.qkv", 2)),
        ("transformer_blocks.0.ff_context.net.0.proj", ("double_blocks.0.txt_mlp.0", 0)),
        ("single_transformer_blocks.37.proj_mlp", ("single_blocks.37.linear1", 3)),
        ("single_transformer_blocks.2.proj_out", ("single_blocks.2.linear2", 0)),
        ("time_text_embed.guidance_embedder.linear_2", ("guidance_in.out_layer", 0)),
        ("proj_out", ("final_layer.linear", 0)),
        ("transformer_blocks.x.attn.to_k", None),
        ("transformer_blocks.0.attn.to_x", None),
        ("controlnet_x_embedder", None),
    ],
)
def test_paths_of_diffusers_modules_are_found_in_bfl_names(theirs: str, ours: tuple[str, int] | None) -> None:
    assert flux_module(theirs) == ours


def test_every_part_of_a_fused_matrix_has_a_place_of_its_own() -> None:
    for family in ("transformer_blocks.0.", "single_transformer_blocks.0."):
        places: dict[str, list[int]] = {}
        for part in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"):
            if found := flux_module(f"{family}attn.{part}"):
                places.setdefault(found[0], []).append(found[1])
        if found := flux_module(f"{family}proj_mlp"):
            places[found[0]].append(found[1])
        for module, taken in places.items():
            assert taken == list(range(FUSED[module.split(".", 2)[2]]))


def test_norms_of_queries_and_keys_have_scales_not_weights() -> None:
    assert flux_diffusers("transformer_blocks.0.attn.norm_added_q.weight") == (
        "double_blocks.0.txt_attn.norm.query_norm.scale", 0,
    )  # fmt: skip


def test_t5_of_llama_cpp_gets_transformers_names() -> None:
    assert t5_llama("token_embd.weight") == ("shared.weight", 0)
    assert t5_llama("enc.output_norm.weight") == ("encoder.final_layer_norm.weight", 0)
    assert t5_llama("enc.blk.11.ffn_gate.weight") == ("encoder.block.11.layer.1.DenseReluDense.wi_0.weight", 0)
    assert t5_llama("enc.blk.0.attn_rel_b.weight") == (
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", 0,
    )  # fmt: skip
    assert t5_llama("dec.blk.0.attn_q.weight") is None


def test_t5_has_one_token_embedding_under_whichever_name() -> None:
    assert t5_transformers(has_shared=False)("encoder.embed_tokens.weight") == ("shared.weight", 0)
    assert t5_transformers(has_shared=True)("encoder.embed_tokens.weight") is None
    assert t5_transformers(has_shared=True)("decoder.block.0.layer.0.SelfAttention.q.weight") is None
    assert t5_transformers(has_shared=True)("lm_head.weight") is None


def test_clip_keeps_the_text_model_and_nothing_else() -> None:
    name = "encoder.layers.0.mlp.fc1.weight"
    assert clip_transformers(name) == (f"text_model.{name}", 0)
    assert clip_transformers("embeddings.position_ids") is None
    assert clip_transformers("logit_scale") is None


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("encoder.down_blocks.1.resnets.0.conv_shortcut.weight", "encoder.down.1.block.0.nin_shortcut.weight"),
        ("encoder.down_blocks.2.downsamplers.0.conv.bias", "encoder.down.2.downsample.conv.bias"),
        ("encoder.mid_block.resnets.1.norm2.weight", "encoder.mid.block_2.norm2.weight"),
        ("decoder.mid_block.attentions.0.to_out.0.weight", "decoder.mid.attn_1.proj_out.weight"),
        ("decoder.mid_block.attentions.0.group_norm.bias", "decoder.mid.attn_1.norm.bias"),
        ("decoder.mid_block.attentions.0.query.weight", "decoder.mid.attn_1.q.weight"),
        ("decoder.up_blocks.0.resnets.2.conv1.weight", "decoder.up.3.block.2.conv1.weight"),
        ("decoder.up_blocks.2.upsamplers.0.conv.weight", "decoder.up.1.upsample.conv.weight"),
        ("decoder.conv_norm_out.weight", "decoder.norm_out.weight"),
    ],
)
def test_the_autoencoder_of_diffusers_gets_bfl_names_its_decoder_counted_from_below(theirs: str, ours: str) -> None:
    assert autoencoder_diffusers(levels=4)(theirs) == (ours, 0)
