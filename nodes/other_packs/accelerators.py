"""Nodes of other packs that make a model faster, and their effect here.

Compiling, loading orders and clearing of memory change no image, so the model is passed on unchanged; the memory
manager and the products of this program serve the same purpose. Step caches are replaced by Sluice's own. SageAttention
is used if it is chosen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..sockets import IMAGE, MODEL, Inputs, socket
from .declared import ActsOnModel, OfAnotherPack, anything, decimal, flag, line, lines, one_of, unused, whole

SAGE = (
    *("disabled", "auto", "sageattn_qk_int8_pv_fp16_cuda", "sageattn_qk_int8_pv_fp16_triton"),
    *("sageattn_qk_int8_pv_fp8_cuda", "sageattn_qk_int8_pv_fp8_cuda++", "sageattn3"),
)
SAGE_TIP = "disabled: the program's setting. The others: sageattention, which chooses a kernel for the card itself."
MODES = ("default", "max-autotune", "max-autotune-no-cudagraphs", "reduce-overhead")


class _PassesModel(ActsOnModel):
    """A node with a model as input and the same model as output."""

    FUNCTION = "pass_on"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The same model.",)
    SETTINGS: dict[str, Any] = {}
    OPTIONAL: dict[str, Any] = {}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        required = {name: unused(declared) for name, declared in cls.SETTINGS.items()}
        optional = {name: unused(declared) for name, declared in cls.OPTIONAL.items()}
        return {"required": {"model": socket(MODEL, "The model."), **required}, "optional": optional}

    def pass_on(self, model: Any, **settings: Any) -> tuple[Any]:
        self.tell("no effect here; images stay the same.")
        return (model,)


class TorchCompileModel(_PassesModel):
    """ComfyUI's node that compiles a model."""

    TITLE = "TorchCompileModel"
    DESCRIPTION = (
        "Compiling is not done here: streamed weights change between layers. The model is passed on unchanged."
    )
    SETTINGS = {"backend": one_of(("inductor", "cudagraphs"), "")}


class TorchCompileModelFluxAdvanced(_PassesModel):
    """KJNodes' node that compiles FLUX's blocks, in its first form."""

    PACK = "comfyui-kjnodes"
    TITLE = "TorchCompileModelFluxAdvanced"
    DESCRIPTION = TorchCompileModel.DESCRIPTION
    SETTINGS = {
        "backend": one_of(("inductor", "cudagraphs"), ""),
        "fullgraph": flag(False, ""),
        "mode": one_of(MODES, "", "default"),
        "double_blocks": line("", "0-18"),
        "single_blocks": line("", "0-37"),
        "dynamic": flag(False, ""),
    }
    OPTIONAL = {"dynamo_cache_size_limit": whole("", 64, 0, 1024)}


class TorchCompileModelFluxAdvancedV2(_PassesModel):
    """KJNodes' node that compiles FLUX's blocks."""

    PACK = "comfyui-kjnodes"
    TITLE = "TorchCompileModelFluxAdvancedV2"
    DESCRIPTION = TorchCompileModel.DESCRIPTION
    SETTINGS = {
        **TorchCompileModelFluxAdvanced.SETTINGS,
        "double_blocks": flag(True, ""),
        "single_blocks": flag(True, ""),
    }
    OPTIONAL = {"dynamo_cache_size_limit": whole("", 64, 0, 1024), "force_parameter_static_shapes": flag(True, "")}


class EnhancedCompileModel(_PassesModel):
    """WaveSpeed's node that compiles anything."""

    PACK = "comfy-wavespeed"
    TITLE = "Compile Model+"
    DESCRIPTION = TorchCompileModel.DESCRIPTION
    RETURN_TYPES = ("*",)
    SETTINGS = {
        "is_patcher": flag(True, ""),
        "object_to_patch": line("", "diffusion_model"),
        "compiler": line("", "torch.compile"),
        "fullgraph": flag(False, ""),
        "dynamic": flag(False, ""),
        "mode": lines(""),
        "options": lines(""),
        "disable": flag(False, ""),
        "backend": line("", "inductor"),
    }

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        inputs = super().INPUT_TYPES()
        return {**inputs, "required": {**inputs["required"], "model": anything("The model.")}}


class CompileModel(_PassesModel):
    """TeaCache's and Pruna's node that compiles a model; the two declare different inputs."""

    PACK = "teacache"
    TITLE = "Compile Model"
    DESCRIPTION = TorchCompileModel.DESCRIPTION
    SETTINGS = {}
    OPTIONAL = {
        "mode": line("", "default"),
        "backend": line("", "inductor"),
        "fullgraph": flag(False, ""),
        "dynamic": flag(False, ""),
        "compiler": line("", "torch_compile"),
    }


