"""Normalises the names of tensors in LoRA files: removes what trainers add around a module's path.

    transformer.base_model.model.transformer_blocks.0.attn.to_q.lora_A.default.weight
    lora_unet_transformer_blocks_0_attn_to_q_.lora_down.weight
    -> transformer_blocks.0.attn.to_q.lora_A.weight, transformer_blocks_0_attn_to_q.lora_down.weight

The rest is a path in BFL's, diffusers' or Hugging Face's names, with dots or underscores, and a suffix.

Independent of: tensors, which paths a model has (adapters/lora_names.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection

FLUX, CLIP, T5 = "flux", "clip_l", "t5"  # the models that a file may change

# Around the path in a transformer, in any order; if an underscore follows, the path has underscores as well.
_OUTER = re.compile(
    r"^(base_model\.model\.|base_model\.|transformer\.|diffusion_model\.|model\.|unet\.|module\."
    r"|lora_unet_|lora_transformer_|lycoris_|oft_unet_)"
)
# The same around an encoder's path. The path shows which encoder it is, since trainers number them differently.
_ENCODER = re.compile(
    r"^(base_model\.model\.)?(lora_te[123]?[._]|text_encoder(_[23])?\.|text_encoders\.\w+\.(transformer\.)?"
    r"|(clip_l|t5xxl)\.(transformer\.)?)(base_model\.model\.)?(?=(?P<clip>text_model)|encoder|shared)"
)
_ADAPTER = re.compile(
    r"\.(lora_[AB]|oft_R)\.(?!(?:weight|bias|scaled_oft)$)[\w-]+(?=\.(?:weight|bias|scaled_oft)$|$)"  # its name in PEFT
)
_TRAILING = re.compile(r"_(?=\.(lora_|alpha|dora_scale|hada_|lokr_|oft_|diff))")
# What every tensor of an adapter file has in its name, whatever the adapter is for.
SUFFIX = re.compile(
    r"\.(lora_(up|down|mid|A|B)\b|lora\.(up|down)\.|lora_linear_layer\.|hada_w1|lokr_w[12]|oft_blocks|oft_[Rr]\b|diff(_b)?$)"
    r"|lora\d?\.(up|down)\."
)


# Paths of FLUX in the form of `transformer_key`; block numbers are below 19 and 38.
_FLUX = re.compile(
    r"^(double_blocks|single_blocks|transformer_blocks|single_transformer_blocks)[._](\d+)[._](?!attn[12]\b)"
    r"|^(img_in|txt_in|time_in|vector_in|guidance_in|final_layer|x_embedder|context_embedder|time_text_embed|norm_out"
    r"|proj_out)[._]"
)
_DEEPEST = {"double_blocks": 19, "transformer_blocks": 19, "single_blocks": 38, "single_transformer_blocks": 38}


def changes_flux(names: Collection[str]) -> bool:
    """Whether these tensors (of an adapter, none of a text encoder) are for a FLUX.1 transformer.

    Other models have more blocks of the same names: a block number that is too high shows them.
    """
    blocks = [found for name in names if (found := _FLUX.match(transformer_key(name))) is not None]
    return bool(blocks) and all(found[1] is None or int(found[2]) < _DEEPEST[found[1]] for found in blocks)


def transformer_key(name: str) -> str:
    """A name without the additions before and inside the path of a transformer's module."""
    name = _plain(name)
    while found := _OUTER.match(name):
        name = name[found.end() :]
    return name


def place_of(name: str) -> tuple[str, str]:
    """Which model a tensor changes, and its name without the additions around the path of that model's module.

    Encoders are recognised by their paths; every other tensor is taken for a transformer's.
    """
    plain = _plain(name)
    found = _ENCODER.match(plain)
    if found is None:
        return FLUX, transformer_key(name)
    return CLIP if found["clip"] else T5, plain[found.end() :]


def _plain(name: str) -> str:
    return _TRAILING.sub("", _ADAPTER.sub(r".\1", name))
