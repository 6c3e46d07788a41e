"""Adapter files of every kind for one transformer, small and strong enough that a picture changes.

Each function returns the tensors of a file as its trainers write them. Matrices follow from their names.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .sampling_cases import Case, picture, prompt, with_values

State = Mapping[str, Tensor]  # BFL name -> parameter of the transformer
File = dict[str, Tensor]
RANK, ALPHA = 4, 2.0
STRENGTH = 0.15  # of random adapters


def draw(name: str, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()))) * scale


def sizes(state: State, module: str) -> tuple[int, int]:
    rows, columns = state[f"{module}.weight"].shape
    return rows, columns


def kohya_name(module: str) -> str:
    return f"lora_unet_{module.replace('.', '_')}"


def factors(name: str, rows: int, columns: int, suffixes: tuple[str, str]) -> File:
    """A low-rank pair (up, down), whose product is about a seventh of a matrix of variance 1 / columns."""
    up, down = suffixes
    return {
        name + up: draw(name + up, rows, RANK, scale=STRENGTH),
        name + down: draw(name + down, RANK, columns, scale=columns**-0.5),
    }


def lora_kohya(state: State, *modules: str) -> File:
    file: File = {}
    for module in modules:
        name = kohya_name(module)
        file |= factors(name, *sizes(state, module), (".lora_up.weight", ".lora_down.weight"))
        file[f"{name}.alpha"] = torch.tensor(ALPHA)
    return file


def plain(state: State) -> File:
    """LoRA in both kinds of blocks, on modulation as well."""
    inside = ("double_blocks.0.img_attn.qkv", "double_blocks.0.txt_mlp.2", "single_blocks.0.linear1")
    return lora_kohya(state, *inside, "single_blocks.1.linear2", "double_blocks.0.img_mod.lin")


def outside_of_blocks(state: State) -> File:
    """LoRA on what comes before and after the blocks."""
    text = ("txt_in", "vector_in.out_layer", "time_in.in_layer", "guidance_in.in_layer")
    return lora_kohya(state, "img_in", *text, "final_layer.linear", "final_layer.adaLN_modulation.1")


def diffusers(state: State) -> File:
    """LoRA on parts of fused matrices, and on the modulation whose halves are exchanged."""
    hidden, names = state["img_in.weight"].shape[0], {}
    names["transformer_blocks.0.attn.to_k"] = (hidden, hidden)
    names["transformer_blocks.0.attn.add_v_proj"] = (hidden, hidden)
    names["single_transformer_blocks.0.proj_mlp"] = (len(state["single_blocks.0.linear1.weight"]) - 3 * hidden, hidden)
    names["norm_out.linear"] = (2 * hidden, hidden)
    file: File = {}
    for name, (rows, columns) in names.items():
        file |= factors(f"transformer.{name}", rows, columns, (".lora_B.weight", ".lora_A.weight"))
    return file


def xlabs(state: State) -> File:
    hidden = state["img_in.weight"].shape[0]
    file: File = {}
    for number in (1, 2):
        name = f"double_blocks.0.processor.qkv_lora{number}"
        file |= factors(name, 3 * hidden, hidden, (".up.weight", ".down.weight"))
    return file | factors("double_blocks.0.processor.proj_lora1", hidden, hidden, (".up.weight", ".down.weight"))


def loha(state: State) -> File:
    file: File = {}
    for module in ("double_blocks.0.img_mlp.0", "single_blocks.1.linear2"):
        rows, columns = sizes(state, module)
        name = kohya_name(module)
        for part, rank in (("1", 3), ("2", 2)):
            file[f"{name}.hada_w{part}_a"] = draw(f"{name} {part} a", rows, rank, scale=0.3)
            file[f"{name}.hada_w{part}_b"] = draw(f"{name} {part} b", rank, columns, scale=0.3)
        file[f"{name}.alpha"] = torch.tensor(ALPHA)
    return file


def lokr(state: State) -> File:
    """Kronecker products, one with a low-rank factor and one on the modulation whose halves are exchanged."""
    hidden = state["img_in.weight"].shape[0]
    whole, low = "lycoris_single_transformer_blocks_0_attn_to_v", "lycoris_transformer_blocks_0_attn_to_out_0"
    swapped = "lycoris_norm_out_linear"
    part = hidden // 8
    return {
        f"{whole}.lokr_w1": draw(whole + "1", 8, 8, scale=0.2),
        f"{whole}.lokr_w2": draw(whole + "2", part, part, scale=0.2),
        f"{low}.lokr_w1": draw(low + "1", 8, 8, scale=0.2),
        f"{low}.lokr_w2_a": draw(low + "a", part, RANK, scale=0.3),
        f"{low}.lokr_w2_b": draw(low + "b", RANK, part, scale=0.3),
        f"{low}.alpha": torch.tensor(ALPHA),
        f"{swapped}.lokr_w1": draw(swapped + "1", 2, 1, scale=0.2),
        f"{swapped}.lokr_w2": draw(swapped + "2", hidden, hidden, scale=0.1),
    }


def dora(state: State) -> File:
    """Magnitudes of rows, of columns, and of a part of the rows."""
    file: File = {}
    for module, axis in (("double_blocks.0.img_attn.proj", 1), ("single_blocks.0.linear1", 0)):
        norm = state[f"{module}.weight"].float().norm(dim=axis, keepdim=True)
        file |= lora_kohya(state, module)
        file[f"{kohya_name(module)}.dora_scale"] = norm * (1 + draw(module + " norm", *norm.shape, scale=0.2))
    name, hidden = "transformer.transformer_blocks.0.attn.to_q", state["img_in.weight"].shape[0]
    file |= factors(name, hidden, hidden, (".lora_B.weight", ".lora_A.weight"))
    file[f"{name}.dora_scale"] = 1 + draw(name + " norm", hidden, 1, scale=0.2)
    return file


def oft(state: State) -> File:
    """LyCORIS' blocks of rows, on a whole matrix and on a part of one. An alpha of 0 is no limit."""
    hidden = state["img_in.weight"].shape[0]
    file: File = {}
    for name in ("lora_unet_double_blocks_0_img_attn_proj", "lycoris_single_transformer_blocks_0_attn_to_k"):
        file[f"{name}.oft_blocks"] = draw(name, 8, hidden // 8, hidden // 8, scale=0.05)
        file[f"{name}.alpha"] = torch.tensor(0.0)
    return file


def oft_rescaled(state: State) -> File:
    name = "lora_unet_double_blocks_0_img_attn_proj"
    return oft(state) | {f"{name}.rescale": 1 + draw("rescale", state["img_in.weight"].shape[0], 1, scale=0.2)}


def oft_kohya(state: State) -> File:
    """A block matrix for each of the matrices that FLUX joins; alpha limits them."""
    name, rows = "oft_unet_single_blocks_1_linear1", len(state["single_blocks.1.linear1.weight"])
    hidden = state["img_in.weight"].shape[0]
    parts = (hidden, hidden, hidden, rows - 3 * hidden)
    blocks = {
        f"{name}.oft_blocks.{number}": draw(f"{name} {number}", 4, size // 4, size // 4, scale=0.05)
        for number, size in enumerate(parts)
    }
    return blocks | {f"{name}.alpha": torch.tensor(0.02)}


def oft_peft(state: State) -> File:
    """Blocks of columns."""
    name, columns = "transformer.transformer_blocks.0.attn.to_out.0.oft_R", state["img_in.weight"].shape[0]
    return {f"{name}.weight": draw(name, columns // 8, 28, scale=0.05)}


def boft(state: State) -> File:
    name, hidden = "lora_unet_double_blocks_0_txt_attn_proj", state["img_in.weight"].shape[0]
    return {
        f"{name}.oft_blocks": draw(name, 3, hidden // 8, 8, 8, scale=0.1),
        f"{name}.rescale": 1 + draw("rescale", hidden, 1, scale=0.2),
        f"{name}.alpha": torch.tensor(0.0),
    }


def difference(state: State) -> File:
    """Full differences of matrices and biases, of a norm's scale too."""
    module = "double_blocks.0.img_mlp.2"
    rows, columns = sizes(state, module)
    return {
        f"{kohya_name(module)}.diff": draw(module, rows, columns, scale=STRENGTH * columns**-0.5),
        f"{kohya_name(module)}.diff_b": draw(module + " bias", rows, scale=0.1),
        f"{kohya_name('txt_in')}.diff_b": draw("txt_in bias", len(state["txt_in.bias"]), scale=0.1),
        f"{kohya_name('double_blocks.0.img_mod.lin')}.diff_b": draw(
            "img_mod bias", len(state["double_blocks.0.img_mod.lin.bias"]), scale=0.1
        ),
    }


def control(state: State) -> File:
    """FLUX.1-Depth-lora and Canny-lora: a wider input, biases, and scales of query and key norms."""
    file: File = {}
    for module in ("img_in", "double_blocks.0.img_attn.qkv", "single_blocks.0.linear1", "final_layer.linear"):
        rows, columns = sizes(state, module)
        columns = 2 * columns if module == "img_in" else columns
        file |= factors(module, rows, columns, (".lora_B.weight", ".lora_A.weight"))
        file[f"{module}.lora_B.bias"] = draw(module + " bias", rows, scale=0.1)
    for name in ("single_blocks.0.norm.key_norm.scale", "double_blocks.0.img_attn.norm.query_norm.scale"):
        file[name] = 1 + draw(name, *state[name].shape, scale=0.2)
    return file


KINDS = {
    "LoRA": plain,
    "LoRA outside of blocks": outside_of_blocks,
    "LoRA of diffusers": diffusers,
    "LoRA of XLabs": xlabs,
    "LoHa": loha,
    "LoKr": lokr,
    "DoRA": dora,
    "OFT": oft,
    "OFT with a rescale": oft_rescaled,
    "OFT of kohya": oft_kohya,
    "OFT of PEFT": oft_peft,
    "BOFT": boft,
    "difference": difference,
    "control": control,
}

# A transformer that is large enough for every kind, and for streaming.
SIZES: dict[str, Any] = {
    "in_channels": 16, "out_channels": 16, "hidden": 128, "heads": 1, "head_dim": 128, "mlp": 512, "depth": 1,
    "depth_single": 3, "context_dim": 12, "vec_dim": 9, "guidance": True, "axes_dim": (16, 56, 56),
}  # fmt: skip

# Files by kind, at their strengths, one after the other.
Uses = tuple[tuple[str, float], ...]
CASES: dict[str, Uses] = {kind: ((kind, 0.8),) for kind in KINDS} | {
    "OFT": (("OFT", 1.0),),  # at other strengths ComfyUI's rotations are other ones (adapters/rotations.py)
    "BOFT": (("BOFT", 1.0),),
    "OFT at another strength": (("OFT", -0.5), ("BOFT", 0.4)),
    "LoRA, DoRA and a difference": (("LoRA", 0.7), ("DoRA", 0.8), ("difference", 1.0)),
    "DoRA after others": (("LoRA", 0.7), ("difference", 0.5), ("DoRA", 0.8)),
    "OFT among others": (("LoRA", 0.7), ("OFT", 1.0), ("DoRA", -0.4), ("LoRA of diffusers", 0.6)),
    "one file twice": (("LoRA", 0.7), ("LoKr", 0.4), ("LoRA", -0.3)),
    "control before others": (("control", 0.9), ("LoRA", 0.7), ("LoHa", 0.5)),
    "control after others": (("LoRA outside of blocks", 0.5), ("LoHa", 0.4), ("control", 0.9)),
}
# What ComfyUI 0.3.64 does not read, or does not follow.
OURS_ALONE = {"LoRA of XLabs", "OFT of kohya", "OFT of PEFT", "OFT with a rescale", "OFT at another strength"}


def sampling_case(name: str) -> Case:
    """The run that shows what these adapters change: two steps, and a picture to follow for control LoRAs."""
    positive = prompt("a", guidance=3.5)
    if "control" in name:
        positive = with_values(positive, concat_latent_image=picture("depth"))
    return Case(positive=positive, steps=2)
