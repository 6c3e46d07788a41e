"""Our model as a MODEL of ComfyUI, for its KSampler and for nodes of other packs. Experimental.

The weights stay in our model; ComfyUI gets a module without weights that passes calls on. Nodes that change weights or
blocks from outside (LoRAs, ControlNets, patches) cannot reach them and are refused with an error.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch

from ..flux_core.errors import InputError
from ..flux_core.models.denoiser_inputs import DenoiserInputs
from ..flux_core.models.latents import CHANNELS
from ..flux_core.runtime.handles import FluxModel
from ..flux_core.sampling.conditions import Condition
from ..flux_core.sampling.guider import Network, Run
from .bridge_guider import model_sampling

Tensor = torch.Tensor


class Body(torch.nn.Module):
    """The module that ComfyUI calls as its diffusion model."""

    patch_size = 2

    def __init__(self, model: FluxModel) -> None:
        super().__init__()
        self.model = model  # a handle, not a module: PyTorch registers none of its weights
        self._run = ExitStack()
        self._network: Network | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        guidance: Tensor | None = None,
        ref_latents: Any = None,
        control: Any = None,
        transformer_options: Any = None,
        **more: Any,
    ) -> Tensor:
        """The velocity [B, 16, h, w]. The first call opens a run."""
        options = transformer_options or {}
        if control is not None or any(options.get(key) for key in ("patches", "patches_replace")):
            raise InputError("ControlNets and patches of blocks do not work with a model of Sluice. Remove that node.")
        if y is None:
            raise InputError("The conditioning has no pooled CLIP-L vector. Encode the prompt with both encoders.")
        inputs = DenoiserInputs(
            x=x,
            timesteps=timestep,
            context=context,
            pooled=y,
            guidance=guidance,
            references=tuple(ref_latents or ()),
            reference_method=more.get("ref_latents_method", "offset"),
            attention_mask=more.get("attention_mask"),
        )
        if self._network is None:
            self._network = self._run.enter_context(self.model.open(_run(inputs, options)))
        return self._network(inputs)

    def close(self) -> None:
        self._network = None
        self._run.close()


def _run(first: DenoiserInputs, options: Any) -> Run:
    """The description of a run, as far as its first call and ComfyUI's options determine it."""
    levels = options.get("sample_sigmas")
    timesteps = () if levels is None else tuple(levels.tolist()[:-1])
    batch, channels, height, width = first.x.shape
    condition = Condition(
        context=first.context,
        pooled=first.pooled,
        guidance=None if first.guidance is None else float(first.guidance.flatten()[0]),
        concat=first.x[:, CHANNELS:] if channels > CHANNELS else None,
        references=first.references,
        reference_method=first.reference_method,
        attention_mask=first.attention_mask,
    )
    return Run((batch, CHANNELS, height, width), timesteps, (condition,))


class Patcher(comfy.model_patcher.ModelPatcher):  # type: ignore[misc]
    """A ModelPatcher with nothing to move: bridge_memory.py registers the memory. `clone` calls its constructor."""

    def model_size(self) -> int:
        return 1

    def loaded_size(self) -> int:
        return 0

    def lowvram_patch_counter(self) -> int:
        return 0

    def current_loaded_device(self) -> Any:
        return self.load_device

    def partially_load(self, device_to: Any, extra_memory: float = 0, *args: Any, **kwargs: Any) -> int:
        self.patch_model(load_weights=False)  # its model_sampling
        self.model.current_weight_patches_uuid = self.patches_uuid
        return 0

    def partially_unload(self, device_to: Any, memory_to_free: float = 0, *args: Any, **kwargs: Any) -> int:
        return 0

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> None:
        super().unpatch_model(None, False)

    def detach(self, unpatch_all: bool = True) -> Any:
        super().unpatch_model(None, False)
        return self.model

    def cleanup(self) -> None:
        super().cleanup()
        self.model.diffusion_model.close()

    def add_patches(self, patches: Any, *args: Any, **kwargs: Any) -> Any:
        raise InputError("Load LoRAs with Sluice's own LoRA node, before FLUX model to MODEL.")


def as_comfy_model(model: FluxModel) -> Patcher:
    """A MODEL of ComfyUI that evaluates our model."""
    config = model.weights.config
    family = comfy.supported_models.Flux if config.guidance else comfy.supported_models.FluxSchnell
    wanted = {
        "image_model": "flux",
        "guidance_embed": config.guidance,
        "in_channels": model.in_channels,
        "out_channels": 16,
        "disable_unet_model_creation": True,
    }
    described = family(wanted)
    described.set_inference_dtype(model.dtype, None)
    base = described.get_model({})
    base.diffusion_model = Body(model)
    base.model_sampling = model_sampling(model.sampling)
    return Patcher(base, load_device=model.device, offload_device=torch.device("cpu"))
