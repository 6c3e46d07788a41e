"""ControlNets for FLUX.1 in files: their family, and their tensors under the names of models/controlnet.py.

    InstantX, Shakker, alimama   blocks in diffusers' names, or in BFL's in converted files
    XLabs, MistoLine             blocks in BFL's names

Uses no torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from .kinds import KINDS, Detected, Facts
from .matrix_parts import UnreadableScheme
from .names import controlnet_bfl, controlnet_diffusers, model_tensors
from .stored import WeightFile

_FIRST = re.compile(r"(^|.*\.)controlnet_blocks\.0\.(linear\.)?weight$")


def controlnet(file: WeightFile, names: Collection[str]) -> Detected | None:
    """A ControlNet of FLUX.1 or of Stable Diffusion; None for any other file."""
    if any(name.startswith(("control_model.", "controlnet_cond_embedding.")) for name in names):
        return Detected("other", "a ControlNet for Stable Diffusion")
    first = next((found for name in names if (found := _FIRST.match(name))), None)
    if first is None:
        return None
    prefix = first[1]
    if f"{prefix}transformer_blocks.0.attn.norm_k.weight" in names:
        layout = "diffusers"
    elif f"{prefix}double_blocks.0.img_attn.norm.key_norm.scale" in names:
        layout = "BFL"
    else:
        return Detected("other", "a ControlNet for another model family")
    family = "MistoLine" if first[2] else "InstantX, Shakker or alimama"
    if not first[2] and f"{prefix}input_hint_block.0.weight" in names:
        family = "XLabs"
    noun = f"a ControlNet for FLUX.1 ({family})"
    facts: Facts = {"family": family, "layout": layout}
    try:
        tensors = model_tensors(file, prefix, controlnet_diffusers if layout == "diffusers" else controlnet_bfl)
    except UnreadableScheme as error:
        noun = f"{noun}, which cannot be used"
        return Detected("controlnet", noun, {}, facts, {"controlnet": str(error)})
    if "pos_embed_input.weight" in tensors and len(tensors["pos_embed_input.weight"].shape) == 2:
        channels = tensors["pos_embed_input.weight"].shape[1] // 4
        facts |= {"takes": "a picture" if family in ("XLabs", "MistoLine") else f"a latent of {channels} channels"}
    if "controlnet_mode_embedder.weight" in tensors:
        facts |= {"union_modes": tensors["controlnet_mode_embedder.weight"].shape[0]}
    if "img_in.weight" not in tensors or "pos_embed_input.weight" not in tensors:
        reason = f"{file.path.name} is incomplete: of {KINDS['controlnet'].noun} the first layer is missing. "
        return Detected("controlnet", noun, {}, facts, {"controlnet": reason + "Fetch it again."})
    return Detected("controlnet", noun, {"controlnet": tensors}, facts)
