"""A pack that builds networks of its own from ComfyUI's layers, and keeps JavaScript where ComfyUI once had it."""

from __future__ import annotations

import os
from typing import Any

import comfy.conds
import comfy.ldm.common_dit
import comfy.ops
import comfy.patcher_extension
import comfyui_version
import torch
from comfy.ldm.flux.layers import DoubleStreamBlock, EmbedND, timestep_embedding
from comfy.ldm.modules.attention import CrossAttention, optimized_attention

import __main__

web = os.path.join(os.path.dirname(os.path.realpath(__main__.__file__)), "web", "extensions", "built")
if not os.path.exists(web):
    os.mkdir(web)
with open(os.path.join(web, "built.js"), "w") as file:
    file.write("// nothing")


class Ops(comfy.ops.manual_cast):  # type: ignore[misc]  # ComfyUI has no types
    """Layers with one of the pack's own."""

    class Linear(comfy.ops.manual_cast.Linear):  # type: ignore[misc]
        def forward_comfy_cast_weights(self, input: torch.Tensor) -> torch.Tensor:
            weight, bias, stream = comfy.ops.cast_bias_weight(self, input, offloadable=True)
            out = torch.nn.functional.linear(input, weight, bias)
            comfy.ops.uncast_bias_weight(self, weight, bias, stream)
            return out


class Network:
    """A small network in bfloat16 that is given images in float32."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "run", ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"latent": ("LATENT", {})}}

    def run(self, latent: dict[str, Any]) -> tuple[Any]:
        x = comfy.ldm.common_dit.pad_to_patch_size(latent["samples"], (3, 3))
        look = CrossAttention(16, heads=2, dim_head=8, dtype=torch.bfloat16, operations=Ops)
        block = DoubleStreamBlock(16, 2, 2.0, dtype=torch.bfloat16, operations=Ops)
        assert isinstance(block.img_mlp[0], Ops.Linear)
        for parameter in [*look.parameters(), *block.parameters()]:
            torch.nn.init.constant_(parameter, 0.1)
        tokens = look(x.flatten(2).transpose(1, 2))
        pe = EmbedND(8, 10000, [4, 4])(torch.zeros(1, tokens.shape[1] + 4, 2))
        img, _ = block(tokens, tokens[:, :4], timestep_embedding(torch.ones(1), 16), pe)
        assert optimized_attention(img, img, img, 2).dtype is torch.float32
        assert comfy.conds.CONDRegular(img).process_cond(2, "cpu").size()[0] == 2
        executor = comfy.patcher_extension.WrapperExecutor.new_executor(abs, [lambda inner, value: inner(value) + 1])
        assert executor.execute(-1) == 2 and comfyui_version.__version__.count(".") == 2
        return ({"samples": img},)


NODE_CLASS_MAPPINGS = {"PackNetwork": Network}
