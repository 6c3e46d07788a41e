"""Files that `sluice convert` writes, loaded by ComfyUI itself: from each, the picture that our program makes of it.

    python tests/comfyui/converted.py /path/to/ComfyUI [--gguf /path/to/ComfyUI-GGUF]

The shipped model is converted to every format. ComfyUI loads each file as its UNETLoader does, GGUF through city96's
pack, and samples with ComfyUI's own FLUX; latents are compared with ours of the same file, both in float32. A ComfyUI
that does not know `comfy_quant` (before the end of 2025) cannot load fp8 and int8; their matrices are then given to
comfy-kitchen, if it is installed, as a newer ComfyUI's loader gives them, and compared with what our decoder makes.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(Path(__file__).parent)]

import conftest  # noqa: E402, F401  # this checkout as `sluice`, before ComfyUI is there
from inside import enter  # noqa: E402
from samplers import difference, run  # noqa: E402  # now: ComfyUI has modules of these names
from sluice.flux_core.checkpoint.detect import detect  # noqa: E402
from sluice.flux_core.checkpoint.files import open_weights  # noqa: E402
from sluice.flux_core.checkpoint.load import read  # noqa: E402
from sluice.flux_core.commands import cli  # noqa: E402
from sluice.flux_core.images.files import to_pil  # noqa: E402
from sluice.flux_core.images.similarity import psnr  # noqa: E402
from sluice.flux_core.io.folders import TINY_MODELS  # noqa: E402
from sluice.flux_core.models.flux_config import FluxConfig  # noqa: E402
from sluice.flux_core.quant.formats import decode  # noqa: E402
from sluice.flux_core.runtime import handles  # noqa: E402
from sluice.flux_core.runtime.runtime import Runtime  # noqa: E402
from sluice.flux_core.runtime.settings import Settings  # noqa: E402
from sluice.nodes import NODE_CLASSES  # noqa: E402
from sluice.nodes.binding import bound_to  # noqa: E402
from sluice.nodes.host import pack_host  # noqa: E402

SOURCE = TINY_MODELS / "diffusion_models/sluice-tiny.safetensors"
NUMBERS = ("bf16", "fp16", "fp32")
QUANTISED = ("fp8", "int8", "int8 --rotate")  # in ComfyUI's layout of 2026
BLOCKS = ("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0")
Load = Callable[[Path], Any]


def converted(folder: Path, words: str) -> Path:
    ending = "gguf" if words in BLOCKS else "safetensors"
    file = folder / f"{words.replace(' --', '_')}.{ending}"
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        assert cli.main(["convert", str(SOURCE), "--out", str(file), "--to", *words.split()]) == 0
    return file


def sizes_from_the_file() -> None:
    """ComfyUI's FLUX has the width of FLUX.1; for the shipped model all sizes come from the shapes of its file."""
    import comfy.model_detection as detection

    original = detection.detect_unet_config

    def detected(state: Mapping[str, Any], prefix: str, metadata: Any = None) -> Any:
        found = original(state, prefix, metadata=metadata)
        shapes = {name.removeprefix(prefix): shape_of(tensor) for name, tensor in state.items()}
        config = FluxConfig.from_shapes(shapes)
        sizes = {"hidden_size": config.hidden, "num_heads": config.heads, "axes_dim": list(config.axes_dim)}
        return {**found, **sizes, "context_in_dim": config.context_dim, "mlp_ratio": config.mlp / config.hidden}

    detection.detect_unet_config = detected


def shape_of(tensor: Any) -> tuple[int, ...]:
    return tuple(getattr(tensor, "tensor_shape", tensor.shape))  # what city96's pack calls the shape before packing


def loaders(gguf: Path | None) -> dict[str, Load]:
    """For each ending, how ComfyUI loads a transformer from a file."""
    import comfy.sd
    import torch

    float32 = {"dtype": torch.float32}  # as --force-fp32 would have it
    found: dict[str, Load] = {".safetensors": lambda file: comfy.sd.load_diffusion_model(str(file), float32)}
    if gguf is not None:
        import importlib

        sys.path.insert(0, str(gguf.parent))
        ops, loader = (importlib.import_module(f"{gguf.name}.{name}") for name in ("ops", "loader"))

        def load(file: Path) -> Any:
            operations = ops.GGMLOps()
            operations.Linear.dequant_dtype = torch.float32
            state = loader.gguf_sd_loader(str(file))
            return comfy.sd.load_diffusion_model_state_dict(state, {"custom_operations": operations, **float32})

        found[".gguf"] = load
    return found


