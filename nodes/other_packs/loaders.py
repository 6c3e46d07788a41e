"""Loaders with the ids of other packs: they load the same files through our own loaders and treat settings as hints.

The memory manager decides about placement on devices and offloading, within the budget.
"""

from __future__ import annotations

from typing import Any

from ..gguf import CLIPLoaderGGUF, DualCLIPLoaderGGUF, UnetLoaderGGUF, UnetLoaderGGUFAdvanced
from ..loaders import (
    CheckpointLoaderSimple,
    CLIPLoader,
    DualCLIPLoader,
    FromFiles,
    UNETLoader,
    VAELoader,
    load_text_encoders,
    load_transformer,
)
from ..sockets import CLIP, MODEL, Inputs, choice
from .accelerators import SAGE_TIP, with_sage
from .declared import ActsOnModel, decimal, flag, line, one_of, unused, whole

# -- nunchaku ---------------------------------------------------------------------------------------------------------


class NunchakuFluxDiTLoader(ActsOnModel, FromFiles):
    """Nunchaku's loader of transformers."""

    PACK = "ComfyUI-nunchaku"
    TITLE = "Nunchaku FLUX DiT Loader"
    DESCRIPTION = (
        "Loads a FLUX.1 transformer. A file of nunchaku's (int4 or fp4) is written once in plain order into a cache "
        "folder and streams from there; every other format runs too."
    )
    FUNCTION = "load_model"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model that denoises.",)
    FILES = {"model_path": "diffusion_models"}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        threshold = decimal("0 skips nothing; usual is 0.12. It sets Sluice's own step cache.", 0, 0, 1, 0.001)
        return {
            "required": {
                "model_path": cls.files("diffusion_models", "The transformer's file."),
                "cache_threshold": threshold,
                "attention": unused(one_of(("nunchaku-fp16", "flash-attention2"), "", "nunchaku-fp16")),
                "cpu_offload": unused(one_of(("auto", "enable", "disable"), "", "auto")),
                "device_id": unused(whole("", 0, 0, 63)),
                "data_type": unused(one_of(("bfloat16", "float16"), "", "bfloat16")),
            },
            "optional": {"i2f_mode": unused(one_of(("enabled", "always"), "", "enabled"))},
        }

    def load_model(
        self,
        model_path: str,
        cache_threshold: float,
        attention: str,
        cpu_offload: str,
        device_id: int,
        data_type: str,
        i2f_mode: str = "enabled",
    ) -> tuple[Any]:
        from dataclasses import replace

        from ...flux_core.sampling.step_cache import StepCache

        model = load_transformer(self.host, model_path)
        if cache_threshold > 0:
            model = replace(model, own_step_cache=StepCache(0.5 * cache_threshold, 0.0, 1.0))
        return (model,)


class NunchakuTextEncoderLoaderV2(ActsOnModel, FromFiles):
    """Nunchaku's loader of text encoders."""

    PACK = "ComfyUI-nunchaku"
    TITLE = "Nunchaku Text Encoder Loader V2"
    DESCRIPTION = "Loads CLIP-L and T5-XXL, in either order, and pads T5's text to a length."
    FUNCTION = "load_text_encoder"
    RETURN_TYPES = (CLIP,)
    OUTPUT_TOOLTIPS = ("The text encoders.",)
    FILES = {"text_encoder1": "text_encoders", "text_encoder2": "text_encoders"}
    KINDS = ("flux.1",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model_type": unused(one_of(cls.KINDS, "")),
                "text_encoder1": cls.files("text_encoders", "One of the two files: clip_l or t5xxl."),
                "text_encoder2": cls.files("text_encoders", "The other file."),
                "t5_min_length": whole("The length in tokens to which T5's row is padded.", 512, 256, 1024, step=128),
            }
        }

    def load_text_encoder(
        self, model_type: str, text_encoder1: str, text_encoder2: str, t5_min_length: int
    ) -> tuple[Any]:
        from dataclasses import replace

        clip = load_text_encoders(self.host, [text_encoder1, text_encoder2])
        return (replace(clip, options=replace(clip.options, min_length=t5_min_length)),)


