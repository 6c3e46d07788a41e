"""comfy.model_patcher: a MODEL for packs: one of our handles, or a module of a pack, with ComfyUI's methods.

Everything that packs set on a MODEL is stored here, as in ComfyUI, so that other packs find it. When the model is
passed to a node of ours, `handle()` adopts the settings that our engine supports (sampling, guidance, functions around
the model's function, the use of noise masks, the number type) and refuses the others by name.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ....errors import InputError
from ....runtime.handles import FluxModel
from ...guidance import ModelGuidance
from ...offered_modules import NotOffered
from ...partly_offered import PartlyOffered
from . import model_base, model_sampling

__all__ = [
    "ModelPatcher",
    "create_model_options_clone",
    "set_model_options_patch_replace",
    "set_model_options_post_cfg_function",
    "set_model_options_pre_cfg_function",
]

_GUIDANCE = (  # entries of model_options that combine predictions, or call the network as it is
    "model_function_wrapper",
    "sampler_cfg_function",
    "sampler_post_cfg_function",
    "sampler_pre_cfg_function",
    "sampler_calc_cond_batch_function",
)


def create_model_options_clone(orig_model_options: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with separate dicts and lists; everything else is shared."""

    def clone(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clone(item) for key, item in value.items()}
        return list(value) if isinstance(value, list) else value

    return {key: clone(value) for key, value in orig_model_options.items()}


def set_model_options_patch_replace(
    model_options: dict[str, Any],
    patch: Any,
    name: str,
    block_name: str,
    number: int,
    transformer_index: int | None = None,
) -> dict[str, Any]:
    """Replace a part of a block by a function."""
    options = model_options.setdefault("transformer_options", {})
    where = (block_name, number) if transformer_index is None else (block_name, number, transformer_index)
    options.setdefault("patches_replace", {}).setdefault(name, {})[where] = patch
    return model_options


def _append(model_options: dict[str, Any], key: str, function: Any, both: bool) -> dict[str, Any]:
    model_options[key] = [*model_options.get(key, []), function]
    if both:
        model_options["disable_cfg1_optimization"] = True
    return model_options


def set_model_options_post_cfg_function(
    model_options: dict[str, Any], post_cfg_function: Any, disable_cfg1_optimization: bool = False
) -> dict[str, Any]:
    return _append(model_options, "sampler_post_cfg_function", post_cfg_function, disable_cfg1_optimization)


def set_model_options_pre_cfg_function(
    model_options: dict[str, Any], pre_cfg_function: Any, disable_cfg1_optimization: bool = False
) -> dict[str, Any]:
    return _append(model_options, "sampler_pre_cfg_function", pre_cfg_function, disable_cfg1_optimization)


