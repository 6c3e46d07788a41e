"""The ids of other packs that are answered here, and by which class."""

from __future__ import annotations

from typing import Any

from . import accelerators, loaders, loras

OTHER_CLASSES: dict[str, type[Any]] = {
    # Loaders
    "NunchakuFluxDiTLoader": loaders.NunchakuFluxDiTLoader,
    "NunchakuTextEncoderLoader": loaders.NunchakuTextEncoderLoader,
    "NunchakuTextEncoderLoaderV2": loaders.NunchakuTextEncoderLoaderV2,
    "UNETLoaderMultiGPU": loaders.UNETLoaderMultiGPU,
    "VAELoaderMultiGPU": loaders.VAELoaderMultiGPU,
    "CLIPLoaderMultiGPU": loaders.CLIPLoaderMultiGPU,
    "DualCLIPLoaderMultiGPU": loaders.DualCLIPLoaderMultiGPU,
    "CheckpointLoaderSimpleMultiGPU": loaders.CheckpointLoaderSimpleMultiGPU,
    "UnetLoaderGGUFMultiGPU": loaders.UnetLoaderGGUFMultiGPU,
    "UnetLoaderGGUFAdvancedMultiGPU": loaders.UnetLoaderGGUFAdvancedMultiGPU,
    "CLIPLoaderGGUFMultiGPU": loaders.CLIPLoaderGGUFMultiGPU,
    "DualCLIPLoaderGGUFMultiGPU": loaders.DualCLIPLoaderGGUFMultiGPU,
    "UnetLoaderGGUFDisTorchMultiGPU": loaders.UnetLoaderGGUFDisTorchMultiGPU,
    "CLIPLoaderGGUFDisTorchMultiGPU": loaders.CLIPLoaderGGUFDisTorchMultiGPU,
    "DualCLIPLoaderGGUFDisTorchMultiGPU": loaders.DualCLIPLoaderGGUFDisTorchMultiGPU,
    "UNETLoaderDisTorch2MultiGPU": loaders.UNETLoaderDisTorch2MultiGPU,
    "VAELoaderDisTorch2MultiGPU": loaders.VAELoaderDisTorch2MultiGPU,
    "DualCLIPLoaderDisTorch2MultiGPU": loaders.DualCLIPLoaderDisTorch2MultiGPU,
    "CheckpointLoaderSimpleDisTorch2MultiGPU": loaders.CheckpointLoaderSimpleDisTorch2MultiGPU,
    "UnetLoaderGGUFDisTorch2MultiGPU": loaders.UnetLoaderGGUFDisTorch2MultiGPU,
    "DualCLIPLoaderGGUFDisTorch2MultiGPU": loaders.DualCLIPLoaderGGUFDisTorch2MultiGPU,
    "LoaderGGUF": loaders.LoaderGGUF,
    "DualClipLoaderGGUF": loaders.DualClipLoaderGGUF,
    "VaeGGUF": loaders.VaeGGUF,
    "LoadDiffusionModel": loaders.LoadDiffusionModel,
    "CheckpointLoaderNF4": loaders.CheckpointLoaderNF4,
    "UNETLoaderNF4": loaders.UNETLoaderNF4,
    "DiffusionModelLoaderKJ": loaders.DiffusionModelLoaderKJ,
    # LoRAs
    "Power Lora Loader (rgthree)": loras.PowerLoraLoader,
    "Lora Loader Stack (rgthree)": loras.LoraLoaderStack,
    "NunchakuFluxLoraLoader": loras.NunchakuFluxLoraLoader,
    "NunchakuFluxLoraStack": loras.NunchakuFluxLoraStack,
    "FluxLoraLoader": loras.FluxLoraLoader,
    "CR LoRA Stack": loras.CRLoRAStack,
    "CR Apply LoRA Stack": loras.CRApplyLoRAStack,
    "easy loraStack": loras.EasyLoraStack,
    "LoRA Stacker": loras.LoRAStacker,
    # What makes models faster elsewhere
    "TorchCompileModel": accelerators.TorchCompileModel,
    "TorchCompileModelFluxAdvanced": accelerators.TorchCompileModelFluxAdvanced,
    "TorchCompileModelFluxAdvancedV2": accelerators.TorchCompileModelFluxAdvancedV2,
    "EnhancedCompileModel": accelerators.EnhancedCompileModel,
    "CompileModel": accelerators.CompileModel,
    "PathchSageAttentionKJ": accelerators.PathchSageAttentionKJ,
    "PatchModelPatcherOrder": accelerators.PatchModelPatcherOrder,
    "ModelPatchTorchSettings": accelerators.ModelPatchTorchSettings,
    "MZ_Flux1PartialLoad_Patch": accelerators.MZ_Flux1PartialLoad_Patch,
    "FluxForwardOverrider": accelerators.FluxForwardOverrider,
    "ApplyTeaCachePatch": accelerators.ApplyTeaCachePatch,
    "CacheModelAuto": accelerators.CacheModelAuto,
    "CacheModelPeriodic": accelerators.CacheModelPeriodic,
    "CacheModelAdaptive": accelerators.CacheModelAdaptive,
    "easy cleanGpuUsed": accelerators.EasyCleanGpuUsed,
    "easy clearCacheAll": accelerators.EasyClearCacheAll,
    "LayerUtility: PurgeVRAM": accelerators.PurgeVRAM,
    "LayerUtility: PurgeVRAM V2": accelerators.PurgeVRAMV2,
    "VRAM_Debug": accelerators.VRAM_Debug,
}
