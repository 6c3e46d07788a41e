"""FLUX and its companions as the planner sees them: matrices in order of use, their bytes, their work.

Shapes come from a file's header or from a published name, so a plan can be made before anything is downloaded. Knows
no torch and reads no weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod

from ..errors import FileFormatError, InputError
from ..memory.workload import MiB, Walk, Workload

TEXT_TOKENS = 512
PATCH = 16  # pixels a side of one image token

# Bits per weight as stored. GGUF blocks carry their scales with them.
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8,
    "Q8_0": 8.5, "Q6_K": 6.5625, "Q5_K": 5.5, "Q5_1": 6, "Q5_0": 5.5, "Q4_K": 4.5, "Q4_1": 5, "Q4_0": 4.5,
    "Q3_K": 3.4375, "Q2_K": 2.625,
}  # fmt: skip
MULTIPLIED_AS_STORED = {"F32", "F16", "BF16"}

PUBLISHED_FORMATS = {"bf16": "BF16", "fp16": "F16", "fp8": "F8_E4M3"}
COMPARED = ("bf16", "fp8", "Q8_0", "Q4_K_S")


@dataclass(frozen=True)
class FluxShape:
    """Sizes of one FLUX transformer. The defaults are FLUX.1 as published."""

    hidden: int = 3072
    mlp: int = 12288
    depth: int = 19
    depth_single: int = 38
    context_dim: int = 4096
    vec_dim: int = 768
    in_channels: int = 64  # of a packed token
    out_channels: int = 64
    guidance: bool = True

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> FluxShape:
        """Read off a BFL state dict's shapes. Raises FileFormatError if it is none."""
        try:
            hidden, in_channels = shapes["img_in.weight"]
            return cls(
                hidden=hidden,
                mlp=shapes["double_blocks.0.img_mlp.0.weight"][0],
                depth=_count(shapes, "double_blocks"),
                depth_single=_count(shapes, "single_blocks"),
                context_dim=shapes["txt_in.weight"][1],
                vec_dim=shapes["vector_in.in_layer.weight"][1],
                in_channels=in_channels,
                out_channels=shapes["final_layer.linear.weight"][0],
                guidance="guidance_in.in_layer.weight" in shapes,
            )
        except KeyError as missing:
            raise FileFormatError(
                f"There is no plan for this file: it has no tensor named {missing}. Name a FLUX diffusion model."
            ) from None

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Every matrix [out, in] of the model by its BFL name, the blocks' in order of use."""
        hidden, mlp = self.hidden, self.mlp
        shapes: dict[str, tuple[int, int]] = {}
        for number in range(self.depth):
            for _, name, rows, columns in _double_walk(hidden, mlp):
                shapes[f"double_blocks.{number}.{name}.weight"] = (rows, columns)
        for number in range(self.depth_single):
            shapes[f"single_blocks.{number}.linear1.weight"] = (3 * hidden + mlp, hidden)
            shapes[f"single_blocks.{number}.linear2.weight"] = (hidden, hidden + mlp)
        shapes |= self.modulation_matrices()
        shapes |= {"img_in.weight": (hidden, self.in_channels), "txt_in.weight": (hidden, self.context_dim)}
        embedders = {"time_in": 256, "vector_in": self.vec_dim} | ({"guidance_in": 256} if self.guidance else {})
        for name, width in embedders.items():
            shapes[f"{name}.in_layer.weight"] = (hidden, width)
            shapes[f"{name}.out_layer.weight"] = (hidden, hidden)
        shapes["final_layer.linear.weight"] = (self.out_channels, hidden)
        return shapes

    def modulation_matrices(self) -> dict[str, tuple[int, int]]:
        """The adaLN matrices [out, in] in order of use: one vector per step goes through them."""
        hidden = self.hidden
        shapes = {}
        for number in range(self.depth):
            for stream in ("img", "txt"):
                shapes[f"double_blocks.{number}.{stream}_mod.lin.weight"] = (6 * hidden, hidden)
        for number in range(self.depth_single):
            shapes[f"single_blocks.{number}.modulation.lin.weight"] = (3 * hidden, hidden)
        shapes["final_layer.adaLN_modulation.1.weight"] = (2 * hidden, hidden)
        return shapes


