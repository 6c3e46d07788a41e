"""Several LoRAs at once, with the ids of other packs: lists of LoRAs (LORA_STACK), and loaders of such lists.

A LORA_STACK is a list of (file name, strength for the transformer, strength for the text encoders).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..loaders import FromFiles
from ..sockets import CLIP, MODEL, STRING, Inputs, socket
from .declared import ActsOnModel, Numbered, OfAnotherPack, anything, decimal, flag, one_of, whole

NOTHING = "None"
STACK = "LORA_STACK"

Entry = tuple[str, float, float]


class _WithLoras(OfAnotherPack, FromFiles):
    """A node with LoRA files. It keeps their content, so that another strength reads nothing."""

    NO_FILE = (NOTHING, "", "none")  # values of its file inputs that mean no file
    kept: Any = None

    @classmethod
    def names(cls) -> tuple[list[str], dict[str, Any]]:
        return [NOTHING, *cls.host.filenames("loras")], {"default": NOTHING, "tooltip": "A LoRA's file, or None."}

    def added(self, model: Any, clip: Any, entries: Iterable[Entry]) -> tuple[Any, Any]:
        """The model and the text encoders (either may be None) with these LoRAs. Raises MissingFileError."""
        from ...flux_core.runtime.lora_files import read_lora

        kept = []
        for name, for_model, for_clip in entries:
            for_model, for_clip = for_model if model is not None else 0.0, for_clip if clip is not None else 0.0
            if not name or name in self.NO_FILE or (for_model == 0 and for_clip == 0):
                continue
            kept.append(read_lora(model, clip, self.host.full_path("loras", name)))
            model, clip = kept[-1].added_to(model, clip, for_model, for_clip)
        self.kept = kept
        return model, clip


def _strength(limit: float = 10.0) -> Any:
    return decimal("Its strength.", 1.0, -limit, limit)


class PowerLoraLoader(_WithLoras):
    """rgthree's loader of any number of LoRAs, each with a switch."""

    PACK = "rgthree-comfy"
    TITLE = "Power Lora Loader (rgthree)"
    DESCRIPTION = "Adds any number of LoRAs, each with a switch and one or two strengths."
    FUNCTION = "load_loras"
    RETURN_TYPES = (MODEL, CLIP)
    RETURN_NAMES = ("MODEL", "CLIP")
    OUTPUT_TOOLTIPS = ("The model with the LoRAs.", "The text encoders with the LoRAs.")
    ACCEPT_ALL_INPUTS = True
    EDITOR_WIDGETS = ("lora_{}",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        wires = {"model": socket(MODEL, "The model."), "clip": socket(CLIP, "The text encoders.")}
        return {"required": {}, "optional": Numbered("lora_", anything("A LoRA of the list."), wires)}

    def load_loras(self, model: Any = None, clip: Any = None, **entries: Any) -> tuple[Any, Any]:
        chosen = ((name, value) for name, value in entries.items() if name.lower().startswith("lora_"))
        return self.added(model, clip, (entry for _, value in chosen for entry in _switched_on(value)))


def _switched_on(value: Any) -> Iterator[Entry]:
    """The entry of a row of the Power Lora Loader: {"on", "lora", "strength", "strengthTwo"?}."""
    if isinstance(value, Mapping) and value.get("on") and isinstance(value.get("lora"), str):
        strength = float(value.get("strength", 1.0))
        second = value.get("strengthTwo")
        yield value["lora"], strength, strength if second is None else float(second)


class LoraLoaderStack(_WithLoras):
    """rgthree's four LoRAs."""

    PACK = "rgthree-comfy"
    TITLE = "Lora Loader Stack (rgthree)"
    DESCRIPTION = "Adds up to four LoRAs."
    FUNCTION = "load_lora"
    RETURN_TYPES = (MODEL, CLIP)
    OUTPUT_TOOLTIPS = ("The model with the LoRAs.", "The text encoders with the LoRAs.")
    FILES = {f"lora_{n:02}": "loras" for n in range(1, 5)}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        rows: dict[str, Any] = {}
        for n in range(1, 5):
            rows |= {f"lora_{n:02}": cls.names(), f"strength_{n:02}": _strength()}
        return {"required": {"model": socket(MODEL, "The model."), "clip": socket(CLIP, "The text encoders."), **rows}}

    def load_lora(self, model: Any, clip: Any, **rows: Any) -> tuple[Any, Any]:
        numbers = [f"{n:02}" for n in range(1, 5)]
        entries = [(rows[f"lora_{n}"], rows[f"strength_{n}"], rows[f"strength_{n}"]) for n in numbers]
        return self.added(model, clip, entries)


class NunchakuFluxLoraLoader(ActsOnModel, _WithLoras):
    """Nunchaku's loader of a LoRA."""

    PACK = "ComfyUI-nunchaku"
    TITLE = "Nunchaku FLUX LoRA Loader"
    DESCRIPTION = "Adds a LoRA to the transformer."
    FUNCTION = "load_lora"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model with the LoRA.",)
    FILES = {"lora_name": "loras"}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model."),
                "lora_name": cls.files("loras", "The LoRA's file."),
                "lora_strength": _strength(100.0),
            }
        }

    def load_lora(self, model: Any, lora_name: str, lora_strength: float) -> tuple[Any]:
        return (self.added(model, None, [(lora_name, lora_strength, 0.0)])[0],)


