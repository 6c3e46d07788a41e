"""Calls a part of ComfyUI that is not offered while it is imported."""

import comfy.ldm.modules.attention

flash = comfy.ldm.modules.attention.attention_flash("cpu")

NODE_CLASS_MAPPINGS: dict[str, type] = {}
