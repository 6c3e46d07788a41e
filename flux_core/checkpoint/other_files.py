"""Weight files that are not FLUX.1 models: adapters, and models of other families as far as messages name them.

All are recognised by names alone. Independent of: FLUX's own files (detect.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection

from . import nunchaku
from .kinds import KINDS, Detected, Facts
from .lora_keys import FLUX, SUFFIX, changes_flux, place_of
from .matrix_parts import INSTEAD
from .stored import WeightFile

_LORA_FAMILIES = (  # (pattern of its names, who writes such files)
    (r"processor\.(qkv|proj)_lora", "XLabs"),
    (r"^oft_unet_", "kohya"),
    (r"^lora_unet_(double|single)_blocks_", "kohya"),
    (r"^lora_unet_(single_)?transformer_blocks_", "kohya with diffusers' names"),
    (r"^lora_transformer_(single_)?transformer_blocks_", "OneTrainer"),
    (r"^lycoris_", "LyCORIS"),
    (r"^(model\.)?diffusion_model\.(double|single)_blocks\.", "BFL names"),
    (r"(^|\.)(single_)?transformer_blocks\.", "diffusers"),
    (r"(^|\.)(double|single)_blocks\.", "BFL"),
)
_ADAPTERS = (  # (a suffix, the name of such an adapter)
    (r"\.oft_(blocks|[Rr]\b)", "an OFT"),
    (r"\.hada_w1", "a LoHa"),
    (r"\.lokr_w1", "a LoKr"),
    (r"\.dora_scale$", "a DoRA"),
)
_OTHER_MODELS = (  # (a name that only such a file has, kind, noun)
    (r"distilled_guidance_layer\.in_proj", "other_model", "a Chroma transformer"),
    (r"^conditioner\.embedders\.", "other_checkpoint", "an SDXL checkpoint"),
    (r"^cond_stage_model\.", "other_checkpoint", "a Stable Diffusion 1 or 2 checkpoint"),
    (r"joint_blocks\.0\.", "other_model", "a Stable Diffusion 3 model"),
    (r"(^|\.)input_blocks\.1\.0\.", "other_model", "a Stable Diffusion or SDXL UNet"),
    (r"(^|\.)down_blocks\.0\.resnets\.0\.time_emb_proj\.", "other_model", "a Stable Diffusion or SDXL UNet"),
    (r"double_stream_modulation_img\.|double_stream_modulation\.", "other_model", "a FLUX.2 transformer"),
    (r"txt_in\.individual_token_refiner\.", "other_model", "a HunyuanVideo transformer"),
    (r"transformer_blocks\.0\.img_mod\.1\.", "other_model", "a Qwen-Image transformer"),
    (r"^controlnet_blocks\.0\.y_rms\.weight$", "other", "a model patch for Qwen-Image"),
    (r"(^|\.)blocks\.0\.cross_attn\.k\.weight", "other_model", "a Wan video transformer"),
)  # fmt: skip
_HELPERS = (
    (r"^(image_proj|ip_adapter|ip_adapter_proj_model)\.", "other", "an IP-Adapter"),
    (r"^(emb_params|string_to_param\.?.*)$", "embedding", "a textual inversion embedding"),
    (r"^(model\.)?layers\.0\.self_attn\.q_proj\.weight$|^blk\.0\.attn_q\.weight$", "other_text", "a language model"),
)


def lora(file: WeightFile, names: Collection[str]) -> Detected | None:
    tensors = [name for name in names if SUFFIX.search(name)]
    if not tensors or _any(r"\.qweight$", names):  # nunchaku's models have low-rank parts of the same names
        return None
    if _any(r"\.(qkv_proj|mlp_fc1|mlp_context_fc1)\.lora_down$", tensors):
        return Detected(
            "other",
            "a LoRA converted for nunchaku, whose order of values cannot be read (use the LoRA it was made from)",
        )
    places = {name: place_of(name)[0] for name in tensors}
    encoders = {*places.values()} - {FLUX}
    for_transformer = [name for name, place in places.items() if place == FLUX]
    adapter = next((called for pattern, called in _ADAPTERS if _any(pattern, names)), "a LoRA")
    if for_transformer and not changes_flux(for_transformer):
        return Detected("other", f"{adapter} for another model family", {}, {"modules": _modules(names)})
    changed = [called for part, called in (("clip_l", "CLIP-L"), ("t5", "T5")) if part in encoders]
    facts: Facts = {"modules": _modules(names), **_rank(file)}
    if not for_transformer:
        facts |= {"changes": ", ".join(changed)}
        encoder = f"text encoder{'s' * (len(changed) > 1)} {' and '.join(changed)}"
        return Detected("lora", f"{adapter} for the {encoder} alone", {}, facts)
    family = next((family for pattern, family in _LORA_FAMILIES if _any(pattern, for_transformer)), "diffusers")
    if family == "BFL" and "img_in.lora_A.weight" in names:
        family = "BFL control (Canny or Depth)"
    facts |= {"family": family, "changes": ", ".join(["transformer", *changed])}
    return Detected("lora", f"{adapter} for FLUX.1 ({family})", {}, facts)


def _modules(names: Collection[str]) -> int:
    return len({name[: found.start()] for name in names if (found := SUFFIX.search(name))})


def _rank(file: WeightFile) -> Facts:
    down = re.compile(r"(lora_down|lora_A|lora\d?\.down)(\.[\w-]+)?(\.weight)?$")
    ranks = [entry.shape[0] for entry in file.entries.values() if entry.shape and down.search(entry.name)]
    return {"rank": max(ranks)} if ranks else {}


_SCHEMES = (  # (a name that only such a file has, the program that quantised it)
    (r"\.wscales$", nunchaku.SVDQUANT),
    (r"\.scaled_zeros$", nunchaku.AWQ),
    (r"\.g_idx$", "GPTQ"),
    (r"\.qzeros$", "AWQ or GPTQ"),
    (r"\.W_q$", "HQQ"),
    (r"\.weight_qdata$|weight_qdata$", "torchao"),
    (r"\.SCB$", "bitsandbytes' LLM.int8()"),
    (r"\.weight_packed$", "compressed-tensors"),
    (r"\.svd_(up|down)$|\.zero_point$", "SDNQ"),
)


def quantised_by(file: WeightFile, names: Collection[str]) -> Detected | None:
    """A file of an unknown model whose tensors have the names of another program's quantisation."""
    scheme = next((scheme for pattern, scheme in _SCHEMES if _any(pattern, names)), None)
    if scheme is None:
        return None
    for kind, is_one in (("flux", nunchaku.quantised_flux), ("t5", nunchaku.quantised_t5)):
        if is_one(names):  # brought into plain order before it is opened as a model
            wrong = nunchaku.problem(file)
            noun = f"{KINDS[kind].noun} quantised by {scheme}{', which cannot be used' if wrong else ''}"
            return Detected(kind, noun, {}, {"quantised_by": scheme}, {kind: wrong} if wrong else {})
    return Detected("unknown", f"a weight file quantised by {scheme}", {}, {"quantised_by": scheme},
                    {"": f"it is quantised by {scheme}, which cannot be read. {INSTEAD}"})  # fmt: skip


def other_models(file: WeightFile, names: Collection[str]) -> Detected | None:
    return _first(_OTHER_MODELS, names)


def helpers(file: WeightFile, names: Collection[str]) -> Detected | None:
    if names and set(names) <= {"clip_l", "clip_g", "t5xxl"}:
        return Detected("embedding", KINDS["embedding"].noun)
    return _first(_HELPERS, names)


def _first(table: tuple[tuple[str, str, str], ...], names: Collection[str]) -> Detected | None:
    return next((Detected(kind, noun) for pattern, kind, noun in table if _any(pattern, names)), None)


def _any(pattern: str, names: Collection[str]) -> bool:
    search = re.compile(pattern).search
    return any(search(name) for name in names)
