"""The catalogue of nodes. A node translates: sockets in, one call into flux_core, sockets out.

Ids are ComfyUI's own with our prefix, so that both can stand side by side inside ComfyUI; the standalone program knows
the classes without the prefix as well (flux_core/registry.py). The table is literal: others read it without running it.
"""

from typing import Any

from .conditioning import (
    ConditioningAverage,
    ConditioningCombine,
    ConditioningConcat,
    ConditioningSetArea,
    ConditioningSetAreaPercentage,
    ConditioningSetAreaStrength,
    ConditioningSetMask,
    ConditioningSetTimestepRange,
    ConditioningZeroOut,
)
from .editing import (
    FluxKontextMultiReferenceLatentMethod,
    InpaintModelConditioning,
    InstructPixToPixConditioning,
    ReferenceLatent,
)
from .gguf import DualCLIPLoaderGGUF, UnetLoaderGGUF
from .guiders import BasicGuider, CFGGuider, DisableNoise, DualCFGGuider, KSamplerSelect, RandomNoise
from .image import (
    EmptyImage,
    FluxKontextImageScale,
    ImageBatch,
    ImageCompositeMasked,
    ImageInvert,
    ImagePadForOutpaint,
    ImageScale,
    ImageScaleBy,
    ImageScaleToTotalPixels,
)
from .image_files import LoadImage, LoadImageMask, PreviewImage, SaveImage, SaveImageWebsocket
from .latent import (
    EmptyLatentImage,
    EmptySD3LatentImage,
    LatentCompositeMasked,
    LatentFromBatch,
    LatentUpscale,
    LatentUpscaleBy,
    RepeatLatentBatch,
    SetLatentNoiseMask,
)
from .loaders import CheckpointLoaderSimple, CLIPLoader, DualCLIPLoader, UNETLoader, VAELoader
from .lora import LoraLoader, LoraLoaderModelOnly
from .mask import FeatherMask, GrowMask, ImageToMask, InvertMask, MaskToImage, SolidMask
from .model import DifferentialDiffusion, FluxToModel, MemoryBudget, ModelComputeDtype, ModelSamplingFlux
from .primitive import PrimitiveBoolean, PrimitiveFloat, PrimitiveInt, PrimitiveString, PrimitiveStringMultiline
from .sampling import AddNoise, KSampler, KSamplerAdvanced, SamplerCustom, SamplerCustomAdvanced
from .sigmas import (
    BasicScheduler,
    BetaSamplingScheduler,
    ExponentialScheduler,
    FlipSigmas,
    KarrasScheduler,
    SamplingPercentToSigma,
    SetFirstSigma,
    SplitSigmas,
    SplitSigmasDenoise,
)
from .text import (
    CLIPSetLastLayer,
    CLIPTextEncode,
    CLIPTextEncodeFlux,
    FluxDisableGuidance,
    FluxGuidance,
    T5TokenizerOptions,
)
from .vae import VAEDecode, VAEDecodeTiled, VAEEncode, VAEEncodeForInpaint, VAEEncodeTiled

