"""Guesses the node pack of a class id from the way packs name their nodes, where the workflow does not name the pack.

It also knows what nodes of ComfyUI itself are for that Sluice does not have.

Names are those of ComfyUI's registry where there is one, else of the repository. The table was written for this file:
the few packs that FLUX.1 workflows use most, and the marks in their ids.
"""

from __future__ import annotations

import re

_MARKS: tuple[tuple[str, str], ...] = (
    (r" \(rgthree\)$", "rgthree-comfy"),
    (r"\|pysssss$", "comfyui-custom-scripts"),
    (r" \(mtb\)$", "comfy-mtb"),
    (r" \(JPS\)$", "ComfyUI_JPS-Nodes"),
    (r"//Inspire$", "comfyui-inspire-pack"),
    (r" _O$", "ComfyUI-QualityOfLifeSuit_Omar92"),
    (r"-🔬$", "ComfyUI-Logic"),
    (r" \[Crystools\]$", "comfyui-crystools"),
    (r"\(LoraManager\)$", "comfyui-lora-manager"),
    (r"^(LayerUtility|LayerMask|LayerColor|LayerStyle|LayerFilter): ", "comfyui_layerstyle"),
    (r"^easy ", "comfyui-easy-use"),
    (r"^ttN ", "comfyui_tinyterranodes"),
    (r"^CR ", "ComfyUI_Comfyroll_CustomNodes"),
    (r"^DF_", "derfuu_comfyui_moddednodes"),
    (r"^CM_", "comfymath"),
    (r"^TTP_", "comfyui_ttp_toolset"),
    (r"^JW[A-Z]", "comfyui-various"),
    (r"^FL_", "comfyui_fill-nodes"),
    (r"^VHS_", "comfyui-videohelpersuite"),
    (r"^(ETN_)", "comfyui-tooling-nodes"),
    (r"^INPAINT_", "comfyui-inpaint-nodes"),
    (r"^Impact|(Detailer|BasicPipe|SEGS)", "comfyui-impact-pack"),
    (r"^UltralyticsDetector", "comfyui-impact-subpack"),
    (r"^Nunchaku", "ComfyUI-nunchaku"),
    (r"MultiGPU$", "comfyui-multigpu"),
    (r"GGUF", "ComfyUI-GGUF"),
    (r"^(Clown|Shark|ReFlux|Sigmas )", "RES4LYF"),
    (r"^(Apply|Load)?Pulid|PulidFlux", "ComfyUI-PuLID-Flux"),
    (r"^ACEPlus", "ACE_plus"),
    (r"^IPAdapter", "comfyui_ipadapter_plus"),
    (r"^(Apply|Load)TheMisto|TheMisto$", "ComfyUI-MistoControlNet-Flux-dev"),
    (r"^Xlabs|FluxControlNet|FluxIPAdapter|FluxLora", "x-flux-comfyui"),
    (r"^StableMakeup_", "ComfyUI_Stable_Makeup"),
    (r"_Zho$", "ComfyUI-Gemini"),
    (r"_party$", "comfyui_LLM_party"),
    (r"^ai4artsed_", "ai4artsed_comfyui"),
    (r"^InversionDemo", "execution-inversion-demo-comfyui"),
    (r"^ReActor", "comfyui-reactor"),
    (r"Florence2", "comfyui-florence2"),
    (r"^InpaintCrop|^InpaintStitch|^InpaintResize|^InpaintExtend", "comfyui-inpaint-cropandstitch"),
    (r"^UltimateSDUpscale", "comfyui_ultimatesdupscale"),
    (r"^(DetailDaemon|LyingSigma|MultiplySigmas)", "ComfyUI-Detail-Daemon"),
    (r"^Ollama", "comfyui-ollama"),
    (r"^FluxTrain|^TrainDataset|^InitFluxLoRA|^OptimizerConfig|^VisualizeLoss", "ComfyUI-FluxTrainer"),
    (r"^DeepTranslator|^Argos|^GoogleTranslate", "comfyui_custom_nodes_alekpet"),
    (r"^(FluxAttn|FlowEdit|Flux(Forward|Reverse|Inverse)|InFlux|OutFlux|ConfigureModifiedFlux)", "ComfyUI-Fluxtapoz"),
    (r"(Preprocessor|Preprocessor_aux)$|^HintImageEnchance$|^PixelPerfectResolution$", "comfyui_controlnet_aux"),
    (r"\+$", "comfyui_essentials"),
    (r"Slider$|^OutputGet|^SplitVec|^SamplerParameter|^(Resolution|Configurable|Text)[A-Z]", "ComfyUI-Flux-Continuum"),
)
_NAMED: dict[str, str] = {
    **dict.fromkeys(("ReduxAdvanced", "StyleModelApplySimple"), "ComfyUI_AdvancedRefluxControl"),
    **dict.fromkeys(("ColorMatch", "AddLabel", "CustomSigmas", "WidgetToString"), "comfyui-kjnodes"),
    **dict.fromkeys(("GrowMaskWithBlur", "ImageResizeKJv2", "ImageGridComposite2x2"), "comfyui-kjnodes"),
    **dict.fromkeys(("KSampler (Efficient)", "Efficient Loader", "LoRA Stacker"), "efficiency-nodes-comfyui"),
    **dict.fromkeys(("AdaptiveGuidance",), "ComfyUI-Adaptive-Guidance"),
    **dict.fromkeys(("Skimmed CFG",), "Skimmed_CFG"),
    **dict.fromkeys(("DynamicThresholdingFull",), "sd-dynamic-thresholding"),
    **dict.fromkeys(("SDXLPromptStyler", "SDXLPromptStylerAll"), "sdxl_prompt_styler"),
    **dict.fromkeys(("SeamlessTile", "MakeCircularVAE"), "ComfyUI-seamless-tiling"),
    **dict.fromkeys(("AddMaskForICLora", "CreateContextWindow"), "Comfyui-In-Context-Lora-Utils"),
    **dict.fromkeys(("RegionAttention", "FluxRegionBBOX"), "ComfyUI-FluxRegionAttention"),
    **dict.fromkeys(("DualCLIPLoaderT5Base",), "DistillT5ComfyUI"),
    **dict.fromkeys(("FluxLoader", "VAEEncodeAdvanced", "ModelSamplingAdvancedResolution"), "RES4LYF"),
    **dict.fromkeys(("PrepForUnsampling", "SetImageSize", "MaskEdge", "Image Repeat Tile To Size"), "RES4LYF"),
    **dict.fromkeys(("FluxDeGuidance", "PrepareAttnBank", "FluxNoiseMixer", "ApplyRegionalConds"), "ComfyUI-Fluxtapoz"),
    **dict.fromkeys(("PreviewBridge", "PreviewBridgeLatent", "ImageListToImageBatch"), "comfyui-impact-pack"),
    **dict.fromkeys(("FluxSimpleInpainting", "FluxGuffInpainting", "FluxVAELoader"), "ComfyUI-Flux-Inpainting"),
    **dict.fromkeys(("FluxTransformerInpainting",), "ComfyUI-Flux-Inpainting"),
    **dict.fromkeys(("LoraLoaderFromURL", "HFHubLoraLoader", "MultiLoraLoader-70bf3d77"), "ComfyUI-glifnodes"),
    **dict.fromkeys(("LoraTextExtractor-b1f83aa2",), "ComfyUI-glifnodes"),
    **dict.fromkeys(("PreviewMask_",), "comfyui-mixlab-nodes"),
    **dict.fromkeys(("TiledDiffusion",), "ComfyUI-TiledDiffusion"),
    **dict.fromkeys(("ImagesGridByRows", "ImagesGridByColumns", "GridAnnotation"), "images-grid-comfy-plugin"),
    **dict.fromkeys(("LLMLoader", "LLMSampler"), "ComfyUI_VLM_nodes"),
    **dict.fromkeys(("OneButtonPrompt",), "OneButtonPrompt"),
    **dict.fromkeys(("Text Overlay",), "ComfyUI-TextOverlay"),
    **dict.fromkeys(("ImageAndMaskResizeNode",), "comfyui-inpainteasy"),
    **dict.fromkeys(("Image Save", "Image Overlay", "Random Number", "Text String Truncate"), "was-node-suite-comfyui"),
}
# Nodes of ComfyUI itself that Sluice does not have, because they are for other models: what for, and what to do.
_DIFFUSION_2 = "a model of Stable Diffusion 2"
_OF_COMFYUI: tuple[tuple[str, str, str], ...] = (
    (r"^TripleCLIPLoader$", "the text encoders of Stable Diffusion 3", "Load those of FLUX.1 with DualCLIPLoader."),
    (r"^QuadrupleCLIPLoader$", "the text encoders of HiDream", "Load those of FLUX.1 with DualCLIPLoader."),
    (r"^CLIPTextEncode(SDXL|SD3|HiDream|Lumina2|HunyuanDiT)", "prompts of another model", "Use CLIPTextEncodeFlux."),
    (r"^Empty[A-Za-z0-9]*LatentVideo$", "latents of videos", "For images use EmptySD3LatentImage."),
    (r"^(Save|Create|Load|Get)(Video|WEBM)", "videos", "Save the images with SaveImage or SaveAnimatedWEBP."),
    (
        r"^SD_4XUpscale_Conditioning$",
        f"the upscaler x4, {_DIFFUSION_2}",
        "Enlarge images with UpscaleModelLoader and ImageUpscaleWithModel.",
    ),
    (
        r"^LotusConditioning$",
        f"the depth model Lotus, {_DIFFUSION_2}",
        "Load a depth image with LoadImage, or make it with the pack comfyui_controlnet_aux (--node-packs FOLDER).",
    ),
    (
        r"^(Kling|Veo\d?|Luma|Runway|Pika|Minimax|Moonvalley|Ideogram|Recraft|OpenAI|Gemini|Stability)[A-Za-z0-9]*Node$",
        "a service of another company, to which it sends its inputs",
        "Sluice computes on your machines only; remove the node.",
    ),
)
_COMPILED = tuple((re.compile(pattern), pack) for pattern, pack in _MARKS)


def likely_pack(class_type: str) -> str | None:
    """The pack to which an id most likely belongs; None if it has no known mark."""
    if class_type in _NAMED:
        return _NAMED[class_type]
    return next((pack for pattern, pack in _COMPILED if pattern.search(class_type)), None)


def purpose_in_comfyui(class_type: str) -> str | None:
    """What a node of ComfyUI itself is for and what to do without it, as sentences; None if it is none of those."""
    for pattern, purpose, advice in _OF_COMFYUI:
        if re.search(pattern, class_type):
            return f"It belongs to ComfyUI itself and is for {purpose}. {advice}"
    return None