class NunchakuFluxLoraStack(ActsOnModel, _WithLoras):
    """Nunchaku's loader of up to fifteen LoRAs."""

    PACK = "ComfyUI-nunchaku"
    TITLE = "Nunchaku FLUX LoRA Stack"
    DESCRIPTION = "Adds up to fifteen LoRAs to the transformer."
    FUNCTION = "load_lora_stack"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model with the LoRAs.",)
    COUNT = 15
    FILES = {f"lora_name_{n}": "loras" for n in range(1, COUNT + 1)}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        rows: dict[str, Any] = {}
        for n in range(1, cls.COUNT + 1):
            rows |= {f"lora_name_{n}": cls.names(), f"lora_strength_{n}": _strength(100.0)}
        return {"required": {"model": socket(MODEL, "The model.")}, "optional": rows}

    def load_lora_stack(self, model: Any, **rows: Any) -> tuple[Any]:
        entries = [
            (rows.get(f"lora_name_{n}", NOTHING), rows.get(f"lora_strength_{n}", 1.0), 0.0)
            for n in range(1, self.COUNT + 1)
        ]
        return (self.added(model, None, entries)[0],)


class FluxLoraLoader(ActsOnModel, _WithLoras):
    """XLabs' loader of a LoRA."""

    PACK = "x-flux-comfyui"
    TITLE = "Load Flux LoRA"
    DESCRIPTION = "Adds a LoRA to the transformer. Its file may be in loras or in xlabs/loras."
    FUNCTION = "load_lora"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model with the LoRA.",)
    FILES = {"lora_name": "loras"}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model."),
                "lora_name": cls.files("loras", "The LoRA's file."),
                "strength_model": _strength(100.0),
            }
        }

    def load_lora(self, model: Any, lora_name: str, strength_model: float) -> tuple[Any]:
        return (self.added(model, None, [(lora_name, strength_model, 0.0)])[0],)


# -- lists ------------------------------------------------------------------------------------------------------------


class CRLoRAStack(_WithLoras):
    """Comfyroll's list of three LoRAs."""

    PACK = "ComfyUI_Comfyroll_CustomNodes"
    TITLE = "CR LoRA Stack"
    DESCRIPTION = "A list of up to three LoRAs."
    FUNCTION = "listed"
    RETURN_TYPES = (STACK, STRING)
    RETURN_NAMES = (STACK, "show_help")
    OUTPUT_TOOLTIPS = ("The list.", "Empty here.")
    FILES = {f"lora_name_{n}": "loras" for n in (1, 2, 3)}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        rows: dict[str, Any] = {}
        for n in (1, 2, 3):
            rows |= {f"switch_{n}": one_of(("Off", "On"), "Whether it is in the list."), f"lora_name_{n}": cls.names()}
            rows |= {f"model_weight_{n}": _strength(), f"clip_weight_{n}": _strength()}
        return {"required": rows, "optional": {"lora_stack": socket(STACK, "A list to extend.")}}

    def listed(self, lora_stack: Any = None, **rows: Any) -> tuple[list[Entry], str]:
        made = [
            (rows[f"lora_name_{n}"], rows[f"model_weight_{n}"], rows[f"clip_weight_{n}"])
            for n in (1, 2, 3)
            if rows[f"switch_{n}"] == "On" and rows[f"lora_name_{n}"] != NOTHING
        ]
        return [*(lora_stack or ()), *made], ""


