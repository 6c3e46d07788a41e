"""A workflow as a form: the few inputs that people change, with a label, a kind and the values that are possible.

A canvas declares them for the editor's app mode, most wanted first: `extra.linearData.inputs`, a list of [node, input].
For workflows without that list they are the inputs of OFFERED. Independent of any page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .canvas_edit import loads_model
from .interface import Classes, Input, Interfaces
from .prompt import is_link, title_of

JsonPrompt = Mapping[str, Mapping[str, Any]]

# (class, input) that the editor's app mode offers in workflows drawn here, the most wanted first.
OFFERED = (
    *(("CLIPTextEncode", "text"), ("CLIPTextEncodeFlux", "clip_l"), ("CLIPTextEncodeFlux", "t5xxl")),
    *(("LoadImage", "image"), ("LoraLoaderModelOnly", "lora_name"), ("LoraLoaderModelOnly", "strength_model")),
    *(("EmptySD3LatentImage", "width"), ("EmptySD3LatentImage", "height"), ("EmptySD3LatentImage", "batch_size")),
    *(("RandomNoise", "noise_seed"), ("BasicScheduler", "steps"), ("BasicScheduler", "denoise")),
)
# The same in workflows of others, whose nodes may be older ones.
_COMMON = (
    *OFFERED,
    *(("EmptyLatentImage", "width"), ("EmptyLatentImage", "height"), ("EmptyLatentImage", "batch_size")),
    *(("LoraLoader", "lora_name"), ("LoraLoader", "strength_model")),
    *(("KSampler", "seed"), ("KSampler", "steps"), ("KSampler", "denoise")),
)
_SEEDS = ("seed", "noise_seed")
_LABELS = {
    "clip_l": "Prompt for CLIP", "t5xxl": "Prompt for T5", "width": "Width", "height": "Height",
    "batch_size": "Images", "noise_seed": "Seed", "seed": "Seed", "steps": "Steps", "denoise": "Denoise",
    "lora_name": "LoRA", "strength_model": "LoRA strength", "guidance": "Guidance",
}  # fmt: skip
_SHIFT = "ModelSamplingFlux"


def fields(prompt: JsonPrompt, canvas: Any, classes: Classes) -> list[dict[str, Any]]:
    """[{"node", "input", "label", "kind", "value", "min"?, "max"?, "step"?, "choices"?}], in the order of the form.

    kind: "text", "image", "lora", "seed", "integer", "number", "switch" or "choice".
    """
    interfaces, found = Interfaces(classes), []
    for node_id, name in _declared(canvas, prompt) or list(_offered(prompt)):
        node = prompt[node_id]
        kind = node.get("class_type", "")
        declared = interfaces[kind].input(name) if kind in interfaces else None
        value = node["inputs"].get(name)
        if declared is not None and value is not None and not is_link(value):
            found.append(_field(node_id, node, declared, value, classes[kind]))
    return found


def model_file(prompt: JsonPrompt, classes: Classes) -> dict[str, str] | None:
    """{"category", "name"} of the transformer's file, for questions about what fits it."""
    for node in prompt.values():
        node_class = classes.get(node.get("class_type", ""))
        for name, category in getattr(node_class, "FILES", {}).items() if loads_model(node_class) else ():
            if isinstance(node["inputs"].get(name), str):
                return {"category": category, "name": node["inputs"][name]}
    return None


def with_values(prompt: JsonPrompt, values: Mapping[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
    """A copy of a prompt with these values of (node, input). The shift of FLUX.1 depends on the size of the image, so
    where its node had the old width and height it gets the new ones."""
    changed = {node_id: {**node, "inputs": dict(node["inputs"])} for node_id, node in prompt.items()}
    for (node_id, name), value in values.items():
        if node_id not in changed or name not in changed[node_id]["inputs"]:
            continue
        before, changed[node_id]["inputs"][name] = prompt[node_id]["inputs"][name], value
        for node in changed.values() if name in ("width", "height") else ():
            if _plain(node) == _SHIFT and node["inputs"].get(name) == before:
                node["inputs"][name] = value
    return changed


def _declared(canvas: Any, prompt: JsonPrompt) -> list[tuple[str, str]]:
    extra = canvas.get("extra") if isinstance(canvas, Mapping) else None
    data = extra.get("linearData") if isinstance(extra, Mapping) else None
    listed = data.get("inputs") if isinstance(data, Mapping) else None
    pairs = [
        (str(one[0]), str(one[1]))
        for one in (listed if isinstance(listed, list) else ())
        if isinstance(one, list) and len(one) >= 2
    ]
    return [(node_id, name) for node_id, name in pairs if node_id in prompt]


def _offered(prompt: JsonPrompt) -> Iterator[tuple[str, str]]:
    for kind, name in _COMMON:
        yield from ((node_id, name) for node_id, node in prompt.items() if _plain(node) == kind)


def _plain(node: Mapping[str, Any]) -> str:
    return str(node.get("class_type", "")).removeprefix("Sluice")


def _field(node_id: str, node: Mapping[str, Any], declared: Input, value: Any, node_class: type[Any]) -> dict[str, Any]:
    title = title_of(node)
    described: dict[str, Any] = {"node": node_id, "input": declared.name, "value": value}
    described["label"] = _LABELS.get(declared.name) or title or declared.name
    options = declared.options
    if options.get("image_upload"):
        described |= {"kind": "image", "label": title if title and title != _plain(node) else "Start picture"}
    elif getattr(node_class, "FILES", {}).get(declared.name) == "loras":
        described |= {"kind": "lora", "choices": _choices(declared)}
    elif declared.type in ("INT", "FLOAT"):
        kind = "seed" if declared.name in _SEEDS else "integer" if declared.type == "INT" else "number"
        described |= {"kind": kind, **{key: options[key] for key in ("min", "max", "step") if key in options}}
    elif declared.type == "BOOLEAN":
        described |= {"kind": "switch"}
    elif isinstance(declared.type, list) or declared.type == "COMBO":
        described |= {"kind": "choice", "choices": _choices(declared)}
    else:
        described |= {"kind": "text"}
    return described


def _choices(declared: Input) -> list[Any]:
    return list(declared.type if isinstance(declared.type, list) else declared.options.get("options", ()))
