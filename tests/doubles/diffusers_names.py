"""The weights of a FLUX transformer under the names, and in the matrices, of diffusers."""

from __future__ import annotations

from collections.abc import Mapping

from sluice.flux_core.models.flux_config import FluxConfig
from torch import Tensor, cat


def diffusers_weights(state: Mapping[str, Tensor], config: FluxConfig) -> dict[str, Tensor]:
    """BFL's state dict -> diffusers'. q, k and v are apart; the last modulation has scale before shift."""
    out: dict[str, Tensor] = {}

    def put(name: str, ours: str) -> None:
        for part in ("weight", "bias"):
            out[f"{name}.{part}"] = state[f"{ours}.{part}"]

    def split(names: list[str], ours: str, sizes: list[int]) -> None:
        for part in ("weight", "bias"):
            for name, rows in zip(names, state[f"{ours}.{part}"].split(sizes), strict=True):
                out[f"{name}.{part}"] = rows

    hidden, mlp = config.hidden, config.mlp
    for name, ours in (("x_embedder", "img_in"), ("context_embedder", "txt_in"), ("proj_out", "final_layer.linear")):
        put(name, ours)
    embedders = (("timestep", "time_in"), ("guidance", "guidance_in"), ("text", "vector_in"))
    for name, ours in embedders if config.guidance else (embedders[0], embedders[2]):
        put(f"time_text_embed.{name}_embedder.linear_1", f"{ours}.in_layer")
        put(f"time_text_embed.{name}_embedder.linear_2", f"{ours}.out_layer")
    for part in ("weight", "bias"):
        shift, scale = state[f"final_layer.adaLN_modulation.1.{part}"].chunk(2)
        out[f"norm_out.linear.{part}"] = cat((scale, shift))
    for n in range(config.depth):
        a, b = f"transformer_blocks.{n}.", f"double_blocks.{n}."
        for kind, norm, ff, proj, qkv, q, k in (
            ("img", "norm1", "ff", "to_out.0", ("to_q", "to_k", "to_v"), "norm_q", "norm_k"),
            ("txt", "norm1_context", "ff_context", "to_add_out", ("add_q_proj", "add_k_proj", "add_v_proj"),
             "norm_added_q", "norm_added_k"),
        ):  # fmt: skip
            put(f"{a}{norm}.linear", f"{b}{kind}_mod.lin")
            put(f"{a}{ff}.net.0.proj", f"{b}{kind}_mlp.0")
            put(f"{a}{ff}.net.2", f"{b}{kind}_mlp.2")
            put(f"{a}attn.{proj}", f"{b}{kind}_attn.proj")
            split([f"{a}attn.{name}" for name in qkv], f"{b}{kind}_attn.qkv", [hidden] * 3)
            out[f"{a}attn.{q}.weight"] = state[f"{b}{kind}_attn.norm.query_norm.scale"]
            out[f"{a}attn.{k}.weight"] = state[f"{b}{kind}_attn.norm.key_norm.scale"]
    for n in range(config.depth_single):
        a, b = f"single_transformer_blocks.{n}.", f"single_blocks.{n}."
        put(f"{a}norm.linear", f"{b}modulation.lin")
        put(f"{a}proj_out", f"{b}linear2")
        names = [f"{a}attn.to_q", f"{a}attn.to_k", f"{a}attn.to_v", f"{a}proj_mlp"]
        split(names, f"{b}linear1", [hidden] * 3 + [mlp])
        out[f"{a}attn.norm_q.weight"] = state[f"{b}norm.query_norm.scale"]
        out[f"{a}attn.norm_k.weight"] = state[f"{b}norm.key_norm.scale"]
    return out
