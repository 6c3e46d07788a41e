"""Transformers in every format that weights are stored in, as the programs of the format write files.

A file has several formats, each of its matrices in the next one, so that a few files show all of them. Plain numbers
and fp8 are the given weights, rounded. Of the others the codes are random and their scales such that the values are as
large as weights are: how values become codes is tested elsewhere.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Protocol

import gguf
import torch
from safetensors.torch import save_file
from sluice.flux_core.models.flux_config import FluxConfig
from sluice.flux_core.quant.gguf_blocks import BLOCKS
from sluice.flux_core.quant.sizes import BLOCK
from torch import Tensor

from .diffusers_names import diffusers_weights


class Shaped(Protocol):
    @property
    def shape(self) -> Sequence[int]: ...


State = Mapping[str, Tensor]
Parts = dict[str, Tensor]  # suffix of a name -> tensor
Matrix = Callable[[Tensor, torch.Generator], Parts]  # weight float32 [N, K] -> what the file has in its place
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def in_block(name: str, tensor: Shaped) -> bool:
    """Whether published files quantise this tensor."""
    return len(tensor.shape) == 2 and "_blocks." in name


def generator_of(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


# -- what stands in the place of one matrix --------------------------------------------------------------------------


def said(**conf: object) -> Tensor:
    return torch.tensor(list(json.dumps(conf).encode()), dtype=torch.uint8)


def _bytes(generator: torch.Generator, *shape: int, most: int = 256) -> Tensor:
    return torch.randint(0, most, shape, dtype=torch.uint8, generator=generator)


def _shares(generator: torch.Generator, *shape: int) -> Tensor:
    """Numbers between 1/2 and 1."""
    return 0.5 + 0.5 * torch.rand(shape, generator=generator)


def _e4m3(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator).to(E4M3)


def fp8_scaled(weight: Tensor, generator: torch.Generator) -> Parts:
    scale = weight.abs().max() / 448
    return {".weight": (weight / scale).to(E4M3), ".scale_weight": scale}


def fp8_rows(weight: Tensor, generator: torch.Generator) -> Parts:
    scale = weight.abs().amax(1, keepdim=True) / 448
    return {".weight": (weight / scale).to(E4M3), ".weight_scale": scale, ".comfy_quant": said(format="float8_e4m3fn")}


def int8(weight: Tensor, generator: torch.Generator) -> Parts:
    scale = weight.abs().amax(1, keepdim=True) / 127
    codes = (weight / scale).round().to(torch.int8)
    return {".weight": codes, ".weight_scale": scale, ".comfy_quant": said(format="int8_tensorwise")}


def int8_rotated(weight: Tensor, generator: torch.Generator) -> Parts:
    rows, columns = weight.shape
    return {
        ".weight": _bytes(generator, rows, columns).view(torch.int8),
        ".weight_scale": _shares(generator, rows, 1) / 74 * columns**-0.5,
        ".comfy_quant": said(format="int8_tensorwise", convrot=True, convrot_groupsize=256),
    }


def convrot_w4a4(weight: Tensor, generator: torch.Generator) -> Parts:
    rows, columns = weight.shape
    return {
        ".weight": _bytes(generator, rows, columns // 2).view(torch.int8),
        ".weight_scale": _shares(generator, rows) / 4.6 * columns**-0.5,
        ".comfy_quant": said(format="convrot_w4a4", convrot_groupsize=64),
    }


def w4a8(weight: Tensor, generator: torch.Generator) -> Parts:
    rows, columns = weight.shape
    return {
        ".weight": _bytes(generator, rows, columns // 2).view(torch.int8),
        ".weight_s_rel": _shares(generator, rows, columns // 16).to(E4M3),
        ".weight_s_channel": _shares(generator, rows) / 70 * columns**-0.5,
        ".weight_codebook": torch.linspace(-127, 127, 16),
        ".comfy_quant": said(format="asym_w4a8_int8", group_size=16, convrot_groupsize=256),
    }


def w6a8(weight: Tensor, generator: torch.Generator) -> Parts:
    rows, columns = weight.shape
    return {
        ".weight": _bytes(generator, rows, columns * 3 // 4).view(torch.int8),
        ".weight_s_rel": (3 * _shares(generator, rows, columns // 16)).to(E4M3),
        ".weight_s_channel": _shares(generator, rows) / 50 * columns**-0.5,
        ".comfy_quant": said(format="asym_w4a8_int8", group_size=16, convrot_groupsize=256),
    }


def awq(weight: Tensor, generator: torch.Generator) -> Parts:
    rows, columns = weight.shape
    scale, zeros = (_shares(generator, columns // 64, rows) * columns**-0.5 for _ in range(2))
    return {
        ".weight": _bytes(generator, rows, columns // 2).view(torch.int8),
        ".weight_scale": (scale / 4.6).bfloat16(),
        ".weight_zeros": (zeros - zeros.mean()).bfloat16(),
        ".comfy_quant": said(format="awq_w4a16", group_size=64),
    }


def bits4(kind: str, nested: bool) -> Matrix:
    """bitsandbytes' nf4 or fp4; nested: the statistics of blocks are stored as codes of a table themselves."""

    def parts(weight: Tensor, generator: torch.Generator) -> Parts:
        rows, columns = weight.shape
        blocks, size = weight.numel() // 64, columns**-0.5
        state: dict[str, object] = {"quant_type": kind, "blocksize": 64, "shape": [rows, columns], "dtype": "bfloat16"}
        found = {".weight": _bytes(generator, weight.numel() // 2, 1), ".weight.quant_map": torch.linspace(-1, 1, 16)}
        if nested:
            state |= {"nested_blocksize": 256, "nested_offset": size}
            found |= {
                ".weight.absmax": _bytes(generator, blocks),
                ".weight.nested_absmax": _shares(generator, -(-blocks // 256)) * size,
                ".weight.nested_quant_map": torch.linspace(-0.5, 0.5, 256),
            }
        else:
            found[".weight.absmax"] = 2 * _shares(generator, blocks) * size
        text = json.dumps(state).encode()
        found[f".weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(text), dtype=torch.uint8)
        return found

    return parts


def nvfp4(weight: Tensor, generator: torch.Generator) -> Parts:
    rows, columns = weight.shape
    tall, wide = -(-rows // 128) * 128, -(-columns // 64) * 4
    return {
        ".weight": _bytes(generator, rows, columns // 2),
        ".weight_scale": _shares(generator, tall, wide).to(E4M3),
        ".weight_scale_2": torch.tensor(0.4 * columns**-0.5),
        ".comfy_quant": said(format="nvfp4"),
    }


def mxfp8(weight: Tensor, generator: torch.Generator) -> Parts:
    rows, columns = weight.shape
    tall, wide = -(-rows // 128) * 128, -(-columns // 128) * 4
    return {
        ".weight": _e4m3(generator, rows, columns),
        ".weight_scale": 122 + _bytes(generator, tall, wide, most=3),
        ".comfy_quant": said(format="mxfp8"),
    }


def quanto(weight: Tensor, generator: torch.Generator) -> Parts:
    parts = int8(weight, generator)
    return {".weight._data": parts[".weight"], ".weight._scale": parts[".weight_scale"].bfloat16()}


def numbers(dtype: torch.dtype) -> Matrix:
    return lambda weight, generator: {".weight": weight.to(dtype)}


FILES: dict[str, dict[str, Matrix]] = {
    "numbers": {
        "F64": numbers(torch.float64),
        "F32": numbers(torch.float32),
        "F16": numbers(torch.float16),
        "BF16": numbers(torch.bfloat16),
        "F8_E4M3": numbers(E4M3),
        "F8_E5M2": numbers(E5M2),
    },
    "scaled fp8": {"F8_E4M3": fp8_scaled},
    "ComfyUI": {
        "F8_E4M3": fp8_rows,
        "INT8": int8,
        "INT8, rotated": int8_rotated,
        "INT4": convrot_w4a4,
        "W4A8": w4a8,
        "W6A8": w6a8,
        "AWQ4": awq,
        "NVFP4": nvfp4,
        "MXFP8": mxfp8,
    },
    "bitsandbytes and quanto": {
        "NF4": bits4("nf4", False),
        "NF4, nested": bits4("nf4", True),
        "FP4": bits4("fp4", False),
        "FP4, nested": bits4("fp4", True),
        "INT8": quanto,
    },
}

# -- whole files -----------------------------------------------------------------------------------------------------

HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2))}
LARGEST = {"Q2_K": 45, "Q3_K": 128, "Q4_K": 945, "Q5_K": 1953, "Q6_K": 4096, "IQ4_XS": 4064, "IQ4_NL": 127,
           "Q8_0": 127, "IQ2_XXS": 167, "IQ2_XS": 167, "IQ2_S": 167, "IQ3_XXS": 480,
           "IQ3_S": 465}  # of the integers that a scale multiplies; 16 of the others  # fmt: skip


def gguf_blocks(format: str, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """uint8 [rows, bytes of a row]: random codes, with float16 scales that make weights of them."""
    rows, columns = shape
    values, nbytes = BLOCK[format]
    raw = _bytes(generator, rows * columns // values, nbytes)
    if format == "MXFP4":
        raw[:, 0] = 120 + raw[:, 0] % 3  # exponents: 127 is 1
    elif format == "NVFP4_GGUF":
        raw[:, :4] = 16 + raw[:, :4] % 8
    elif format == "IQ1_M":
        raw[:, 55] = raw[:, 55] & 0x0F | 0x20  # the highest bits of a float16
    else:
        for at in HALVES.get(format, (0,)):
            scale = 2 * _shares(generator, len(raw), 1) / LARGEST.get(format, 16) * columns**-0.5
            raw[:, at : at + 2] = scale.half().view(torch.uint8)
    return raw.view(rows, -1)


def write_gguf(path: Path, state: State) -> None:
    """Every format of blocks in one file."""
    writer, formats = gguf.GGUFWriter(path, "flux"), cycle(BLOCKS)
    for name, value in state.items():
        if in_block(name, value):
            format = next(formats)
            blocks = gguf_blocks(format, (value.shape[0], value.shape[1]), generator_of(name))
            writer.add_tensor(name, blocks.numpy(), raw_dtype=gguf.GGMLQuantizationType[format.removesuffix("_GGUF")])
        else:
            writer.add_tensor(name, value.float().numpy(), raw_dtype=gguf.GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_safetensors(path: Path, state: State, file: str) -> None:
    """Matrices inside blocks in the formats of FILES[file], one after the other, the rest in bfloat16."""
    tensors: dict[str, Tensor] = {}
    matrices = cycle(FILES[file].values())
    for name, value in state.items():
        if in_block(name, value):
            parts = next(matrices)(value.float(), generator_of(name))
            tensors |= {name.removesuffix(".weight") + suffix: part for suffix, part in parts.items()}
        else:
            tensors[name] = value.bfloat16()
    if file == "scaled fp8":
        tensors["scaled_fp8"] = torch.zeros(2, dtype=E4M3)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)


def formats_of(file: str) -> set[str]:
    return set(BLOCKS) if file == "GGUF" else {kind.partition(",")[0] for kind in FILES[file]}


def write(folder: Path, state: State, config: FluxConfig, file: str, diffusers: bool = False) -> Path:
    """The weights of `state` in a file of this kind. Returns its path. diffusers: under diffusers' names."""
    path = folder / ("flux.gguf" if file == "GGUF" else "flux.safetensors")
    state = diffusers_weights(state, config) if diffusers else state
    if file == "GGUF":
        write_gguf(path, state)
    else:
        write_safetensors(path, state, file)
    return path