@dataclass(frozen=True)
class Job:
    """What one step has to do."""

    height: int = 1024
    width: int = 1024
    batch: int = 1
    text_tokens: int = TEXT_TOKENS
    itemsize: int = 2  # bytes of an activation
    reference_tokens: int = 0  # of pictures that are attended to

    @property
    def image_tokens(self) -> int:
        return -(-self.height // PATCH) * -(-self.width // PATCH) + self.reference_tokens


def picture_size(text: str) -> tuple[int, int]:
    """ "1024x768" -> (1024, 768): width and height. Raises InputError."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise InputError(f"{text!r} is no size of a picture. Write it like 1024x768.")
    return int(width), int(height)


def flux_workload(
    name: str,
    shape: FluxShape,
    nbytes: Callable[[str], int],
    job: Job,
    decoded: Callable[[str], bool],
    fixed: Mapping[str, int] | None = None,
    modulation: bool = False,
) -> Workload:
    """One denoising step. `nbytes`: stored bytes of a matrix; `decoded`: whether it is not multiplied as stored.

    The 2 * depth + depth_single units are equal in the published models. With `modulation` the adaLN matrices stream
    too, as units of their own; without, a table has replaced them.
    """
    walk = Walk(nbytes, decoded, job.batch, job.itemsize)
    tokens = job.image_tokens + job.text_tokens
    attention = 4.0 * job.batch * tokens * tokens * shape.hidden
    stream_tokens = {"img": job.image_tokens, "txt": job.text_tokens}
    for number in range(shape.depth):
        block = f"double_blocks.{number}"
        if modulation:
            walk.matrix(f"{block}.img_mod.lin.weight", f"{block}.img_mod", (6 * shape.hidden, shape.hidden), 1)
            walk.matrix(f"{block}.txt_mod.lin.weight", f"{block}.txt_mod", (6 * shape.hidden, shape.hidden), 1)
        for stream, matrix, rows, columns in _double_walk(shape.hidden, shape.mlp):
            follows = attention if matrix == "txt_attn.qkv" else 0.0
            where = f"{block}.{matrix}.weight"
            walk.matrix(where, f"{block}.{stream}", (rows, columns), stream_tokens[stream], follows)
    for number in range(shape.depth_single):
        block = f"single_blocks.{number}"
        if modulation:
            walk.matrix(f"{block}.modulation.lin.weight", f"{block}.mod", (3 * shape.hidden, shape.hidden), 1)
        walk.matrix(f"{block}.linear1.weight", block, (3 * shape.hidden + shape.mlp, shape.hidden), tokens, attention)
        walk.matrix(f"{block}.linear2.weight", block, (shape.hidden, shape.hidden + shape.mlp), tokens)
    return Workload(name, tuple(walk.pieces), dict(fixed or {}))


def _double_walk(hidden: int, mlp: int) -> tuple[tuple[str, str, int, int], ...]:
    """(stream, matrix, rows, columns) of a double block in order of use."""
    return (
        ("img", "img_attn.qkv", 3 * hidden, hidden),
        ("txt", "txt_attn.qkv", 3 * hidden, hidden),
        ("img", "img_attn.proj", hidden, hidden),
        ("img", "img_mlp.0", mlp, hidden),
        ("img", "img_mlp.2", hidden, mlp),
        ("txt", "txt_attn.proj", hidden, hidden),
        ("txt", "txt_mlp.0", mlp, hidden),
        ("txt", "txt_mlp.2", hidden, mlp),
    )


def _count(names: Mapping[str, object], prefix: str) -> int:
    return len({name.split(".")[1] for name in names if name.startswith(prefix + ".")})


def activation_bytes(shape: FluxShape, job: Job) -> int:
    """Peak of what a step allocates besides weights, for fused attention; a little above what `dryrun.py` finds.

    The widest moment is a single block's: per token the stream twice, 3 D + mlp out of linear1, and queries and keys
    turned in float32.
    """
    per_token = (3 * shape.hidden + shape.mlp + 6.5 * shape.hidden) * job.itemsize
    return int(per_token * (job.image_tokens + job.text_tokens) * job.batch) + 12 * MiB


def decode_scratch_bytes(shape: FluxShape, itemsize: int) -> int:
    """One matrix, the largest, as it is multiplied."""
    return max(prod(size) for size in shape.matrices().values()) * itemsize


def small_weights(shape: FluxShape) -> int:
    """Weights that are always on the device: embedders, final layer, every vector."""
    streamed = {name for name in shape.matrices() if "_blocks." in name} | set(shape.modulation_matrices())
    matrices = sum(prod(size) for name, size in shape.matrices().items() if name not in streamed)
    vectors = shape.depth * (2 * (9 * shape.hidden + 2 * shape.hidden + shape.mlp)) + shape.depth_single * (
        7 * shape.hidden + shape.mlp
    )
    return matrices + vectors + 8 * shape.hidden


def table_bytes(shape: FluxShape, rows: int, itemsize: int) -> int:
    """adaLN outputs of `rows` vectors."""
    return sum(size[0] for size in shape.modulation_matrices().values()) * rows * itemsize


@dataclass(frozen=True)
class Published:
    """A model one can ask about by name, before downloading it."""

    name: str
    shape: FluxShape
    format: str
    label: str

    def nbytes(self, matrix: str) -> int:
        return int(prod(self.shape.matrices()[matrix]) * BITS[self.format] // 8)

    def decoded(self, matrix: str) -> bool:
        return self.format not in MULTIPLIED_AS_STORED

    @property
    def total_bytes(self) -> int:
        return sum(self.nbytes(name) for name in self.shape.matrices())


def published(name: str) -> Published | None:
    """`flux1-dev-fp8`, `flux1-schnell` (in bf16), `flux1-dev-Q4_K_S.gguf`, ... or None if it is no such name."""
    stem = re.sub(r"\.(safetensors|sft|gguf)$", "", name)
    match = re.fullmatch(r"flux1-(dev|schnell|fill|canny|depth|kontext)(?:-dev)?(?:-([A-Za-z0-9_]+))?", stem)
    if not match:
        return None
    variant, label = match[1], match[2] or "bf16"
    stored = PUBLISHED_FORMATS.get(label.lower()) or re.sub(r"_[SML]$", "", label.upper())
    if stored not in BITS:
        known = ", ".join(("bf16", "fp16", "fp8", "Q8_0", "Q6_K", "Q5_K_S", "Q5_0", "Q5_1", "Q4_K_S", "Q4_0", "Q4_1"))
        raise InputError(f"{name} names no format I know. After flux1-{variant}- choose one of: {known}, Q3_K_S, Q2_K.")
    shape = FluxShape(guidance=variant != "schnell")
    packed = {"fill": 384, "canny": 128, "depth": 128}
    return Published(f"flux1-{variant}-{label}", replace(shape, in_channels=packed.get(variant, 64)), stored, label)