class ModelPatcher(metaclass=PartlyOffered):
    """A MODEL. `model`: a FluxModel of ours, or any torch module of a pack, which is moved between devices."""

    def __init__(
        self,
        model: Any,
        load_device: Any = None,
        offload_device: Any = None,
        size: int = 0,
        weight_inplace_update: bool = False,
    ) -> None:
        if isinstance(model, type):
            raise NotOffered("A MODEL around one of ComfyUI's own model classes")
        self._handle = model if isinstance(model, FluxModel) else None
        self.model: Any = model_base.Flux(model) if isinstance(model, FluxModel) else model
        self.load_device = self._handle.device if self._handle else torch.device(load_device or "cpu")
        self.offload_device = torch.device(offload_device or "cpu")
        self.size = size
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.object_patches: dict[str, Any] = {}
        self.patches: dict[str, Any] = {}
        self.attachments: dict[str, Any] = {}
        self.wrappers: dict[str, dict[str | None, list[Any]]] = {}
        self.callbacks: dict[str, dict[str | None, list[Any]]] = {}
        self.additional_models: dict[str, list[Any]] = {}
        self.injections: dict[str, list[Any]] = {}
        self.parent: Any = None
        self.patches_uuid = uuid.uuid4()

    # -- our engine's side -------------------------------------------------------------------------------------------

    def handle(self) -> FluxModel:
        """The model for our own nodes. Raises InputError, or NotOffered, for settings they do not support."""
        if self._handle is None:
            raise InputError(f"This MODEL is a {type(self.model).__name__} of a node pack; Sluice samples FLUX.1 only.")
        changes: dict[str, Any] = {}
        for name, value in self.object_patches.items():
            if name != "model_sampling":
                raise self._refused(f"a replacement of {name}")
            changes["sampling"] = model_sampling.engine_sampling(value)
        options = dict(self.model_options)
        mask_function = options.pop("denoise_mask_function", None)
        if mask_function is not None:
            changes["mask_function"] = _MaskFunction(mask_function, self.model)
        if any(options.get(key) for key in _GUIDANCE):
            levels = model_sampling.sampling_object(changes.get("sampling", self._handle.sampling))
            changes["guidance"] = ModelGuidance(create_model_options_clone(options), levels)
        inner = options.get("transformer_options", {})
        for key in ("patches", "patches_replace", "wrappers", "callbacks"):
            if inner.get(key):
                raise self._refused(f"{key} of the network's blocks ({', '.join(map(str, inner[key]))})")
        for kind, what in (("patches of weights", self.patches), ("injections", self.injections)):
            if what:
                raise self._refused(kind)
        kinds = [kind for kind, by_key in self.wrappers.items() if any(by_key.values())]
        if kinds:
            raise self._refused(f"wrappers ({', '.join(kinds)})")
        return replace(self._handle, **changes) if changes else self._handle

    def _refused(self, what: str) -> InputError:
        return InputError(
            f"A node of another pack has put {what} on the model. That changes how ComfyUI's own network computes and "
            "is not possible for a model of Sluice, whose weights are streamed. Remove that node."
        )

    # -- ComfyUI's interface -----------------------------------------------------------------------------------------

    def clone(self) -> Any:
        """A copy that can be changed separately; weights are shared."""
        twin = copy.copy(self)
        twin.model_options = create_model_options_clone(self.model_options)
        for name in ("object_patches", "attachments"):
            setattr(twin, name, dict(getattr(self, name)))
        for name in ("patches", "additional_models", "injections"):
            setattr(twin, name, {key: list(value) for key, value in getattr(self, name).items()})
        for name in ("wrappers", "callbacks"):
            kept = getattr(self, name)
            setattr(twin, name, {kind: {k: list(v) for k, v in by.items()} for kind, by in kept.items()})
        twin.parent = self
        return twin

    def is_clone(self, other: Any) -> bool:
        own, others = self._handle, getattr(other, "_handle", None)
        if own is not None and others is not None:
            return own.weights is others.weights
        return getattr(other, "model", None) is self.model

    clone_has_same_weights = is_clone

    def model_size(self) -> int:
        """Bytes."""
        if self._handle is not None:
            return int(self._handle.weights.nbytes)
        return sum(tensor.nbytes for tensor in self.model.state_dict().values())

    def loaded_size(self) -> int:
        return self.model_size()

    def memory_required(self, input_shape: Any) -> int:
        return 0

    def model_dtype(self) -> torch.dtype | None:
        if self._handle is not None:
            return self._handle.dtype
        return next((parameter.dtype for parameter in self.model.parameters()), None)

    def current_loaded_device(self) -> torch.device:
        if self._handle is not None:
            return self._handle.device
        return next((parameter.device for parameter in self.model.parameters()), self.offload_device)

    def get_model_object(self, name: str) -> Any:
        """ "model_sampling", "latent_format", or their replacements."""
        if name in self.object_patches:
            return self.object_patches[name]
        found = self.model
        for part in name.split("."):
            found = getattr(found, part)
        return found

    def add_object_patch(self, name: str, obj: Any) -> None:
        self.object_patches[name] = obj

    def set_model_compute_dtype(self, dtype: torch.dtype) -> None:
        if self._handle is not None:
            self._handle = replace(self._handle, compute_dtype=dtype)

    def set_model_denoise_mask_function(self, denoise_mask_function: Any) -> None:
        self.model_options["denoise_mask_function"] = denoise_mask_function

    def set_model_sampler_cfg_function(
        self, sampler_cfg_function: Any, disable_cfg1_optimization: bool = False
    ) -> None:
        self.model_options["sampler_cfg_function"] = sampler_cfg_function

    def set_model_sampler_post_cfg_function(
        self, post_cfg_function: Any, disable_cfg1_optimization: bool = False
    ) -> None:
        set_model_options_post_cfg_function(self.model_options, post_cfg_function, disable_cfg1_optimization)

    def set_model_sampler_pre_cfg_function(
        self, pre_cfg_function: Any, disable_cfg1_optimization: bool = False
    ) -> None:
        set_model_options_pre_cfg_function(self.model_options, pre_cfg_function, disable_cfg1_optimization)

    def set_model_sampler_calc_cond_batch_function(self, function: Any) -> None:
        self.model_options["sampler_calc_cond_batch_function"] = function

    def set_model_unet_function_wrapper(self, unet_wrapper_function: Any) -> None:
        self.model_options["model_function_wrapper"] = unet_wrapper_function

    def set_model_patch(self, patch: Any, name: str) -> None:
        patches = self.model_options["transformer_options"].setdefault("patches", {})
        patches[name] = [*patches.get(name, []), patch]

    def set_model_patch_replace(
        self, patch: Any, name: str, block_name: str, number: int, transformer_index: int | None = None
    ) -> None:
        set_model_options_patch_replace(self.model_options, patch, name, block_name, number, transformer_index)

    def __getattr__(self, name: str) -> Any:
        """set_model_<place>_patch(patch) and set_model_<place>_replace(patch, block, number), as there are many."""
        if name.startswith("set_model_") and name.endswith("_replace"):
            place = name.removeprefix("set_model_").removesuffix("_replace")
            return lambda patch, *where, **more: self.set_model_patch_replace(patch, place, *where, **more)
        if name.startswith("set_model_") and "patch" in name:
            place = name.removeprefix("set_model_")
            return lambda patch: self.set_model_patch(patch, place)
        raise NotOffered(f"MODEL.{name}")

    def add_patches(self, patches: Mapping[str, Any], strength_patch: float = 1.0, strength_model: float = 1.0) -> Any:
        """Changes of weights. They are stored; LoRAs of ours are added by Load LoRA, or by load_lora_for_models."""
        for key, patch in patches.items():
            self.patches[key] = [*self.patches.get(key, []), (strength_patch, patch, strength_model)]
        return list(patches)

    def get_key_patches(self, filter_prefix: str | None = None) -> dict[str, Any]:
        return {key: patch for key, patch in self.patches.items() if key.startswith(filter_prefix or "")}

    def model_state_dict(self, filter_prefix: str | None = None) -> dict[str, Tensor]:
        if self._handle is not None:
            raise NotOffered("The state dict of a MODEL (its weights are streamed)")
        named = self.model.state_dict().items()
        return {name: tensor for name, tensor in named if name.startswith(filter_prefix or "")}

    # Only a pack's own module is moved; our models are moved by the memory manager.

    def patch_model(self, device_to: Any = None, *args: Any, **kwargs: Any) -> Any:
        if self._handle is None and device_to is not None:
            self.model.to(device_to)
        return self.model

    def unpatch_model(self, device_to: Any = None, *args: Any, **kwargs: Any) -> None:
        self.patch_model(device_to)

    def model_patches_to(self, device: Any) -> None:
        """None of our modules needs to be moved."""

    def model_patches_models(self) -> list[Any]:
        return []

    def detach(self, unpatch_all: bool = True) -> Any:
        self.unpatch_model(self.offload_device)
        return self.model

    # Attachments, wrappers and callbacks: stored for packs that read them.

    def set_attachments(self, key: str, attachment: Any) -> None:
        self.attachments[key] = attachment

    def get_attachment(self, key: str) -> Any:
        return self.attachments.get(key)

    def remove_attachments(self, key: str) -> None:
        self.attachments.pop(key, None)

    def add_wrapper(self, wrapper_type: str, wrapper: Callable[..., Any]) -> None:
        self.add_wrapper_with_key(wrapper_type, None, wrapper)

    def add_wrapper_with_key(self, wrapper_type: str, key: str | None, wrapper: Callable[..., Any]) -> None:
        self.wrappers.setdefault(wrapper_type, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, wrapper_type: str, key: str) -> None:
        self.wrappers.get(wrapper_type, {}).pop(key, None)

    def get_wrappers(self, wrapper_type: str, key: str) -> list[Any]:
        return self.wrappers.get(wrapper_type, {}).get(key, [])

    def add_callback(self, call_type: str, callback: Callable[..., Any]) -> None:
        self.add_callback_with_key(call_type, None, callback)

    def add_callback_with_key(self, call_type: str, key: str | None, callback: Callable[..., Any]) -> None:
        self.callbacks.setdefault(call_type, {}).setdefault(key, []).append(callback)

    def set_additional_models(self, key: str, models: list[Any]) -> None:
        self.additional_models[key] = models

    def set_injections(self, key: str, injections: list[Any]) -> None:
        self.injections[key] = injections


class _MaskFunction:
    """A pack's use of noise masks, with the interface of our sampling."""

    def __init__(self, function: Any, model: Any) -> None:
        self.function, self.model = function, model

    def __call__(self, mask: Tensor, sigma: float, sigmas: Any, sampling: Any) -> Tensor:
        asked = {"model": self.model, "sigmas": torch.tensor(list(sigmas))}
        answer: Tensor = self.function(torch.full((mask.shape[0],), sigma), mask, extra_options=asked)
        return answer
