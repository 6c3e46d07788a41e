"""Every sampler of ComfyUI's with our GUIDER and with our model as MODEL, against its own FLUX on the same weights.

    python tests/comfyui/samplers.py /path/to/ComfyUI

For each: from noise, from a picture, and with a mask. Prints the largest difference, of the largest number. The two
bridges run the same transformer and must agree to the bit; against ComfyUI's FLUX, whose sums are in another order,
what chooses its own steps (dpm_adaptive) may take others.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from inside import ROOT, enter, load_pack, module_of

SIZES = {
    "in_channels": 16, "out_channels": 16, "patch_size": 2, "hidden_size": 64, "num_heads": 2, "depth": 2,
    "depth_single_blocks": 2, "axes_dim": [4, 14, 14], "theta": 10000, "qkv_bias": True, "guidance_embed": True,
    "context_in_dim": 48, "vec_in_dim": 24, "mlp_ratio": 4.0, "image_model": "flux",
}  # fmt: skip


def core_model() -> Any:
    """A small FLUX with random weights, ComfyUI's own."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    config = comfy.supported_models.Flux(dict(SIZES))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({})
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.diffusion_model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / (parameter.shape[-1] ** 0.5) if parameter.ndim > 1 else 1 + 0.1 * noise)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, comfy.model_management.get_torch_device(), cpu)


def save(model: Any, path: Path) -> None:
    import safetensors.torch

    safetensors.torch.save_file(model.model.diffusion_model.state_dict(), path)


def compare(pack: Path, ours: dict[str, type[Any]]) -> None:
    import comfy.samplers
    import comfy_extras.nodes_custom_sampler as custom
    import torch

    core = core_model()
    with tempfile.TemporaryDirectory() as folder:
        save(core, Path(folder) / "small.safetensors")
        settings = module_of(pack, "flux_core.runtime.settings").Settings("cpu", "fp32")
        runtime = module_of(pack, "flux_core.runtime.runtime").Runtime(settings)
        model = module_of(pack, "flux_core.runtime.handles").load_flux(runtime, Path(folder) / "small.safetensors")
        generator = torch.Generator().manual_seed(6)
        values = {"pooled_output": torch.randn(1, 24, generator=generator), "guidance": 3.0}
        positive = [[torch.randn(1, 16, 48, generator=generator), values]]
        picture = {"samples": torch.randn(2, 16, 16, 12, generator=generator)}
        mask = torch.zeros(1, 128, 96)
        mask[:, :64] = 1
        (sigmas,) = custom.BasicScheduler().get_sigmas(core, "simple", 6, 1.0)
        cases = [
            ({"samples": torch.zeros(2, 4, 16, 12)}, sigmas),
            (picture, sigmas[2:]),
            ({**picture, "noise_mask": mask}, sigmas),
        ]
        (bridged,) = ours["SluiceFluxToModel"]().convert(model)
        (guider,) = ours["SluiceBasicGuider"]().guide(model, positive)
        as_model, reference = (custom.BasicGuider().get_guider(one, positive)[0] for one in (bridged, core))
        names = [*comfy.samplers.KSAMPLER_NAMES, "ddim", "uni_pc", "uni_pc_bh2"]
        same, near = 0, 0
        for name in names:
            made = [[run(name, one, *case) for case in cases] for one in (guider, as_model, reference)]
            between, beside = difference(made[0], made[1]), difference(made[0], made[2])
            same, near = same + (between == 0), near + (beside < 1e-5)
            print(f"{name:36s} GUIDER and MODEL differ by {between:.1e}, from ComfyUI's FLUX by {beside:.1e}")
        print(f"of {len(names)} samplers {same} agree to the bit, {near} with ComfyUI's FLUX to 1e-5")
        their_sampler(ours, model, positive, *cases[0])
        stopped(guider, *cases[0])
        refused(bridged)


def run(name: str, guider: Any, latent: Any, sigmas: Any) -> list[Any]:
    """Both outputs of ComfyUI's SamplerCustomAdvanced."""
    import comfy_extras.nodes_custom_sampler as custom
    import torch

    torch.manual_seed(0)
    (sampler,) = custom.KSamplerSelect().get_sampler(name)
    made = custom.SamplerCustomAdvanced().sample(custom.Noise_RandomNoise(7), guider, sampler, sigmas, dict(latent))
    return [one["samples"] for one in made]


def difference(some: list[Any], others: list[Any]) -> float:
    pairs = [pair for one, other in zip(some, others, strict=True) for pair in zip(one, other, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def their_sampler(ours: dict[str, type[Any]], model: Any, positive: Any, latent: Any, sigmas: Any) -> None:
    """Our SamplerCustom with a SAMPLER of ComfyUI's is its SamplerCustomAdvanced with our guider."""
    import comfy_extras.nodes_custom_sampler as custom

    (sampler,) = custom.KSamplerSelect().get_sampler("euler")
    (guider,) = ours["SluiceBasicGuider"]().guide(model, positive)
    made = ours["SluiceSamplerCustom"]().sample(model, True, 7, 1.0, positive, positive, sampler, sigmas, latent)
    assert difference([[one["samples"] for one in made]], [run("euler", guider, latent, sigmas)]) == 0
    print("our SamplerCustom takes a SAMPLER of ComfyUI's")


def stopped(guider: Any, latent: Any, sigmas: Any) -> None:
    """An interrupt ends the run, and the next one is whole."""
    import comfy.model_management as management

    before = run("euler", guider, latent, sigmas)
    management.interrupt_current_processing()
    try:
        run("euler", guider, latent, sigmas)
    except management.InterruptProcessingException:
        assert difference([run("euler", guider, latent, sigmas)], [before]) == 0
        print("an interrupt ends the run, and the next one is whole")
        return
    raise AssertionError("it was not stopped")


def refused(bridged: Any) -> None:
    """Nodes that cannot change our weights raise an error that says so."""
    try:
        bridged.clone().add_patches({"a": None})
    except Exception as error:
        assert type(error).__name__ == "InputError"
        print(f"a LoRA of ComfyUI's on our MODEL: {error}")
        return
    raise AssertionError("it was not refused")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comfyui", help="a ComfyUI checkout")
    args = parser.parse_args()
    enter(args.comfyui)
    import torch

    with tempfile.TemporaryDirectory() as folder:
        pack = Path(folder) / "sluice v1.2"
        pack.symlink_to(ROOT)
        with torch.inference_mode():
            compare(pack, load_pack(pack))


if __name__ == "__main__":
    main()
