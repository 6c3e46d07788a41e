"""comfy_api.latest.io: nodes declared by a schema, served as plain node classes.

    class Add(io.ComfyNode):
        define_schema() -> io.Schema(node_id, inputs=[io.Int.Input("a")], outputs=[io.Int.Output()])
        execute(a) -> io.NodeOutput(a + 1)

The classes are in facade/schema/.
"""

from __future__ import annotations

from ...schema.dynamic import (
    Autogrow,
    DynamicCombo,
    MatchType,
    MultiType,
)
from ...schema.inputs import (
    ComfyTypeI,
    ComfyTypeIO,
    Custom,
    Input,
    Output,
    WidgetInput,
    comfytype,
)
from ...schema.node import (
    ComfyNode,
    HiddenHolder,
    NodeOutput,
    Schema,
)
from ...schema.options import (
    FolderType,
    Hidden,
    NumberDisplay,
    RemoteOptions,
    UploadType,
)
from ...schema.types import (
    BBOX,
    SEGS,
    SVG,
    AnyType,
    Audio,
    AudioEncoder,
    AudioEncoderOutput,
    Boolean,
    BoundingBox,
    Clip,
    ClipVision,
    ClipVisionOutput,
    Combo,
    Conditioning,
    ControlNet,
    FaceAnalysis,
    Float,
    Gligen,
    Guider,
    Hooks,
    Image,
    Int,
    Latent,
    LatentUpscaleModel,
    LoraModel,
    LossMap,
    Mask,
    Mesh,
    Model,
    MultiCombo,
    Noise,
    Photomaker,
    Point,
    Sampler,
    Sigmas,
    String,
    StyleModel,
    TimestepsRange,
    Tracks,
    UpscaleModel,
    Vae,
    Video,
    Voxel,
    Webcam,
)

__all__ = [
    "AnyType", "Audio", "AudioEncoder", "AudioEncoderOutput", "Autogrow", "BBOX", "Boolean", "BoundingBox", "Clip",
    "ClipVision", "ClipVisionOutput", "Combo", "ComfyNode", "ComfyTypeI", "ComfyTypeIO", "Conditioning", "ControlNet",
    "Custom", "DynamicCombo", "FaceAnalysis", "Float", "FolderType", "Gligen", "Guider", "Hidden", "HiddenHolder",
    "Hooks", "Image", "Input", "Int", "Latent", "LatentUpscaleModel", "LoraModel", "LossMap", "Mask", "MatchType",
    "Mesh", "Model", "MultiCombo", "MultiType", "NodeOutput", "Noise", "NumberDisplay", "Output", "Photomaker",
    "Point", "RemoteOptions", "SEGS", "SVG", "Sampler", "Schema", "Sigmas", "String", "StyleModel", "TimestepsRange",
    "Tracks", "UploadType", "UpscaleModel", "Vae", "Video", "Voxel", "Webcam", "WidgetInput", "comfytype",
]  # fmt: skip
