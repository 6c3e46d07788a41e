"""Kinds of weight files, and the result of detecting one.

Independent of: how a kind is recognised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .stored import Stored

Facts = dict[str, str | int | bool]


@dataclass(frozen=True)
class Kind:
    """The name of one kind of file, the node that loads it, and its folder under `models`."""

    noun: str
    node: str | None
    folder: str


KINDS: Mapping[str, Kind] = {
    "flux": Kind("a FLUX.1 transformer", "Load Diffusion Model", "diffusion_models"),
    "checkpoint": Kind("an all-in-one FLUX.1 checkpoint", "Load Checkpoint", "checkpoints"),
    "clip_l": Kind("a CLIP-L text encoder", "DualCLIPLoader", "text_encoders"),
    "t5": Kind("a T5 text encoder", "DualCLIPLoader", "text_encoders"),
    "autoencoder": Kind("a FLUX.1 autoencoder (VAE)", "Load VAE", "vae"),
    "taef1": Kind("a small autoencoder for FLUX.1 (TAEF1)", "Load VAE", "vae_approx"),
    "lora": Kind("a LoRA", "Load LoRA", "loras"),
    "controlnet": Kind("a ControlNet", "Load ControlNet Model", "controlnet"),
    "redux": Kind("a FLUX.1 Redux style model", "Load Style Model", "style_models"),
    "style_projector": Kind("a style projector for FLUX.1 (USO)", "ModelPatchLoader", "model_patches"),
    "clip_vision": Kind("a CLIP vision model", "Load CLIP Vision", "clip_vision"),
    "ip_adapter": Kind("an IP-Adapter for FLUX.1 by XLabs", "Load Flux IPAdapter", "xlabs/ipadapters"),
    "embedding": Kind("a textual inversion embedding", None, "embeddings"),
    "other_checkpoint": Kind("an all-in-one checkpoint of another model family", None, "checkpoints"),
    "other_model": Kind("a diffusion model of another family", None, "diffusion_models"),
    "other_text": Kind("a text encoder of another family", None, "text_encoders"),
    "other_autoencoder": Kind("an autoencoder of another family", None, "vae"),
    "other": Kind("a weight file, but not a diffusion model", None, "the folder of its own kind"),
    "unknown": Kind("a weight file of unknown kind", None, "the folder of its own kind"),
}


@dataclass(frozen=True)
class Detected:
    """`noun` describes the file more closely than its kind. `parts` maps "flux", "clip_l", "t5", "autoencoder" to the
    tensors of that model under its own names. `facts`: layout, variant and sizes, for people and for planning.
    `refusals` maps parts that exist but cannot be used, and are not in `parts`, to the reason and what to do, in one
    sentence.
    """

    kind: str
    noun: str
    parts: Mapping[str, Mapping[str, Stored]] = field(default_factory=dict)
    facts: Mapping[str, str | int | bool] = field(default_factory=dict)
    refusals: Mapping[str, str] = field(default_factory=dict)