def with_sage(model: Any, choice: str) -> Any:
    """The model with the attention that a pack's node chose: one of `SAGE`."""
    from ...flux_core.runtime import settings

    return model if choice == "disabled" else replace(model, own_attention=settings.SAGE)


class PathchSageAttentionKJ(_PassesModel):
    """KJNodes' choice of an attention kernel."""

    PACK = "comfyui-kjnodes"
    TITLE = "Patch Sage Attention KJ"
    DESCRIPTION = (
        "Computes the model's attention with the package sageattention on an NVIDIA card, if it is installed and its "
        "first result is near PyTorch's; a message says if it is not used. Images differ slightly."
    )
    OUTPUT_TOOLTIPS = ("The model with this attention.",)
    OPTIONAL = {"allow_compile": flag(False, "")}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        inputs = super().INPUT_TYPES()
        return {**inputs, "required": {**inputs["required"], "sage_attention": one_of(SAGE, SAGE_TIP)}}

    def pass_on(self, model: Any, sage_attention: str = "disabled", **settings: Any) -> tuple[Any]:
        return (with_sage(model, sage_attention),)


class PatchModelPatcherOrder(_PassesModel):
    """KJNodes' order of patches."""

    PACK = "comfyui-kjnodes"
    TITLE = "Patch Model Patcher Order"
    DESCRIPTION = "LoRAs are computed beside the weights here, so no order is needed. The model is passed on unchanged."
    SETTINGS = {
        "patch_order": one_of(("object_patch_first", "weight_patch_first"), "", "weight_patch_first"),
        "full_load": one_of(("enabled", "disabled", "auto"), "", "auto"),
    }


class ModelPatchTorchSettings(_PassesModel):
    """KJNodes' settings of PyTorch."""

    PACK = "comfyui-kjnodes"
    TITLE = "Model Patch Torch Settings"
    DESCRIPTION = "The precision of sums is not a setting here. The model is passed on unchanged."
    SETTINGS = {"enable_fp16_accumulation": flag(False, "")}


class MZ_Flux1PartialLoad_Patch(_PassesModel):
    """MinusZone's setting for the share of blocks on the card."""

    PACK = "ComfyUI-Flux1Quantization-MZ"
    TITLE = "MZ_Flux1PartialLoad_Patch"
    DESCRIPTION = "The memory manager decides how much of the model is on the card, within the budget."
    SETTINGS = {"double_blocks_cuda_size": whole("", 7, 0, 16), "single_blocks_cuda_size": whole("", 7, 0, 37)}


class FluxForwardOverrider(_PassesModel):
    """A node that its pack's TeaCache needs before it."""

    PACK = "comfyui_patches_ll"
    TITLE = "FluxForwardOverrider"
    DESCRIPTION = "Prepares a model for its pack's other nodes; no preparation is needed here."


class _SetsCache(ActsOnModel):
    """A step cache of another pack, replaced by Sluice's own."""

    FUNCTION = "patch"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model with Sluice's step cache.",)

    @classmethod
    def cached(cls, model: Any, threshold: float) -> tuple[Any]:
        from ...flux_core.sampling.step_cache import StepCache

        cls.tell(f"replaced by Sluice's step cache with threshold {threshold:.3f}.")
        return (replace(model, own_step_cache=StepCache(threshold, 0.0, 1.0)),)


class ApplyTeaCachePatch(_SetsCache):
    """TeaCache of another pack."""

    PACK = "comfyui_patches_ll"
    TITLE = "ApplyTeaCachePatch"
    DESCRIPTION = "TeaCache. Sluice uses its own step cache, at a quarter of the threshold."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        threshold = decimal("0 skips nothing; 0.25 to 0.8 is usual.", 0.25, 0.0, 1.0)
        return {"required": {"model": socket(MODEL, "The model."), "rel_l1_thresh": threshold}}

    def patch(self, model: Any, rel_l1_thresh: float) -> tuple[Any]:
        return self.cached(model, 0.25 * rel_l1_thresh)


class CacheModelAuto(_SetsCache):
    """Pruna's cache, set by a wanted speed."""

    PACK = "ComfyUI_pruna"
    TITLE = "Cache Model Auto"
    DESCRIPTION = "Skips steps with Sluice's own step cache to reach the wanted share of the time approximately."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        share = decimal("The remaining share of the time: 0.5 computes about half of 20 steps.", 0.5, 0.0, 1.0)
        return {
            "required": {"model": socket(MODEL, "The model."), "speed_factor": share},
            "optional": {"cache_mode": unused(line("", "taylor")), "compiler": unused(line("", "torch_compile"))},
        }

    def patch(self, model: Any, speed_factor: float, cache_mode: str = "", compiler: str = "") -> tuple[Any]:
        return self.cached(model, 0.2 * (1 - speed_factor))