class NunchakuTextEncoderLoader(NunchakuTextEncoderLoaderV2):
    """The older form, with a switch for a T5 in four bits."""

    TITLE = "Nunchaku Text Encoder Loader (Deprecated)"
    KINDS = ("flux",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                **super().INPUT_TYPES()["required"],
                "use_4bit_t5": one_of(("disable", "enable"), "enable takes T5 from int4_model, a file of nunchaku's."),
                "int4_model": line("That file, in text_encoders.", "none"),
            }
        }

    def load_text_encoder(
        self,
        model_type: str,
        text_encoder1: str,
        text_encoder2: str,
        t5_min_length: int,
        use_4bit_t5: str = "disable",
        int4_model: str = "none",
    ) -> tuple[Any]:
        from dataclasses import replace

        small = [int4_model] if use_4bit_t5 == "enable" else []  # the last T5 that is named is taken
        clip = load_text_encoders(self.host, [text_encoder1, text_encoder2, *small])
        return (replace(clip, options=replace(clip.options, min_length=t5_min_length)),)


# -- MultiGPU ---------------------------------------------------------------------------------------------------------


def _placed(node_class: type[Any], **more: Any) -> type[Any]:
    """A loader of ours with MultiGPU's additional inputs for placement, which have no effect here."""
    placement = {name: unused(declared) for name, declared in more.items()}
    function = node_class.FUNCTION

    class Placed(ActsOnModel, node_class):  # type: ignore[misc]
        PACK = "comfyui-multigpu"
        TITLE = f"{getattr(node_class, 'TITLE', node_class.__name__)} (MultiGPU)"
        DESCRIPTION = f"{node_class.DESCRIPTION} The memory manager decides where weights are."
        CATEGORY = ActsOnModel.CATEGORY

        @classmethod
        def INPUT_TYPES(cls) -> Inputs:
            inputs = super().INPUT_TYPES()
            return {**inputs, "optional": {**inputs.get("optional", {}), **placement}}

    def load(self: Any, *given: Any, **inputs: Any) -> Any:
        kept = {name: value for name, value in inputs.items() if name not in placement or name == "device"}
        if not _names_a_place_for_text(node_class) or kept.get("device") not in ("default", "cpu", None):
            kept.pop("device", None)
        return getattr(super(Placed, self), function)(*given, **kept)

    setattr(Placed, function, load)
    Placed.__name__ = Placed.__qualname__ = f"{node_class.__name__}MultiGPU"
    return Placed


def _names_a_place_for_text(node_class: type[Any]) -> bool:
    """Whether the loader itself has an input for encoding on the processor."""
    return node_class in (DualCLIPLoader, CLIPLoader)


DEVICE = line("", "cuda:0")
FIRST: dict[str, Any] = {
    "device": DEVICE,
    "virtual_vram_gb": decimal("", 4.0, 0.0, 1000.0, 0.1),
    "use_other_vram": flag(False, ""),
    "expert_mode_allocations": line(""),
}
SECOND: dict[str, Any] = {
    "compute_device": DEVICE,
    "virtual_vram_gb": decimal("", 4.0, 0.0, 1000.0, 0.1),
    "donor_device": line("", "cpu"),
    "expert_mode_allocations": line(""),
    "high_precision_loras": flag(True, ""),
    "eject_models": flag(True, ""),
}

UNETLoaderMultiGPU = _placed(UNETLoader, device=DEVICE)
VAELoaderMultiGPU = _placed(VAELoader, device=DEVICE)
CLIPLoaderMultiGPU = _placed(CLIPLoader, device=DEVICE)
DualCLIPLoaderMultiGPU = _placed(DualCLIPLoader, device=DEVICE)
CheckpointLoaderSimpleMultiGPU = _placed(CheckpointLoaderSimple, device=DEVICE)
UnetLoaderGGUFMultiGPU = _placed(UnetLoaderGGUF, device=DEVICE)
UnetLoaderGGUFAdvancedMultiGPU = _placed(UnetLoaderGGUFAdvanced, device=DEVICE)
CLIPLoaderGGUFMultiGPU = _placed(CLIPLoaderGGUF, device=DEVICE)
DualCLIPLoaderGGUFMultiGPU = _placed(DualCLIPLoaderGGUF, device=DEVICE)
UnetLoaderGGUFDisTorchMultiGPU = _placed(UnetLoaderGGUF, **FIRST)
CLIPLoaderGGUFDisTorchMultiGPU = _placed(CLIPLoaderGGUF, **FIRST)
DualCLIPLoaderGGUFDisTorchMultiGPU = _placed(DualCLIPLoaderGGUF, **FIRST)
UNETLoaderDisTorch2MultiGPU = _placed(UNETLoader, **SECOND)
VAELoaderDisTorch2MultiGPU = _placed(VAELoader, **SECOND)
DualCLIPLoaderDisTorch2MultiGPU = _placed(DualCLIPLoader, **SECOND)
CheckpointLoaderSimpleDisTorch2MultiGPU = _placed(CheckpointLoaderSimple, **SECOND)
UnetLoaderGGUFDisTorch2MultiGPU = _placed(UnetLoaderGGUF, **SECOND)
DualCLIPLoaderGGUFDisTorch2MultiGPU = _placed(DualCLIPLoaderGGUF, **SECOND)


