"""Calls a part of ComfyUI that is not offered while it is imported."""

import comfy.ldm.modules.attention

optimized = comfy.ldm.modules.attention.optimized_attention_for_device("cpu")

NODE_CLASS_MAPPINGS: dict[str, type] = {}