class CRApplyLoRAStack(_WithLoras):
    """Comfyroll's loader of a list."""

    PACK = "ComfyUI_Comfyroll_CustomNodes"
    TITLE = "CR Apply LoRA Stack"
    DESCRIPTION = "Adds the LoRAs of a list."
    FUNCTION = "apply"
    RETURN_TYPES = (MODEL, CLIP, STRING)
    RETURN_NAMES = ("MODEL", "CLIP", "show_help")
    OUTPUT_TOOLTIPS = ("The model with the LoRAs.", "The text encoders with the LoRAs.", "Empty here.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model."),
                "clip": socket(CLIP, "The text encoders."),
                "lora_stack": socket(STACK, "The list."),
            }
        }

    def apply(self, model: Any, clip: Any, lora_stack: Any = None) -> tuple[Any, Any, str]:
        return (*self.added(model, clip, lora_stack or ()), "")


class EasyLoraStack(_WithLoras):
    """Easy-Use's list of up to ten LoRAs."""

    PACK = "comfyui-easy-use"
    TITLE = "EasyLoraStack"
    DESCRIPTION = "A list of up to ten LoRAs."
    FUNCTION = "listed"
    RETURN_TYPES = (STACK,)
    RETURN_NAMES = ("lora_stack",)
    OUTPUT_TOOLTIPS = ("The list.",)
    COUNT = 10
    FILES = {f"lora_{n}_name": "loras" for n in range(1, COUNT + 1)}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        rows: dict[str, Any] = {}
        for n in range(1, cls.COUNT + 1):
            rows |= {f"lora_{n}_name": cls.names(), f"lora_{n}_strength": _strength()}
            rows |= {f"lora_{n}_model_strength": _strength(), f"lora_{n}_clip_strength": _strength()}
        return {
            "required": {
                "toggle": flag(True, "Off returns only optional_lora_stack."),
                "mode": one_of(("simple", "advanced"), "advanced has two strengths for each."),
                "num_loras": whole("The number of rows that are used.", 1, 1, cls.COUNT),
            },
            "optional": {"optional_lora_stack": socket(STACK, "A list to extend."), **rows},
        }

    def listed(
        self, toggle: bool, mode: str, num_loras: int, optional_lora_stack: Any = None, **rows: Any
    ) -> tuple[Any]:
        if not toggle:
            return (optional_lora_stack,)
        two = mode == "advanced"
        kinds = ("model_strength", "clip_strength") if two else ("strength", "strength")
        made = [
            (rows[f"lora_{n}_name"], *(float(rows.get(f"lora_{n}_{kind}", 1.0)) for kind in kinds))
            for n in range(1, num_loras + 1)
            if rows.get(f"lora_{n}_name", NOTHING) != NOTHING
        ]
        return ([*(optional_lora_stack or ()), *made],)


class LoRAStacker(_WithLoras):
    """Efficiency Nodes' list of up to fifty LoRAs."""

    PACK = "efficiency-nodes-comfyui"
    TITLE = "LoRA Stacker"
    DESCRIPTION = "A list of up to fifty LoRAs."
    FUNCTION = "listed"
    RETURN_TYPES = (STACK,)
    OUTPUT_TOOLTIPS = ("The list.",)
    COUNT = 50
    FILES = {f"lora_name_{n}": "loras" for n in range(1, COUNT + 1)}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        names = cls.names()
        rows: dict[str, Any] = {
            "input_mode": one_of(("simple", "advanced"), "advanced has two strengths for each."),
            "lora_count": whole("The number of rows that are used.", 3, 0, cls.COUNT),
        }
        for n in range(1, cls.COUNT + 1):
            rows |= {f"lora_name_{n}": names, f"lora_wt_{n}": _strength()}
            rows |= {f"model_str_{n}": _strength(), f"clip_str_{n}": _strength()}
        return {"required": rows, "optional": {"lora_stack": socket(STACK, "A list to extend.")}}

    def listed(self, input_mode: str, lora_count: int, lora_stack: Any = None, **rows: Any) -> tuple[Any]:
        kinds = ("lora_wt", "lora_wt") if input_mode == "simple" else ("model_str", "clip_str")
        made = [
            (rows[f"lora_name_{n}"], *(rows[f"{kind}_{n}"] for kind in kinds))
            for n in range(1, lora_count + 1)
            if rows.get(f"lora_name_{n}", NOTHING) != NOTHING
        ]
        return ([*made, *(lora_stack or ())],)