# -- others -----------------------------------------------------------------------------------------------------------


class LoaderGGUF(ActsOnModel, FromFiles):
    """The pack gguf's loader of transformers."""

    PACK = "gguf"
    TITLE = "GGUF Loader"
    DESCRIPTION = "Loads a FLUX.1 transformer from a GGUF file."
    FUNCTION = "load_model"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model that denoises.",)
    FILES = {"gguf_name": "diffusion_models"}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        found = [name for name in cls.host.filenames("diffusion_models") if name.lower().endswith(".gguf")]
        return {"required": {"gguf_name": choice(found, "The transformer's file.")}}

    def load_model(self, gguf_name: str) -> tuple[Any]:
        return (load_transformer(self.host, gguf_name),)


class DualClipLoaderGGUF(ActsOnModel, DualCLIPLoader):
    """The pack gguf's loader of text encoders."""

    PACK = "gguf"
    TITLE = "GGUF DualCLIP Loader"
    CATEGORY = ActsOnModel.CATEGORY


class VaeGGUF(ActsOnModel, VAELoader):
    """The pack gguf's loader of autoencoders."""

    PACK = "gguf"
    TITLE = "GGUF VAE Loader"
    CATEGORY = ActsOnModel.CATEGORY


class LoadDiffusionModel(ActsOnModel, FromFiles):
    """A transformer by its file name only, as some programs write it in API prompts."""

    TITLE = "Load Diffusion Model (by name)"
    DESCRIPTION = "Loads a FLUX.1 transformer."
    FUNCTION = "load_model"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model that denoises.",)
    FILES = {"unet_name": "diffusion_models"}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"unet_name": cls.files("diffusion_models", "The transformer's file.")}}

    def load_model(self, unet_name: str) -> tuple[Any]:
        return (load_transformer(self.host, unet_name),)


class CheckpointLoaderNF4(ActsOnModel, CheckpointLoaderSimple):
    """The NF4 pack's loader: the file determines how its numbers are stored."""

    PACK = "ComfyUI_bitsandbytes_NF4"
    TITLE = "CheckpointLoaderNF4"
    CATEGORY = ActsOnModel.CATEGORY


class UNETLoaderNF4(LoadDiffusionModel):
    """The NF4 pack's loader of transformers."""

    PACK = "ComfyUI_UNet_bitsandbytes_NF4"
    TITLE = "UNETLoaderNF4"
    FILES = {"unet_name": "diffusion_models"}


class DiffusionModelLoaderKJ(ActsOnModel, FromFiles):
    """KJNodes' loader of transformers."""

    PACK = "comfyui-kjnodes"
    TITLE = "Diffusion Model Loader KJ"
    DESCRIPTION = "Loads a FLUX.1 transformer. The number type of the computation is chosen for the device."
    FUNCTION = "load_model"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model that denoises.",)
    FILES = {"model_name": "diffusion_models"}
    TYPES = ("default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2", "fp16", "bf16", "fp32")
    ATTENTION = ("disabled", "auto", "sageattn_qk_int8_pv_fp16_cuda", "sageattn_qk_int8_pv_fp16_triton")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model_name": cls.files("diffusion_models", "The transformer's file."),
                "weight_dtype": one_of(
                    cls.TYPES, "fp8 halves bf16, with a small loss; the others use the stored type."
                ),
                "compute_dtype": unused(one_of(("default", "fp16", "bf16", "fp32"), "")),
                "patch_cublaslinear": unused(flag(False, "")),
                "sage_attention": one_of(cls.ATTENTION, SAGE_TIP),
                "enable_fp16_accumulation": unused(flag(False, "")),
            },
            "optional": {"extra_state_dict": unused(line(""))},
        }

    def load_model(
        self, model_name: str, weight_dtype: str, sage_attention: str = "disabled", **settings: Any
    ) -> tuple[Any]:
        stored = weight_dtype if weight_dtype.startswith("fp8") else "default"
        return (with_sage(load_transformer(self.host, model_name, stored), sage_attention),)
