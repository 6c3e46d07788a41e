"""The shape that each tensor of a model needs, given the sizes that the file's own tensors state.

The shapes are those of the modules (models/). With them a damaged file is refused when it is listed or planned with,
not only when it is loaded. The autoencoder's are checked only when it is loaded. Uses no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

Shape = tuple[int, ...]
Shapes = Mapping[str, Sequence[int]]
SINUSOIDS = 256  # columns of the embedders of time and guidance
_BLOCK = re.compile(r"^(double_blocks|single_blocks|text_model\.encoder\.layers|encoder\.block)\.\d+\.")


def misshapen(kind: str, shapes: Shapes) -> tuple[str, Shape] | None:
    """The first tensor of a "flux", "clip_l" or "t5" whose shape contradicts the others, and the shape that it needs.

    None if there is none, or if the tensors that state the sizes are missing.
    """
    try:
        needed = _NEEDED[kind](shapes) if kind in _NEEDED else {}
    except (KeyError, IndexError):
        return None
    for name, shape in shapes.items():
        module, _, of = _BLOCK.sub("", name).rpartition(".")
        wanted = needed.get(module)
        if wanted is None:
            continue
        wanted = wanted[:1] if of == "bias" else wanted
        if tuple(shape) != wanted:
            return name, wanted
    return None


def _flux(shapes: Shapes) -> dict[str, Shape]:
    hidden, mlp = shapes["img_in.weight"][0], shapes["double_blocks.0.img_mlp.0.weight"][0]
    head = tuple(shapes["double_blocks.0.img_attn.norm.key_norm.scale"])[:1]
    square = (hidden, hidden)
    needed: dict[str, Shape] = {
        "img_in": (hidden, shapes["img_in.weight"][1]),
        "txt_in": (hidden, shapes["txt_in.weight"][1]),
        "vector_in.in_layer": (hidden, shapes["vector_in.in_layer.weight"][1]),
        "vector_in.out_layer": square,
        "final_layer.linear": (shapes["final_layer.linear.weight"][0], hidden),
        "final_layer.adaLN_modulation.1": (2 * hidden, hidden),
        "modulation.lin": (3 * hidden, hidden),
        "linear1": (3 * hidden + mlp, hidden),
        "linear2": (hidden, hidden + mlp),
    }
    for embedder in ("time_in", "guidance_in"):
        needed |= {f"{embedder}.in_layer": (hidden, SINUSOIDS), f"{embedder}.out_layer": square}
    for stream in ("img", "txt"):
        needed |= {
            f"{stream}_mod.lin": (6 * hidden, hidden),
            f"{stream}_attn.qkv": (3 * hidden, hidden),
            f"{stream}_attn.proj": square,
            f"{stream}_mlp.0": (mlp, hidden),
            f"{stream}_mlp.2": (hidden, mlp),
        }
    return needed | {f"{at}norm.{of}_norm": head for at in ("", "img_attn.", "txt_attn.") for of in ("query", "key")}


def _clip(shapes: Shapes) -> dict[str, Shape]:
    token, position = ("text_model.embeddings.token_embedding", "text_model.embeddings.position_embedding")
    width, mlp = shapes[f"{token}.weight"][1], shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0]
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")
    return {
        position: (shapes[f"{position}.weight"][0], width),
        "mlp.fc1": (mlp, width),
        "mlp.fc2": (width, mlp),
        **{f"self_attn.{name}": (width, width) for name in projections},
        **dict.fromkeys(("layer_norm1", "layer_norm2", "text_model.final_layer_norm"), (width,)),
    }


def _t5(shapes: Shapes) -> dict[str, Shape]:
    attention, gated = "layer.0.SelfAttention", "layer.1.DenseReluDense"
    width = shapes["shared.weight"][1]
    inner = shapes[f"encoder.block.0.{attention}.q.weight"][0]
    mlp = shapes[f"encoder.block.0.{gated}.wi_0.weight"][0]
    return {
        **{f"{attention}.{name}": (inner, width) for name in "qkv"},
        f"{attention}.o": (width, inner),
        **{f"{gated}.wi_{number}": (mlp, width) for number in (0, 1)},
        f"{gated}.wo": (width, mlp),
        **dict.fromkeys(("layer.0.layer_norm", "layer.1.layer_norm", "encoder.final_layer_norm"), (width,)),
    }


_NEEDED = {"flux": _flux, "clip_l": _clip, "t5": _t5}