NODE_CLASSES: dict[str, type[Any]] = {
    "SluiceUNETLoader": UNETLoader,
    "SluiceDualCLIPLoader": DualCLIPLoader,
    "SluiceCLIPLoader": CLIPLoader,
    "SluiceVAELoader": VAELoader,
    "SluiceCheckpointLoaderSimple": CheckpointLoaderSimple,
    "SluiceCLIPTextEncode": CLIPTextEncode,
    "SluiceCLIPTextEncodeFlux": CLIPTextEncodeFlux,
    "SluiceCLIPSetLastLayer": CLIPSetLastLayer,
    "SluiceT5TokenizerOptions": T5TokenizerOptions,
    "SluiceFluxGuidance": FluxGuidance,
    "SluiceFluxDisableGuidance": FluxDisableGuidance,
    "SluiceConditioningZeroOut": ConditioningZeroOut,
    "SluiceConditioningCombine": ConditioningCombine,
    "SluiceConditioningConcat": ConditioningConcat,
    "SluiceConditioningAverage": ConditioningAverage,
    "SluiceConditioningSetArea": ConditioningSetArea,
    "SluiceConditioningSetAreaPercentage": ConditioningSetAreaPercentage,
    "SluiceConditioningSetAreaStrength": ConditioningSetAreaStrength,
    "SluiceConditioningSetMask": ConditioningSetMask,
    "SluiceConditioningSetTimestepRange": ConditioningSetTimestepRange,
    "SluiceInstructPixToPixConditioning": InstructPixToPixConditioning,
    "SluiceInpaintModelConditioning": InpaintModelConditioning,
    "SluiceReferenceLatent": ReferenceLatent,
    "SluiceFluxKontextMultiReferenceLatentMethod": FluxKontextMultiReferenceLatentMethod,
    "SluiceLoraLoader": LoraLoader,
    "SluiceLoraLoaderModelOnly": LoraLoaderModelOnly,
    "SluiceUnetLoaderGGUF": UnetLoaderGGUF,
    "SluiceDualCLIPLoaderGGUF": DualCLIPLoaderGGUF,
    "SluiceModelSamplingFlux": ModelSamplingFlux,
    "SluiceDifferentialDiffusion": DifferentialDiffusion,
    "SluiceModelComputeDtype": ModelComputeDtype,
    "SluiceFluxToModel": FluxToModel,
    "SluiceMemoryBudget": MemoryBudget,
    "SluiceKSampler": KSampler,
    "SluiceKSamplerAdvanced": KSamplerAdvanced,
    "SluiceSamplerCustom": SamplerCustom,
    "SluiceSamplerCustomAdvanced": SamplerCustomAdvanced,
    "SluiceAddNoise": AddNoise,
    "SluiceBasicGuider": BasicGuider,
    "SluiceCFGGuider": CFGGuider,
    "SluiceDualCFGGuider": DualCFGGuider,
    "SluiceKSamplerSelect": KSamplerSelect,
    "SluiceRandomNoise": RandomNoise,
    "SluiceDisableNoise": DisableNoise,
    "SluiceBasicScheduler": BasicScheduler,
    "SluiceBetaSamplingScheduler": BetaSamplingScheduler,
    "SluiceKarrasScheduler": KarrasScheduler,
    "SluiceExponentialScheduler": ExponentialScheduler,
    "SluiceSplitSigmas": SplitSigmas,
    "SluiceSplitSigmasDenoise": SplitSigmasDenoise,
    "SluiceFlipSigmas": FlipSigmas,
    "SluiceSetFirstSigma": SetFirstSigma,
    "SluiceSamplingPercentToSigma": SamplingPercentToSigma,
    "SluiceEmptyLatentImage": EmptyLatentImage,
    "SluiceEmptySD3LatentImage": EmptySD3LatentImage,
    "SluiceLatentUpscale": LatentUpscale,
    "SluiceLatentUpscaleBy": LatentUpscaleBy,
    "SluiceLatentFromBatch": LatentFromBatch,
    "SluiceRepeatLatentBatch": RepeatLatentBatch,
    "SluiceSetLatentNoiseMask": SetLatentNoiseMask,
    "SluiceLatentCompositeMasked": LatentCompositeMasked,
    "SluiceVAEEncode": VAEEncode,
    "SluiceVAEDecode": VAEDecode,
    "SluiceVAEEncodeTiled": VAEEncodeTiled,
    "SluiceVAEDecodeTiled": VAEDecodeTiled,
    "SluiceVAEEncodeForInpaint": VAEEncodeForInpaint,
    "SluiceImageScale": ImageScale,
    "SluiceImageScaleBy": ImageScaleBy,
    "SluiceImageScaleToTotalPixels": ImageScaleToTotalPixels,
    "SluiceFluxKontextImageScale": FluxKontextImageScale,
    "SluiceImageBatch": ImageBatch,
    "SluiceImageInvert": ImageInvert,
    "SluiceEmptyImage": EmptyImage,
    "SluiceImagePadForOutpaint": ImagePadForOutpaint,
    "SluiceImageCompositeMasked": ImageCompositeMasked,
    "SluiceLoadImage": LoadImage,
    "SluiceLoadImageMask": LoadImageMask,
    "SluiceSaveImage": SaveImage,
    "SluicePreviewImage": PreviewImage,
    "SluiceSaveImageWebsocket": SaveImageWebsocket,
    "SluiceMaskToImage": MaskToImage,
    "SluiceImageToMask": ImageToMask,
    "SluiceInvertMask": InvertMask,
    "SluiceSolidMask": SolidMask,
    "SluiceGrowMask": GrowMask,
    "SluiceFeatherMask": FeatherMask,
    "SluicePrimitiveInt": PrimitiveInt,
    "SluicePrimitiveFloat": PrimitiveFloat,
    "SluicePrimitiveString": PrimitiveString,
    "SluicePrimitiveStringMultiline": PrimitiveStringMultiline,
    "SluicePrimitiveBoolean": PrimitiveBoolean,
}
