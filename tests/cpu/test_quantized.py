"""Quantised matrices as their own programs write them: read from a file, and decoded to the bits of those programs.

fixtures/quantized.safetensors was made by comfy-kitchen and bitsandbytes themselves (fixtures/make_quantized.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sluice.flux_core.checkpoint.files import open_weights
from sluice.flux_core.checkpoint.load import read
from sluice.flux_core.checkpoint.matrix_parts import UnreadableScheme
from sluice.flux_core.checkpoint.names import flux_bfl, flux_diffusers, model_tensors
from sluice.flux_core.checkpoint.stored import Stored
from sluice.flux_core.errors import FileFormatError
from sluice.flux_core.quant import floats, workspace
from sluice.flux_core.quant.encoding import Encoding, rotates
from sluice.flux_core.quant.formats import decode
from sluice.flux_core.quant.rotation import hadamard, root, rotate
from sluice.flux_core.quant.sides import unswizzled
from torch import Tensor

RECORDED = load_file(Path(__file__).parents[1] / "fixtures/quantized.safetensors")
CASES = sorted({name.partition("/")[0] for name in RECORDED})
FORMATS = {"int8": "INT8", "convrot": "INT4", "w4a8": "W4A8", "w6a8": "W6A8", "awq": "AWQ4", "nf4": "NF4", "fp4": "FP4",
           "nvfp4": "NVFP4", "mxfp8": "MXFP8"}  # fmt: skip
State = dict[str, Tensor]


def case(name: str) -> State:
    """The tensors of a recorded matrix, named as beside a layer, and the values it stands for."""
    return {key.partition("/")[2]: value for key, value in RECORDED.items() if key.startswith(f"{name}/")}


def layer(state: Mapping[str, Tensor], name: str = "img_in") -> State:
    return {f"{name}.{key}": value for key, value in state.items() if key != "values"}


def stored(path: Path, state: State, metadata: dict[str, str] | None = None, name: str = "img_in.weight") -> Stored:
    save_file({key: value.contiguous() for key, value in state.items()}, path / "m.safetensors", metadata)
    return model_tensors(open_weights(path / "m.safetensors"), "", flux_bfl)[name]


def values(found: Stored, dtype: torch.dtype = torch.float32) -> Tensor:
    return decode(read(found), found.encoding, found.shape, dtype)


def said(**conf: Any) -> Tensor:
    return torch.tensor(list(json.dumps(conf).encode()), dtype=torch.uint8)


def integers(state: State) -> Tensor:
    """What is multiplied, float64 [N, K]: the codes of a rotated matrix unpacked one by one."""
    codes = state["weight"].view(torch.uint8).long()
    if json.loads(bytes(state["comfy_quant"].tolist()))["format"] == "int8_tensorwise":
        return state["weight"].double()
    columns = 256
    unpacked = torch.stack((codes & 15, codes >> 4), dim=2).flatten(1)[:, :columns]
    if "weight_scale" in state:
        return torch.where(unpacked < 8, unpacked, unpacked - 16).double()
    relative = state["weight_s_rel"].float().repeat_interleave(16, dim=1)
    if "weight_codebook" in state:
        return (state["weight_codebook"][unpacked] * relative).round().clamp(-127, 127).double()
    high = torch.stack([codes[:, columns // 2 :] >> shift & 3 for shift in (0, 2, 4, 6)], dim=2).flatten(1)
    return ((unpacked + 16 * high - 32) * relative).round().clamp(-127, 127).double()


def turned_back(state: State) -> Tensor:
    """A rotated matrix in float64, where every step is exact, rounded once."""
    group = json.loads(bytes(state["comfy_quant"].tolist()))["convrot_groupsize"]
    h = hadamard(group, torch.device("cpu")).double() / math.sqrt(group)
    turned = (integers(state).unflatten(1, (-1, group)) @ h).flatten(1)
    scale = state["weight_scale"] if "weight_scale" in state else state["weight_s_channel"]
    exact: Tensor = turned * scale.double().reshape(-1, 1)
    return exact.float()


@pytest.mark.parametrize("name", CASES)
def test_a_matrix_decodes_as_the_program_that_wrote_it_decodes_it(tmp_path: Path, name: str) -> None:
    state = case(name)
    found, expected = stored(tmp_path, layer(state)), state["values"]
    assert found.format == FORMATS[name.partition("_")[0]]
    got = values(found)[: len(expected)]
    if found.encoding.rotation:  # theirs sums rounded products, in an order of their library's
        largest = expected.abs().amax()
        assert (got - expected).abs().amax() <= 1e-6 * largest
        assert torch.equal(got, turned_back(state))
    else:
        assert torch.equal(got, expected)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(values(found, dtype)[: len(expected)], got.to(dtype))


@pytest.mark.parametrize("name", CASES)
def test_a_matrix_decodes_alike_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    found = stored(tmp_path, layer(case(name)))
    whole = values(found)
    for module in (workspace, floats):
        monkeypatch.setattr(module, "chunk_values", lambda _: 1024)
    assert torch.equal(values(found), whole)


@pytest.mark.parametrize("name", [name for name in CASES if f"{name}/comfy_quant" in RECORDED])
def test_the_header_may_say_it_in_place_of_tensors(tmp_path: Path, name: str) -> None:
    state = case(name)
    conf = json.loads(bytes(state.pop("comfy_quant").tolist()))
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": {"img_in": conf}})}
    there = stored(tmp_path, layer(state), metadata).encoding
    assert there == stored(tmp_path, layer(case(name))).encoding or there.sides != ()
    assert torch.equal(values(stored(tmp_path, layer(state), metadata)), values(stored(tmp_path, layer(case(name)))))


def test_layers_named_without_the_files_prefix_are_found(tmp_path: Path) -> None:
    state, prefix = case("int8_rows"), "model.diffusion_model."
    conf = json.loads(bytes(state.pop("comfy_quant").tolist()))
    metadata = {"_quantization_metadata": json.dumps({"layers": {"img_in": conf}})}
    save_file({prefix + key: value for key, value in layer(state).items()}, tmp_path / "m.safetensors", metadata)
    found = model_tensors(open_weights(tmp_path / "m.safetensors"), prefix, flux_bfl)["img_in.weight"]
    assert torch.equal(values(found), state["values"])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_scales_may_be_of_any_float_type(tmp_path: Path, kind: torch.dtype) -> None:
    state = case("int8_rows")
    scale = state["weight_scale"].to(kind)
    found = stored(tmp_path, layer(state | {"weight_scale": scale}))
    assert torch.equal(values(found), state["weight"].float() * scale.float())


@pytest.mark.parametrize("kind", [torch.uint8, torch.float8_e4m3fn])
@pytest.mark.parametrize("rows", [False, True])
def test_fp8_may_be_stored_as_bytes_with_one_scale_or_one_for_each_row(
    tmp_path: Path, kind: torch.dtype, rows: bool
) -> None:
    codes = torch.randint(0, 126, (24, 32), dtype=torch.uint8).view(torch.float8_e4m3fn)
    scale = torch.rand(24, 1) + 0.1 if rows else torch.tensor(0.0173)
    state = {"weight": codes.view(kind), "weight_scale": scale, "comfy_quant": said(format="float8_e4m3fn")}
    assert torch.equal(values(stored(tmp_path, layer(state))), codes.float() * scale)


def test_inputs_that_the_file_wants_whole_are_noted(tmp_path: Path) -> None:
    state = case("int8") | {"comfy_quant": said(format="int8_tensorwise", full_precision_matrix_mult=True)}
    assert stored(tmp_path, layer(state)).encoding.full_precision
    assert not stored(tmp_path, layer(case("int8"))).encoding.full_precision


def test_options_may_stand_below_params(tmp_path: Path) -> None:
    state = case("int8_rotated_64")
    nested = said(format="int8_tensorwise", params={"convrot": True, "convrot_groupsize": 64})
    assert torch.equal(values(stored(tmp_path, layer(state | {"comfy_quant": nested}))), turned_back(state))


def test_a_factor_of_the_inputs_is_one_of_the_columns(tmp_path: Path) -> None:
    state = case("nvfp4")
    factor = torch.rand(80) + 0.5
    got = values(stored(tmp_path, layer(state | {"pre_quant_scale": factor})))
    assert torch.equal(got[:136], state["values"] * factor)


@pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn])
def test_quanto_keeps_codes_and_scales_below_the_weight(tmp_path: Path, codes: torch.dtype) -> None:
    numbers = torch.randint(-100, 100, (24, 32)).to(codes)
    scale = torch.rand(24, 1).bfloat16()
    found = stored(tmp_path, {"img_in.weight._data": numbers, "img_in.weight._scale": scale})
    assert torch.equal(values(found), numbers.float() * scale.float())


@pytest.mark.parametrize("name", ["nf4", "nf4_nested", "int8_rotated_64", "w4a8"])
def test_parts_of_a_fused_matrix_keep_what_they_are_decoded_with(tmp_path: Path, name: str) -> None:
    state, parts = case(name), ("to_q", "to_k", "to_v")
    save_file(
        {
            key: value.clone()
            for part in parts
            for key, value in layer(state, f"transformer_blocks.0.attn.{part}").items()
        },
        tmp_path / "m.safetensors",
    )
    found = model_tensors(open_weights(tmp_path / "m.safetensors"), "", flux_diffusers)
    one = values(stored(tmp_path, layer(state)))
    assert torch.equal(values(found["double_blocks.0.img_attn.qkv.weight"]), torch.cat([one] * 3))


@pytest.mark.parametrize("name", ["nf4", "int8_rows", "nvfp4"])
def test_diffusers_last_modulation_changes_halves_however_it_is_stored(tmp_path: Path, name: str) -> None:
    state = case(name)
    save_file(layer(state, "norm_out.linear"), tmp_path / "m.safetensors")
    found = model_tensors(open_weights(tmp_path / "m.safetensors"), "", flux_diffusers)
    one = values(stored(tmp_path, layer(state)))
    assert torch.equal(values(found["final_layer.adaLN_modulation.1.weight"]), torch.cat(one.chunk(2)[::-1]))


@pytest.mark.parametrize("group", [4, 16, 64, 256, 1024])
def test_a_rotation_is_its_own_inverse_and_that_of_the_paper(group: int) -> None:
    h = hadamard(group, torch.device("cpu")) / root(group)
    assert torch.equal(h @ h, torch.eye(group)) and torch.equal(h, h.t())
    assert torch.equal(h.sum(0), torch.ones(group)), "a regular Hadamard matrix: all columns have one sum"
    codes = torch.randint(-127, 128, (3, 2 * group)).float()
    turned = codes.clone()
    rotate(turned, group)
    assert torch.equal(turned, (codes.unflatten(1, (2, group)) @ (h * root(group))).flatten(1))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (128, 4), (129, 5), (300, 17), (256, 192)])
def test_scales_in_the_order_of_tensor_cores_are_found_again(rows: int, columns: int) -> None:
    """Written entry by entry: the tile of 128 x 4, and in it row r at (r % 32, r // 32), as cuBLAS describes it."""
    scales = torch.arange(1, rows * columns + 1).view(rows, columns)
    wide = -(-columns // 4)
    stored = torch.zeros(-(-rows // 128) * wide * 512, dtype=scales.dtype)
    for row in range(rows):
        for column in range(columns):
            tile, r = row // 128 * wide + column // 4, row % 128
            stored[512 * tile + 16 * (r % 32) + 4 * (r // 32) + column % 4] = scales[row, column]
    assert torch.equal(unswizzled(stored, rows, columns), scales)


def test_rotations_are_of_powers_of_four() -> None:
    assert [size for size in range(2000) if rotates(size)] == [4, 16, 64, 256, 1024]


NAN = torch.tensor(float("nan"))
BAD: dict[str, tuple[str, dict[str, Any], type[FileFormatError], str]] = {
    "an unknown format": ("int8", {"comfy_quant": said(format="int3_magic")}, UnreadableScheme, "'int3_magic'"),
    "no format": ("int8", {"comfy_quant": said(convrot=True)}, UnreadableScheme, "stored as None"),
    "no JSON": ("int8", {"comfy_quant": torch.zeros(5, dtype=torch.uint8)}, FileFormatError, "is not a JSON"),
    "no table": ("int8", {"comfy_quant": said()[:0]}, FileFormatError, "comfy_quant is not a JSON"),
    "truncated scales": ("int8_rows", {"weight_scale": torch.ones(23, 1)}, FileFormatError, "is F32 [23, 1]"),
    "truncated blocks of scales": (
        "nvfp4", {"weight_scale": torch.ones(128, 8).to(torch.float8_e4m3fn)}, FileFormatError, "is F8_E4M3 [128",
    ),
    "scales that are integers": (
        "int8_rows", {"weight_scale": torch.ones(24, dtype=torch.int32)}, FileFormatError, "weight_scale is I32",
    ),
    "no scales": ("int8_rows", {"weight_scale": None}, FileFormatError, "has no img_in.weight_scale"),
    "no second scale": ("nvfp4", {"weight_scale_2": None}, FileFormatError, "has no img_in.weight_scale_2"),
    "a scale that is NaN": (
        "int8", {"weight": torch.ones(4, 4).to(torch.float8_e4m3fn), "weight_scale": NAN,
                 "comfy_quant": said(format="float8_e4m3fn")}, FileFormatError, "img_in.weight_scale is nan",
    ),
    "codes of another type": ("int8", {"weight": torch.ones(24, 128)}, FileFormatError, "declared as int8"),
    "another rotation": (
        "int8_rows", {"comfy_quant": said(format="int8_tensorwise", convrot=True, convrot_groupsize=96)},
        UnreadableScheme, "rotated in groups of 96 of 128 columns",
    ),
    "columns no rotation fits": (
        "int8_rows", {"comfy_quant": said(format="int8_tensorwise", convrot=True)}, UnreadableScheme, "of 256 of 128",
    ),
    "a tensor nobody knows": (
        "int8_rows", {"weight_correction": torch.zeros(24)}, UnreadableScheme, "with img_in.weight_correction",
    ),
    "two quantisations": ("int8", {"scale_weight": torch.tensor(1.0)}, FileFormatError, "ComfyUI and scaled fp8"),
    "bytes without a word": ("int8_rows", {"comfy_quant": None}, UnreadableScheme, "beside them img_in.weight_scale"),
    "packed words without a word": (
        "int8_rows", {"weight": torch.zeros(24, 16, dtype=torch.int32), "weight_scale": None, "comfy_quant": None},
        UnreadableScheme, "contains bytes (I32)",
    ),
    "integers with the scale of fp8": (
        "int8_rows", {"weight_scale": None, "comfy_quant": None, "scale_weight": torch.tensor(0.5)},
        UnreadableScheme, "beside them img_in.scale_weight",
    ),
    "a scale that is 0": (
        "int8", {"weight": torch.ones(4, 4).to(torch.float8_e4m3fn), "weight_scale": torch.tensor(0.0),
                 "comfy_quant": said(format="float8_e4m3fn")}, FileFormatError, "img_in.weight_scale is 0",
    ),
    "a rotation that the format does not have": (
        "int8", {"weight": torch.ones(4, 64).to(torch.float8_e4m3fn), "weight_scale": torch.tensor(0.5),
                 "comfy_quant": said(format="float8_e4m3fn", convrot=True, convrot_groupsize=64)},
        UnreadableScheme, "float8_e4m3fn with rotated columns",
    ),
    "statistics cut short": ("nf4", {"weight.absmax": torch.ones(7)}, FileFormatError, "weight.absmax is F32 [7]"),
    "codes cut short": ("nf4", {"weight": torch.zeros(9, 1, dtype=torch.uint8)}, FileFormatError, "as nf4 [96, 1"),
    "a state without a shape": (
        "nf4", {"weight.quant_state.bitsandbytes__nf4": said(blocksize=64)}, FileFormatError, "contains no shape",
    ),
    "no table of levels": ("nf4", {"weight.quant_map": None}, FileFormatError, "has no img_in.weight.quant_map"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_what_cannot_be_read_is_one_sentence_about_the_tensor(tmp_path: Path, fault: str) -> None:
    name, change, kind, words = BAD[fault]
    state = {key: value for key, value in (case(name) | change).items() if value is not None}
    with pytest.raises(kind) as refusal:
        stored(tmp_path, layer(state))
    told = str(refusal.value)
    assert words in told and "m.safetensors" in told and "img_in" in told and "\n" not in told
    assert type(refusal.value) is kind


def test_packed_integers_of_quanto_are_named(tmp_path: Path) -> None:
    state = {"img_in.weight._data": torch.zeros(8, 4, dtype=torch.uint8), "img_in.weight._scale": torch.ones(8, 1),
             "img_in.weight._shift": torch.ones(8, 1)}  # fmt: skip
    with pytest.raises(UnreadableScheme, match="optimum-quanto"):
        stored(tmp_path, state)


def test_side_tensors_may_lie_at_any_byte(tmp_path: Path) -> None:
    """An odd number of codes puts what follows at an address where no float may be."""
    codes, scale = torch.randint(-127, 128, (3, 5), dtype=torch.int8), torch.rand(3)
    found = stored(
        tmp_path, layer({"weight": codes, "weight_scale": scale, "comfy_quant": said(format="int8_tensorwise")})
    )
    assert found.encoding.sides[0].start == 15
    assert torch.equal(values(found), codes.float() * scale[:, None])


def test_an_encoding_counts_its_bytes() -> None:
    assert Encoding("NF4").nbytes((64, 64)) == 2048
