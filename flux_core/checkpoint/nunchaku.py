"""The files of nunchaku (SVDQuant for FLUX.1, AWQ for T5): how they are recognised, and what their modules are called.

Such a file is brought into plain order before it is used (convert/nunchaku_plain.py). Uses no torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection

SVDQUANT, AWQ = "nunchaku (SVDQuant)", "nunchaku (AWQ)"
_BLOCK_MATRIX = re.compile(r"^(single_)?transformer_blocks\.0\.(qkv_proj|norm1?\.linear)\.qweight$")
_T5_MATRIX = re.compile(r"^encoder\.block\.0\.layer\.0\.SelfAttention\.q\.qweight$")

# nunchaku's module of a block -> BFL's
DOUBLE = {
    "qkv_proj": "img_attn.qkv", "qkv_proj_context": "txt_attn.qkv", "out_proj": "img_attn.proj",
    "out_proj_context": "txt_attn.proj", "mlp_fc1": "img_mlp.0", "mlp_fc2": "img_mlp.2",
    "mlp_context_fc1": "txt_mlp.0", "mlp_context_fc2": "txt_mlp.2",
}  # fmt: skip
DOUBLE_MODULATION = {"norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin"}
NORMS = {
    "norm_q": "img_attn.norm.query_norm", "norm_k": "img_attn.norm.key_norm",
    "norm_added_q": "txt_attn.norm.query_norm", "norm_added_k": "txt_attn.norm.key_norm",
}  # fmt: skip


def quantised_flux(names: Collection[str]) -> bool:
    """Whether these are names of a FLUX.1 transformer of nunchaku."""
    return "x_embedder.weight" in names and sum(bool(_BLOCK_MATRIX.match(name)) for name in names) > 1


def quantised_t5(names: Collection[str]) -> bool:
    """Whether these are names of a T5 of nunchaku."""
    return any(_T5_MATRIX.match(name) for name in names)
