"""The names of modules that a pack may import: those of ComfyUI 0.3.64, and newer ones that packs need.

For any other name (of another version, or of a fork) a pack gets ModuleNotFoundError, as in ComfyUI, so that it uses
its own fallback. Names only.
"""

from __future__ import annotations

from collections.abc import Mapping

VERSION = "0.3.64"
TOP = (
    "comfy",
    "comfy_api",
    "comfy_config",
    "comfy_execution",
    "comfy_extras",
    "comfyui_version",
    "execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
    "server",
)

# Package -> its modules.
_INSIDE: Mapping[str, str] = {
    "comfy": (
        "audio_encoders checkpoint_pickle cldm cli_args clip_model clip_vision comfy_types conds context_windows "
        "controlnet diffusers_convert diffusers_load extra_samplers float gligen hooks image_encoders k_diffusion "
        "latent_formats ldm lora lora_convert model_base model_detection model_management model_patcher "
        "model_sampling ops options patcher_extension pixel_space_convert rmsnorm sample sampler_helpers samplers "
        "sd sd1_clip sdxl_clip supported_models supported_models_base t2i_adapter taesd text_encoders utils "
        "weight_adapter"
    ),
    "comfy.audio_encoders": "audio_encoders wav2vec2 whisper",
    "comfy.cldm": "cldm control_types dit_embedder mmdit",
    "comfy.comfy_types": "examples node_typing",
    "comfy.comfy_types.examples": "example_nodes",
    "comfy.extra_samplers": "uni_pc",
    "comfy.image_encoders": "dino2",
    "comfy.k_diffusion": "deis sa_solver sampling utils",
    "comfy.ldm": (
        "ace audio aura cascade chroma chroma_radiance common_dit cosmos flux genmo hidream hunyuan3d "
        "hunyuan3dv2_1 hunyuan_video hydit lightricks lumina mmaudio models modules omnigen pixart qwen_image "
        "util wan"
    ),
    "comfy.ldm.ace": "attention lyric_encoder model vae",
    "comfy.ldm.ace.vae": "autoencoder_dc music_dcae_pipeline music_log_mel music_vocoder",
    "comfy.ldm.audio": "autoencoder dit embedders",
    "comfy.ldm.aura": "mmdit",
    "comfy.ldm.cascade": "common controlnet stage_a stage_b stage_c stage_c_coder",
    "comfy.ldm.chroma": "layers model",
    "comfy.ldm.chroma_radiance": "layers model",
    "comfy.ldm.cosmos": "blocks cosmos_tokenizer model position_embedding predict2 vae",
    "comfy.ldm.cosmos.cosmos_tokenizer": "layers3d patching utils",
    "comfy.ldm.flux": "controlnet layers math model redux",
    "comfy.ldm.genmo": "joint_model vae",
    "comfy.ldm.genmo.joint_model": "asymm_models_joint layers rope_mixed temporal_rope utils",
    "comfy.ldm.genmo.vae": "model",
    "comfy.ldm.hidream": "model",
    "comfy.ldm.hunyuan3d": "model vae",
    "comfy.ldm.hunyuan3dv2_1": "hunyuandit",
    "comfy.ldm.hunyuan_video": "model vae vae_refiner",
    "comfy.ldm.hydit": "attn_layers controlnet models poolers posemb_layers",
    "comfy.ldm.lightricks": "model symmetric_patchifier vae",
    "comfy.ldm.lightricks.vae": "causal_conv3d causal_video_autoencoder conv_nd_factory dual_conv3d pixel_norm",
    "comfy.ldm.lumina": "model",
    "comfy.ldm.mmaudio": "vae",
    "comfy.ldm.mmaudio.vae": "activations alias_free_torch autoencoder bigvgan distributions vae vae_modules",
    "comfy.ldm.models": "autoencoder",
    "comfy.ldm.modules": ("attention diffusionmodules distributions ema encoders sub_quadratic_attention temporal_ae"),
    "comfy.ldm.modules.diffusionmodules": "mmdit model openaimodel upscaling util",
    "comfy.ldm.modules.distributions": "distributions",
    "comfy.ldm.modules.encoders": "noise_aug_modules",
    "comfy.ldm.omnigen": "omnigen2",
    "comfy.ldm.pixart": "blocks pixartms",
    "comfy.ldm.qwen_image": "controlnet model",
    "comfy.ldm.wan": "model model_animate vae vae2_2",
    "comfy.t2i_adapter": "adapter",
    "comfy.taesd": "taesd",
    "comfy.text_encoders": (
        "ace ace_text_cleaners aura_t5 bert cosmos flux genmo hidream hunyuan_image hunyuan_video hydit llama "
        "long_clipl lt lumina2 omnigen2 pixart_t5 qwen_image qwen_vl sa_t5 sd2_clip sd3_clip spiece_tokenizer t5 "
        "wan"
    ),
    "comfy.weight_adapter": "base boft glora loha lokr lora oft",
    "comfy_api": (
        "feature_flags generate_api_stubs input input_impl internal latest torch_helpers util v0_0_1 v0_0_2 "
        "version_list"
    ),
    "comfy_api.input": "basic_types video_types",
    "comfy_api.input_impl": "video_types",
    "comfy_api.internal": "api_registry async_to_sync singleton",
    "comfy_api.latest": "_input _input_impl _io _resources _ui _util",
    "comfy_api.latest._input": "basic_types video_types",
    "comfy_api.latest._input_impl": "video_types",
    "comfy_api.latest._util": "video_types",
    "comfy_api.torch_helpers": "torch_compile",
    "comfy_api.util": "video_types",
    "comfy_config": "config_parser types",
    "comfy_execution": "caching graph graph_utils progress utils validation",
    "comfy_extras": (
        "chainner_models nodes_ace nodes_advanced_samplers nodes_align_your_steps nodes_apg "
        "nodes_attention_multiply nodes_audio nodes_audio_encoder nodes_camera_trajectory nodes_canny nodes_cfg "
        "nodes_chroma_radiance nodes_clip_sdxl nodes_compositing nodes_cond nodes_context_windows "
        "nodes_controlnet nodes_cosmos nodes_custom_sampler nodes_differential_diffusion nodes_easycache "
        "nodes_edit_model nodes_eps nodes_flux nodes_freelunch nodes_fresca nodes_gits nodes_hidream nodes_hooks "
        "nodes_hunyuan nodes_hunyuan3d nodes_hypernetwork nodes_hypertile nodes_images nodes_ip2p nodes_latent "
        "nodes_load_3d nodes_lora_extract nodes_lotus nodes_lt nodes_lumina2 nodes_mahiro nodes_mask nodes_mochi "
        "nodes_model_advanced nodes_model_downscale nodes_model_merging nodes_model_merging_model_specific "
        "nodes_model_patch nodes_morphology nodes_optimalsteps nodes_pag nodes_perpneg nodes_photomaker "
        "nodes_pixart nodes_post_processing nodes_preview_any nodes_primitive nodes_qwen nodes_rebatch nodes_sag "
        "nodes_sd3 nodes_sdupscale nodes_slg nodes_stable3d nodes_stable_cascade nodes_string nodes_tcfg "
        "nodes_tomesd nodes_torch_compile nodes_train nodes_upscale_model nodes_video nodes_video_model nodes_wan "
        "nodes_webcam"
    ),
    "comfy_extras.chainner_models": "model_loading",
}