class CacheModelPeriodic(_SetsCache):
    """Pruna's cache that computes one of several steps."""

    PACK = "ComfyUI_pruna"
    TITLE = "Cache Model Periodic"
    DESCRIPTION = "Sluice's step cache chooses the steps by how much they change, about as many as requested."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model."),
                "cache_interval": whole("One of this number of steps is computed.", 2, 1, 7),
                "start_step": unused(whole("", 2, 0, 10)),
            },
            "optional": {"cache_mode": unused(line("", "taylor")), "compiler": unused(line("", "torch_compile"))},
        }

    def patch(
        self, model: Any, cache_interval: int, start_step: int, cache_mode: str = "", compiler: str = ""
    ) -> tuple[Any]:
        return self.cached(model, 0.2 * (1 - 1 / cache_interval))


class CacheModelAdaptive(_SetsCache):
    """Pruna's cache, set by a threshold."""

    PACK = "ComfyUI_pruna"
    TITLE = "Cache Model Adaptive"
    DESCRIPTION = "Sluice's step cache, at ten times the threshold, which has another scale."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model."),
                "threshold": decimal("0 skips nothing; 0.01 is usual.", 0.01, 0.0, 0.2, 0.001),
                "max_skip_steps": unused(whole("", 4, 1, 10)),
            },
            "optional": {"cache_mode": unused(line("", "taylor")), "compiler": unused(line("", "torch_compile"))},
        }

    def patch(
        self, model: Any, threshold: float, max_skip_steps: int, cache_mode: str = "", compiler: str = ""
    ) -> tuple[Any]:
        return self.cached(model, 10 * threshold)


# -- clearing of memory -----------------------------------------------------------------------------------------------


class _Clears(OfAnotherPack):
    """A node with a value as input and the same value as output."""

    DESCRIPTION = "The memory manager frees memory when it is needed. The value is passed on unchanged."
    FUNCTION = "pass_on"
    RETURN_TYPES: tuple[str, ...] = ("*",)
    RETURN_NAMES: tuple[str, ...] = ("output",)
    OUTPUT_TOOLTIPS: tuple[str, ...] = ("The same value.",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"anything": anything("Any value.")}}

    def pass_on(self, anything: Any, **settings: Any) -> tuple[Any, ...]:
        return (anything,)


class EasyCleanGpuUsed(_Clears):
    """Easy-Use's node."""

    PACK = "comfyui-easy-use"
    TITLE = "Clean VRAM Used"


class EasyClearCacheAll(_Clears):
    """Easy-Use's node that also deletes cached results."""

    PACK = "comfyui-easy-use"
    TITLE = "Clear Cache All"


class PurgeVRAM(_Clears):
    """LayerStyle's node, which has no output."""

    PACK = "comfyui_layerstyle"
    TITLE = "LayerUtility: Purge VRAM"
    RETURN_TYPES: tuple[str, ...] = ()
    RETURN_NAMES: tuple[str, ...] = ()
    OUTPUT_TOOLTIPS: tuple[str, ...] = ()

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        inputs = super().INPUT_TYPES()["required"]
        return {
            "required": {**inputs, "purge_cache": unused(flag(True, "")), "purge_models": unused(flag(True, ""))},
        }

    def pass_on(self, anything: Any, **settings: Any) -> tuple[Any, ...]:
        return ()


class PurgeVRAMV2(PurgeVRAM):
    """LayerStyle's newer node."""

    TITLE = "LayerUtility: Purge VRAM V2"
    RETURN_TYPES = ("*",)
    RETURN_NAMES = ("any",)
    OUTPUT_TOOLTIPS = ("The same value.",)

    def pass_on(self, anything: Any, **settings: Any) -> tuple[Any, ...]:
        return (anything,)


class VRAM_Debug(OfAnotherPack):
    """KJNodes' node: passes values on and returns the free memory before and after."""

    PACK = "comfyui-kjnodes"
    TITLE = "VRAM Debug"
    DESCRIPTION = "Passes its values on. The memory manager frees memory, so both numbers are 0."
    FUNCTION = "pass_on"
    RETURN_TYPES = ("*", IMAGE, MODEL, "INT", "INT")
    RETURN_NAMES = ("any_output", "image_pass", "model_pass", "freemem_before", "freemem_after")
    OUTPUT_TOOLTIPS = ("The value.", "The images.", "The model.", "Always 0.", "Always 0.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "empty_cache": unused(flag(True, "")),
                "gc_collect": unused(flag(True, "")),
                "unload_all_models": unused(flag(False, "")),
            },
            "optional": {
                "any_input": anything("Any value."),
                "image_pass": socket(IMAGE, "Images."),
                "model_pass": socket(MODEL, "A model."),
            },
        }

    def pass_on(
        self,
        empty_cache: bool,
        gc_collect: bool,
        unload_all_models: bool,
        any_input: Any = None,
        image_pass: Any = None,
        model_pass: Any = None,
    ) -> tuple[Any, ...]:
        return any_input, image_pass, model_pass, 0, 0
