"""A workflow with GGUF files gives the image of the numbers that the files stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_config import FluxConfig, axes_of
from sluice.flux_core.models.t5 import T5Config, T5Encoder
from torch import Tensor, nn

TYPE = gguf.GGMLQuantizationType
Run = Callable[..., list[Path]]
State = dict[str, Tensor]

FLUX = FluxConfig(  # rows of 256, as blocks of k-quants are
    in_channels=16, out_channels=16, hidden=256, heads=2, head_dim=128, mlp=512, depth=1, depth_single=1,
    context_dim=256, vec_dim=32, guidance=True, axes_dim=axes_of(128),
)  # fmt: skip
T5 = T5Config(vocabulary=512, width=256, inner=256, heads=4, mlp=512, layers=2)
LLAMA = {  # llama.cpp's names
    "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b", "layer.0.SelfAttention.q": "attn_q",
    "layer.0.SelfAttention.k": "attn_k", "layer.0.SelfAttention.v": "attn_v", "layer.0.SelfAttention.o": "attn_o",
    "layer.0.layer_norm": "attn_norm", "layer.1.DenseReluDense.wi_0": "ffn_gate", "layer.1.layer_norm": "ffn_norm",
    "layer.1.DenseReluDense.wi_1": "ffn_up", "layer.1.DenseReluDense.wo": "ffn_down",
    "encoder.final_layer_norm": "enc.output_norm", "encoder.block": "enc.blk", "shared": "token_embd",
}  # fmt: skip
STEPS = {  # k-quants: where a block keeps its step and what is subtracted, and the middle of its levels
    TYPE.Q2_K: (80, 82, 1.5), TYPE.Q3_K: (108, None, 0), TYPE.Q4_K: (0, 2, 7.5), TYPE.Q5_K: (0, 2, 15.5),
    TYPE.Q6_K: (208, None, 0),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory, random_weights: Callable[[nn.Module, str], dict[str, Tensor]]
) -> Callable[[TYPE], Path]:
    """files(kind): a models folder with a transformer and a T5 in this quantisation, and the same as safetensors."""
    flux, t5 = random_weights(Flux(FLUX), "flux"), random_weights(T5Encoder(T5), "t5")

    def make(kind: TYPE) -> Path:
        folder = tmp_path_factory.mktemp("models")
        for category, name, state, arch in (
            ("unet", f"flux1-dev-{kind.name}", flux, "flux"),
            ("clip", f"t5-v1_1-xxl-encoder-{kind.name}", t5, "t5encoder"),
        ):
            (folder / category).mkdir()
            stored = write(folder / category / f"{name}.gguf", state, kind, arch)
            save_file(stored, folder / category / f"{name}.safetensors")
        return folder

    return make


def write(path: Path, state: State, kind: TYPE, arch: str) -> State:
    """Write the file; the numbers it stands for, in float32."""
    writer, stands_for = gguf.GGUFWriter(path, arch), {}
    writer.add_quantization_version(2)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    if arch == "t5encoder":
        writer.add_string("tokenizer.ggml.model", "t5")
        writer.add_array("tokenizer.ggml.tokens", [f"piece {number}" for number in range(T5.vocabulary)])
    for name, value in state.items():
        data, kept = quantised(value.numpy(), kind)
        for theirs, llamas in LLAMA.items() if arch == "t5encoder" else ():
            name = name.replace(theirs, llamas)
        writer.add_tensor(name, data, raw_dtype=kept)
        stands_for[name] = gguf.quants.dequantize(data, kept).reshape(value.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {own: torch.from_numpy(np.array(stored)) for own, stored in zip(state, stands_for.values(), strict=True)}


def quantised(value: np.ndarray, kind: TYPE) -> tuple[np.ndarray, TYPE]:
    """Vectors and small matrices stay in float32, and in float16 what does not divide into blocks."""
    if value.ndim < 2 or value.size <= 1024:
        return value, TYPE.F32
    if value.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        return value.astype(np.float16), TYPE.F16
    return (k_blocks(value.shape, kind) if kind in STEPS else gguf.quants.quantize(value, kind)), kind


def k_blocks(shape: tuple[int, ...], kind: TYPE) -> np.ndarray:
    """The package reads these and writes none: any blocks will do, of mean 0 and variance 1 / fan-in."""
    values, nbytes = gguf.GGML_QUANT_SIZES[kind]
    step_at, minimum_at, middle = STEPS[kind]
    blocks = np.random.default_rng(shape[0]).integers(0, 256, (shape[0] * shape[1] // values, nbytes), np.uint8)

    def with_step(step: float) -> np.ndarray:
        blocks[:, step_at : step_at + 2] = np.float16(step).reshape(1).view(np.uint8)
        if minimum_at is not None:
            blocks[:, minimum_at : minimum_at + 2] = np.float16(step * middle).reshape(1).view(np.uint8)
        return blocks.reshape(shape[0], -1)

    return with_step(shape[1] ** -0.5 / gguf.quants.dequantize(with_step(1), kind).std())


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def workflow(unet: dict[str, Any], clip: dict[str, Any]) -> dict[str, Any]:
    return {
        "4": node("CLIPTextEncode", text="a fox", clip=["11", 0]),
        "5": node("FluxGuidance", guidance=3.5, conditioning=["4", 0]),
        "6": node("EmptySD3LatentImage", width=96, height=64, batch_size=1),
        "7": node(
            "KSampler", seed=1, steps=2, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
            model=["12", 0], positive=["5", 0], negative=["4", 0], latent_image=["6", 0],
        ),
        "8": node("VAEDecode", samples=["7", 0], vae=["10", 0]),
        "9": node("SaveImage", filename_prefix="ComfyUI", images=["8", 0]),
        "10": node("VAELoader", vae_name="ae.safetensors"), "11": clip, "12": unet,
    }  # fmt: skip


def pixels(picture: Path) -> np.ndarray:
    with Image.open(picture) as image:
        return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", [TYPE.BF16, TYPE.Q8_0, TYPE.Q5_1, TYPE.Q4_0, *STEPS], ids=lambda kind: kind.name)
def test_the_picture_is_that_of_the_numbers_the_files_stand_for(
    kind: TYPE, files: Callable[[TYPE], Path], here: Path, sluice_run: Run
) -> None:
    folder, flux, t5 = files(kind), f"flux1-dev-{kind.name}", f"t5-v1_1-xxl-encoder-{kind.name}"
    both = {"clip_name1": "clip_l.safetensors", "type": "flux"}
    loaders = {
        "gguf": (
            node("UnetLoaderGGUF", unet_name=f"{flux}.gguf"),
            node("DualCLIPLoaderGGUF", clip_name2=f"{t5}.gguf", **both),
        ),
        "plain": (
            node("UNETLoader", unet_name=f"{flux}.gguf", weight_dtype="default"),
            node("DualCLIPLoader", clip_name2=f"{t5}.gguf", **both),
        ),
        "advanced": (
            node(
                "UnetLoaderGGUFAdvanced",
                unet_name=f"{flux}.gguf",
                dequant_dtype="float16",
                patch_dtype="target",
                patch_on_device=True,
            ),  # fmt: skip
            node("DualCLIPLoaderGGUF", clip_name2=f"{t5}.gguf", **both),
        ),
        "numbers": (
            node("UNETLoader", unet_name=f"{flux}.safetensors", weight_dtype="default"),
            node("DualCLIPLoader", clip_name2=f"{t5}.safetensors", **both),
        ),
    }
    seen = {}
    for name, (unet, clip) in loaders.items():
        (here / "api.json").write_text(json.dumps(workflow(unet, clip)))
        (picture,) = sluice_run(here / "api.json", "--models", str(folder))
        seen[name] = pixels(picture)
    assert np.array_equal(seen["gguf"], seen["plain"]) and np.array_equal(seen["gguf"], seen["advanced"])
    assert abs(seen["gguf"] - seen["numbers"]).max() <= 1