# Classes of comfy_extras whose names differ from the ids of their nodes.
CLASS_NAMES: Mapping[str, str] = {
    **{"Blend": "ImageBlend", "Blur": "ImageBlur", "Sharpen": "ImageSharpen"},
    **{"LatentRebatch": "RebatchLatents", "ImageRebatch": "RebatchImages"},
    **{"String": "PrimitiveString", "StringMultiline": "PrimitiveStringMultiline", "Boolean": "PrimitiveBoolean"},
    **{"Int": "PrimitiveInt", "Float": "PrimitiveFloat", "EasyCacheNode": "EasyCache", "LazyCacheNode": "LazyCache"},
}
# Libraries that ComfyUI's modules import, and that packs read through them: server.web, nodes.torch.
LIBRARIES: Mapping[str, str] = {
    **{name: name for name in "aiohttp asyncio copy gc hashlib inspect json logging math os random sys".split()},
    **{name: name for name in "threading time torch traceback uuid".split()},
    **{"np": "numpy", "web": "aiohttp.web", "Image": "PIL.Image", "ImageOps": "PIL.ImageOps"},
    **{"ImageSequence": "PIL.ImageSequence", "F": "torch.nn.functional", "safetensors": "safetensors"},
}

_VERSIONS = ("comfy_api.latest", "comfy_api.v0_0_1", "comfy_api.v0_0_2")
# Modules that are offered by a file of another name under offered/.
SAME: Mapping[str, str] = {
    "comfy.comfy_types": "comfy.node_typing",
    "comfy.comfy_types.node_typing": "comfy.node_typing",
    **dict.fromkeys(_VERSIONS, "comfy_api.version"),
    **{f"{version}.{name}": "comfy_api.io" for version in _VERSIONS for name in ("io", "_io", "comfy_io")},
    **{f"{version}.{name}": "comfy_api.ui" for version in _VERSIONS for name in ("ui", "_ui")},
    **dict.fromkeys(("comfy_api.input", "comfy_api.latest._input"), "comfy_api.input"),
}

# Modules of newer versions that current packs import unconditionally.
_NEWER = (
    *("comfy.memory_management", "comfy.nested_tensor", "comfy.quant_ops", "comfy.ldm.lumina.controlnet"),
    *("comfy.taesd.taehv", "comfy_extras.nodes_sam3"),
    *("comfy.ldm.anima", "comfy.ldm.anima.lllite", "comfy.ldm.anima.model"),
)
_NAMES = {f"{package}.{name}" for package, names in _INSIDE.items() for name in names.split()}
KNOWN = frozenset({*TOP, *_NAMES, *_NEWER, *SAME})
PACKAGES = frozenset({*_INSIDE, "comfy.ldm.anima"})
