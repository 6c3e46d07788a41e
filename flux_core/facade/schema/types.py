"""The link types that ComfyUI names: `Int.Input("steps")`, `Image.Output()`."""

from __future__ import annotations

from .inputs import ComboInput, MultiComboInput, WidgetInput, link_type

Boolean = link_type("BOOLEAN", WidgetInput, "default label_on label_off socketless force_input")
Int = link_type("INT", WidgetInput, "default min max step control_after_generate display_mode socketless force_input")
Float = link_type("FLOAT", WidgetInput, "default min max step round display_mode socketless force_input")
String = link_type("STRING", WidgetInput, "multiline placeholder default dynamic_prompts socketless force_input")
Combo = link_type("COMBO", ComboInput)
MultiCombo = link_type("COMBO", MultiComboInput)
Image, Mask, Latent, Conditioning = map(link_type, ("IMAGE", "MASK", "LATENT", "CONDITIONING"))
Sampler, Sigmas, Noise, Guider = map(link_type, ("SAMPLER", "SIGMAS", "NOISE", "GUIDER"))
Model, Clip, Vae, ControlNet = map(link_type, ("MODEL", "CLIP", "VAE", "CONTROL_NET"))
ClipVision, ClipVisionOutput, StyleModel = map(link_type, ("CLIP_VISION", "CLIP_VISION_OUTPUT", "STYLE_MODEL"))
Gligen, UpscaleModel, LoraModel, LossMap = map(link_type, ("GLIGEN", "UPSCALE_MODEL", "LORA_MODEL", "LOSS_MAP"))
Audio, Video, SVG, Voxel, Mesh = map(link_type, ("AUDIO", "VIDEO", "SVG", "VOXEL", "MESH"))
Hooks, TimestepsRange, Photomaker, Point = map(link_type, ("HOOKS", "TIMESTEPS_RANGE", "PHOTOMAKER", "POINT"))
Tracks, BoundingBox, LatentUpscaleModel = map(link_type, ("TRACKS", "BOUNDING_BOX", "LATENT_UPSCALE_MODEL"))
FaceAnalysis, BBOX, SEGS, Webcam = map(link_type, ("FACE_ANALYSIS", "BBOX", "SEGS", "WEBCAM"))
AudioEncoder, AudioEncoderOutput, AnyType = map(link_type, ("AUDIO_ENCODER", "AUDIO_ENCODER_OUTPUT", "*"))