class Pictures:
    """The same prompt and seed through ComfyUI's FLUX and through ours."""

    def __init__(self) -> None:
        self.runtime = Runtime(Settings("cpu", "fp32", compute="16bit"))
        nodes = bound_to(pack_host(), NODE_CLASSES)
        text = TINY_MODELS / "text_encoders"
        files = [text / f"sluice-tiny-{name}.safetensors" for name in ("clip_l", "t5xxl")]
        clip = handles.load_text(self.runtime, files, tokenizers=[TINY_MODELS / "tokenizers"])
        (self.positive,) = nodes["SluiceCLIPTextEncode"]().encode("a red circle", clip)
        self.coder = handles.load_autoencoder(self.runtime, TINY_MODELS / "vae/sluice-tiny-ae.safetensors")
        self.nodes = nodes

    def theirs(self, model: Any) -> Any:
        import comfy_extras.nodes_custom_sampler as custom

        (guider,) = custom.BasicGuider().get_guider(model, self.positive)
        return run("euler", guider, *self._start())

    def ours(self, file: Path) -> Any:
        model = handles.load_flux(self.runtime, file)
        (guider,) = self.nodes["SluiceBasicGuider"]().guide(model, self.positive)
        (noise,) = self.nodes["SluiceRandomNoise"]().make(7)
        (sampler,) = self.nodes["SluiceKSamplerSelect"]().select("euler")
        latent, sigmas = self._start()
        made = self.nodes["SluiceSamplerCustomAdvanced"]().sample(noise, guider, sampler, sigmas, latent)
        return [one["samples"] for one in made]

    def _start(self) -> tuple[dict[str, Any], Any]:
        import torch

        return {"samples": torch.zeros(1, 16, 8, 8)}, torch.linspace(1, 0, 9)

    def decoded(self, latents: Any) -> Any:
        return to_pil(self.coder.decode_image(latents[0])[0])


def compare(folder: Path, gguf: Path | None) -> None:
    pictures, load = Pictures(), loaders(gguf)
    known = knows_comfy_quant()
    exact = pictures.decoded(pictures.ours(SOURCE))
    for words in (*NUMBERS, *QUANTISED, *BLOCKS):
        file = converted(folder, words)
        ours = pictures.ours(file)
        kept = f"{psnr(pictures.decoded(ours), exact):5.1f} dB of the original's picture"
        if file.suffix not in load:
            print(f"{words:14s} {kept}; not loaded: city96's pack is not given", flush=True)
        elif words in QUANTISED and not known:
            print(f"{words:14s} {kept}; this ComfyUI does not know comfy_quant; {as_comfy_kitchen_reads(file)}")
        else:
            theirs = pictures.theirs(load[file.suffix](file))
            apart = difference([ours], [theirs])
            assert apart < 1e-4, f"{words}: {apart}"
            print(f"{words:14s} {kept}; ComfyUI's latents differ from ours by {apart:.1e}", flush=True)


def knows_comfy_quant() -> bool:
    import comfy.ops

    return hasattr(comfy.ops, "mixed_precision_ops")


def as_comfy_kitchen_reads(file: Path) -> str:
    """Compares every quantised matrix, decoded by comfy-kitchen from what a newer ComfyUI's loader takes of it."""
    try:
        from comfy_kitchen import tensor as layouts
    except ImportError:
        return "comfy-kitchen is not installed"
    import safetensors.torch
    import torch

    state = safetensors.torch.load_file(file)
    layout_of = {"float8_e4m3fn": layouts.TensorCoreFP8Layout, "int8_tensorwise": layouts.TensorWiseINT8Layout}
    matrices, apart = 0, 0.0
    for name, stored in detect(open_weights(file)).parts["flux"].items():
        layer = name.removesuffix(".weight")
        conf = state.get(f"{layer}.comfy_quant")
        if conf is None or not name.endswith(".weight"):
            continue
        said = json.loads(conf.numpy().tobytes())
        layout = layout_of[said.pop("format")]
        scale, shape = state[f"{layer}.weight_scale"], tuple(stored.shape)
        params = layout.Params(scale=scale, orig_dtype=torch.float32, orig_shape=shape, **said)
        ours = decode(read(stored), stored.encoding, stored.shape, torch.float32)
        theirs = layout.dequantize(state[name], params)
        assert "convrot" in said or torch.equal(theirs, ours), name  # sums of a rotation are in another order
        apart = max(apart, difference([[ours]], [[theirs]]))
        matrices += 1
    assert matrices and apart < 1e-6, apart
    return f"comfy-kitchen decodes its {matrices} matrices to within {apart:.0e} of ours"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comfyui", help="a ComfyUI checkout")
    parser.add_argument("--gguf", type=Path, help="a checkout of city96's ComfyUI-GGUF")
    args = parser.parse_args()
    enter(args.comfyui)
    import torch

    sizes_from_the_file()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        compare(Path(folder), args.gguf and args.gguf.resolve())


if __name__ == "__main__":
    main()
