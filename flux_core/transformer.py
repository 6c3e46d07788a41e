"""The FLUX.1 transformer (Black Forest Labs 2024): rectified-flow velocity of a latent, given text.

Attribute names are the keys of BFL checkpoints. What it does not know: devices, storage formats, offloading, LoRA,
guiders, solvers. An executor may own the loop over the blocks (`run_block`) and may hand in the modulation rows
(`modulation`), so that neither needs to know the other.

Each block uses its matrices in a fixed order, which is the order in which they can be streamed:
  double  img_attn.qkv, txt_attn.qkv, (attention),
          img_attn.proj, img_mlp.0, img_mlp.2, txt_attn.proj, txt_mlp.0, txt_mlp.2
  single  linear1, (attention), linear2
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import latents
from .attention import attention, rotate, rotations
from .errors import FileFormatError, InputError
from .quant.linear import Linear

EPS = 1e-6
SINUSOIDS = 256  # width of the timestep and guidance embeddings
DEFAULT_GUIDANCE = 3.5


@dataclass(frozen=True)
class FluxConfig:
    """The sizes of one transformer. Channels count latent channels, before 2x2 patching."""

    in_channels: int
    out_channels: int
    hidden: int
    heads: int
    head_dim: int
    mlp: int
    depth: int
    depth_single: int
    context_dim: int
    vec_dim: int
    guidance: bool
    axes_dim: tuple[int, int, int]
    theta: float = 10_000.0

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> FluxConfig:
        """Read every size off a BFL state dict's shapes. Raises FileFormatError if it is not one."""
        try:
            hidden, patch_in = shapes["img_in.weight"]
            head_dim = shapes["double_blocks.0.img_attn.norm.key_norm.scale"][0]
            return cls(
                in_channels=patch_in // 4,
                out_channels=shapes["final_layer.linear.weight"][0] // 4,
                hidden=hidden,
                heads=hidden // head_dim,
                head_dim=head_dim,
                mlp=shapes["double_blocks.0.img_mlp.0.weight"][0],
                depth=_count(shapes, "double_blocks."),
                depth_single=_count(shapes, "single_blocks."),
                context_dim=shapes["txt_in.weight"][1],
                vec_dim=shapes["vector_in.in_layer.weight"][1],
                guidance="guidance_in.in_layer.weight" in shapes,
                axes_dim=axes_of(head_dim),
            )
        except KeyError as missing:
            raise FileFormatError(
                f"This is not a FLUX transformer: it has no tensor named {missing}. "
                "Choose a FLUX diffusion model (BFL or diffusers layout)."
            ) from None


def axes_of(head_dim: int) -> tuple[int, int, int]:
    """How a head's channels are shared among index, row and column: 128 -> (16, 56, 56)."""
    return head_dim // 8, head_dim * 7 // 16, head_dim * 7 // 16


def _count(names: Mapping[str, object], prefix: str) -> int:
    return len({name[len(prefix) :].split(".", 1)[0] for name in names if name.startswith(prefix)})


class Flux(nn.Module):
    """Velocity of a noisy latent. D = x - sigma * velocity is the clean latent as seen from x."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.img_in = Linear(c.in_channels * 4, c.hidden)
        self.time_in = Embedder(SINUSOIDS, c.hidden)
        if c.guidance:
            self.guidance_in = Embedder(SINUSOIDS, c.hidden)
        self.vector_in = Embedder(c.vec_dim, c.hidden)
        self.txt_in = Linear(c.context_dim, c.hidden)
        self.double_blocks = nn.ModuleList(DoubleBlock(c) for _ in range(c.depth))
        self.single_blocks = nn.ModuleList(SingleBlock(c) for _ in range(c.depth_single))
        self.final_layer = FinalLayer(c)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor,
        guidance: Tensor | None = None,
        *,
        ref_latents: Sequence[Tensor] | None = None,
        ref_method: str = "offset",
        control: Mapping[str, Sequence[Tensor | None]] | None = None,
        attention_mask: Tensor | None = None,
        modulation: Sequence[Tensor] | None = None,
        run_block: Callable[..., object] | None = None,
    ) -> Tensor:
        """Velocity [B, out_channels, h, w] of the scaled latent x [B, in_channels, h, w], computed in x's dtype.

        timesteps    [B] sigma, float32 whatever x's dtype
        context      [B, L, context_dim] text tokens
        y            [B, vec_dim] pooled text vector
        guidance     [B], or None: no guidance term (not "no guidance": the model was trained with one)
        ref_latents  scaled latents [B, 16, h', w'] to attend to; `ref_method` places them, see latents.place_references
        control      residuals [B, T, hidden] to add after blocks, to the first T image tokens: "input" for the double
                     blocks, "output" for the single ones; None or a missing tail adds nothing
        attention_mask  additive, [B, L, L] over text, image and reference tokens
        modulation   what `modulations` returns, if it was computed before: then timesteps, y and guidance are not used
        run_block    called as run_block(block, *args) in place of block(*args), in the order of `blocks()`
        """
        height, width = x.shape[-2:]
        rows = self.modulations(self.vector(timesteps, y, guidance, x.dtype)) if modulation is None else modulation
        run = run_block or _call
        refs = [ref.to(x.dtype) for ref in ref_latents or ()]

        img = self.img_in(self.tokens(x, refs))  # [B, Li, D]
        txt = self.txt_in(context.to(x.dtype))  # [B, Lt, D]
        rope = self.rope(x, txt.shape[1], refs, ref_method)  # [Lt + Li, d/2]
        mask = None if attention_mask is None else attention_mask.to(x.dtype)
        control = control or {}

        mods = iter(rows)
        for number, block in enumerate(self.double_blocks):
            img, txt = run(block, img, txt, next(mods), rope, mask)
            img = _inject(img, control.get("input"), number)
        text = txt.shape[1]
        both = torch.cat((txt, _finite(img)), dim=1)  # [B, Lt + Li, D]
        del img, txt
        for number, block in enumerate(self.single_blocks):
            both = run(block, both, next(mods), rope, mask)
            both = _inject(both, control.get("output"), number, start=text)

        count = latents.patches(height) * latents.patches(width)
        out = self.final_layer(both[:, text : text + count], next(mods))
        return latents.unpack(out, height, width)

    def blocks(self) -> Iterator[nn.Module]:
        """The blocks in order of use: double, then single."""
        yield from self.double_blocks
        yield from self.single_blocks

    def vector(self, timesteps: Tensor, y: Tensor, guidance: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What all modulation depends on, [B, D]: time, guidance and pooled text.

        The guidance is rounded to `dtype` before it is multiplied by 1000 (3.5 becomes 3504 in bf16) and the time is
        not: that is how the reference has always done it, and pictures depend on it.
        """
        vec = self.time_in(sinusoids(timesteps.float()).to(dtype))
        if self.config.guidance and guidance is not None:
            vec = vec + self.guidance_in(sinusoids(guidance.to(dtype)))
        return vec + self.vector_in(y[:, : self.config.vec_dim].to(dtype))

    def modulations(self, vec: Tensor) -> tuple[Tensor, ...]:
        """The adaLN rows of every block in order of use, then of the final layer. vec [B, D].

        One tensor each: double [B, 12, D] (image, then text: shift, scale, gate for attention, the same for the MLP),
        single [B, 3, D] (shift, scale, gate), final layer [B, 2, D] (shift, scale).
        """
        active = F.silu(vec)
        return (*(block.modulate(active) for block in self.blocks()), self.final_layer.modulate(active))

    def tokens(self, x: Tensor, refs: Sequence[Tensor] = ()) -> Tensor:
        """Patches of the latent, then of the references: [B, Li, 4 * in_channels]."""
        packed = [latents.pack(part) for part in (x, *refs)]
        widened = bool(self.img_in.branches)  # a control LoRA takes more channels than the model has
        for part in packed:
            if part.shape[-1] != self.img_in.in_features and not (widened and part.shape[-1] == packed[0].shape[-1]):
                raise InputError(
                    f"This FLUX model takes latents of {self.config.in_channels} channels and was given one of "
                    f"{part.shape[-1] // 4}. Fill models need the inpainting conditioning, Canny and Depth models the "
                    "control picture, and all of them latents of the FLUX autoencoder."
                )
        return torch.cat(packed, dim=1) if refs else packed[0]

    def rope(self, x: Tensor, text: int, refs: Sequence[Tensor] = (), ref_method: str = "offset") -> Tensor:
        """Rotations of all tokens, complex64 [Lt + Li, d/2]: text at the origin, then image, then references."""
        height, width = x.shape[-2:]
        sizes = [(ref.shape[-2], ref.shape[-1]) for ref in refs]
        ids = [torch.zeros(text, 3, dtype=x.dtype), latents.image_ids(height, width, dtype=x.dtype)]
        for size, (index, top, left) in zip(
            sizes, latents.place_references(height, width, sizes, ref_method), strict=True
        ):
            ids.append(latents.image_ids(*size, index=index, top=top, left=left, dtype=x.dtype))
        return rotations(torch.cat(ids).to(x.device), self.config.axes_dim, self.config.theta)

    @torch.no_grad()
    def init_weights(self) -> None:
        """For training from scratch: Xavier matrices, and adaLN-zero (Peebles & Xie 2022): each block starts as the
        identity and the velocity as zero."""
        for module in self.modules():
            if isinstance(module, Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, Scale):
                nn.init.ones_(module.scale)
        for embedder in (self.time_in, self.vector_in, *([self.guidance_in] if self.config.guidance else [])):
            nn.init.normal_(embedder.in_layer.weight, std=0.02)
            nn.init.normal_(embedder.out_layer.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module.lin.weight)
        nn.init.zeros_(self.final_layer.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)


class DoubleBlock(nn.Module):
    """Image and text as two streams with weights of their own, joined in attention."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.img_mod = Modulation(config.hidden, 6)
        self.img_attn = Attention(config)
        self.img_mlp = Mlp(config)
        self.txt_mod = Modulation(config.hidden, 6)
        self.txt_attn = Attention(config)
        self.txt_mlp = Mlp(config)

    def modulate(self, active: Tensor) -> Tensor:
        """silu(vec) [B, D] -> [B, 12, D]."""
        return torch.cat((self.img_mod(active), self.txt_mod(active)), dim=1)

    def forward(
        self, img: Tensor, txt: Tensor, mods: Tensor, rope: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """img [B, Li, D], txt [B, Lt, D], mods [B, 12, D] -> both, one block later. Inputs stay as they are."""
        img_a, img_m, txt_a, txt_m = (Mods(*part.split(1, dim=1)) for part in mods.split(3, dim=1))

        txt_rope, img_rope = rope.split([txt.shape[1], img.shape[1]])
        img_heads = self.img_attn.heads_of(img_a.apply(img), img_rope)
        txt_heads = self.txt_attn.heads_of(txt_a.apply(txt), txt_rope)
        q, k, v = (torch.cat(pair, dim=1) for pair in zip(txt_heads, img_heads, strict=True))  # [B, Lt+Li, H, d]
        del img_heads, txt_heads
        out = attention(q, k, v, mask)  # [B, Lt+Li, D]
        del q, k, v
        txt_out, img_out = out.split([txt.shape[1], img.shape[1]], dim=1)

        img = torch.addcmul(img, img_a.gate, self.img_attn.proj(img_out))
        img = torch.addcmul(img, img_m.gate, self.img_mlp(img_m.apply(img)))
        txt = torch.addcmul(txt, txt_a.gate, self.txt_attn.proj(txt_out))
        txt = torch.addcmul(txt, txt_m.gate, self.txt_mlp(txt_m.apply(txt)))
        return img, _finite(txt)


class SingleBlock(nn.Module):
    """One stream of text and image; attention and MLP side by side (Dehghani et al. 2023)."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.modulation = Modulation(config.hidden, 3)
        self.linear1 = Linear(config.hidden, config.hidden * 3 + config.mlp)
        self.norm = QKNorm(config.head_dim)
        self.linear2 = Linear(config.hidden + config.mlp, config.hidden)
        self.heads = config.heads

    def modulate(self, active: Tensor) -> Tensor:
        """silu(vec) [B, D] -> [B, 3, D]."""
        return self.modulation(active)

    def forward(self, x: Tensor, mods: Tensor, rope: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, Lt+Li, D], mods [B, 3, D] -> x, one block later. The input stays as it is."""
        mod = Mods(*mods.split(1, dim=1))
        hidden = x.shape[-1]
        both = self.linear1(mod.apply(x))  # [B, L, 3D + mlp]
        qkv, wide = both.split([3 * hidden, both.shape[-1] - 3 * hidden], dim=-1)
        out = attention(*_heads(qkv, self.norm, self.heads, rope), mask)  # [B, L, D]
        if torch.is_grad_enabled():
            out = torch.cat((out, gelu(wide)), dim=-1)
        else:  # v has been read: its columns take the attention's output, and nothing wide is copied
            qkv[..., 2 * hidden :] = out
            gelu(wide)
            out = both[..., 2 * hidden :]
        return _finite(torch.addcmul(x, mod.gate, self.linear2(out)))


class FinalLayer(nn.Module):
    """Normalise, modulate, project to patches."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.linear = Linear(config.hidden, config.out_channels * 4)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(config.hidden, 2 * config.hidden))

    def modulate(self, active: Tensor) -> Tensor:
        """silu(vec) [B, D] -> shift, scale [B, 2, D]."""
        return self.adaLN_modulation[1](active).unflatten(-1, (2, -1))

    def forward(self, x: Tensor, mods: Tensor) -> Tensor:
        shift, scale = mods.split(1, dim=1)
        return self.linear(normalise(x, shift, scale))


class Modulation(nn.Module):
    """adaLN: one linear layer from the conditioning vector to `count` rows."""

    def __init__(self, hidden: int, count: int) -> None:
        super().__init__()
        self.lin = Linear(hidden, count * hidden)
        self.count = count

    def forward(self, active: Tensor) -> Tensor:
        return self.lin(active).unflatten(-1, (self.count, -1))  # [B, count, D]


@dataclass(frozen=True)
class Mods:
    """shift, scale and gate of one sub-layer, [B, 1, D] each."""

    shift: Tensor
    scale: Tensor
    gate: Tensor

    def apply(self, x: Tensor) -> Tensor:
        return normalise(x, self.shift, self.scale)


class Attention(nn.Module):
    """The weights of one stream's attention."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.qkv = Linear(config.hidden, config.hidden * 3)
        self.norm = QKNorm(config.head_dim)
        self.proj = Linear(config.hidden, config.hidden)
        self.heads = config.heads

    def heads_of(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, L, D] -> q, k, v, each [B, L, H, d]."""
        return _heads(self.qkv(x), self.norm, self.heads, rope)


class Mlp(nn.Sequential):
    """Linear, GELU, linear: numbered 0, 1, 2 as in the checkpoint."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__(Linear(config.hidden, config.mlp), nn.Identity(), Linear(config.mlp, config.hidden))

    def forward(self, x: Tensor) -> Tensor:
        return self[2](gelu(self[0](x)))


class QKNorm(nn.Module):
    """RMS norm of queries and keys, over each head."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.query_norm = Scale(head_dim)
        self.key_norm = Scale(head_dim)


class Scale(nn.Module):
    """RMS norm with a learned scale, in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.scale.shape, self.scale.float(), EPS)


class Embedder(nn.Module):
    """Linear, SiLU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.in_layer = Linear(width, hidden)
        self.out_layer = Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


def sinusoids(values: Tensor) -> Tensor:
    """Sinusoidal features of 1000 * values, cosines first: [B] -> [B, 256] in the dtype of `values`."""
    half = SINUSOIDS // 2
    frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half, dtype=torch.float32, device=values.device))
    angles = (1000.0 * values)[:, None].float() * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(values.dtype)


def normalise(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights of its own, then x * (1 + scale) + shift."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=EPS), 1 + scale)


def gelu(x: Tensor) -> Tensor:
    """tanh-GELU. Takes no memory of its own when nothing is to be differentiated: x itself is changed then."""
    if torch.is_grad_enabled():
        return F.gelu(x, approximate="tanh")
    return torch.ops.aten.gelu_(x, approximate="tanh")


def _heads(qkv: Tensor, norm: QKNorm, heads: int, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, L, 3D] -> q, k, v, each [B, L, H, d]; q and k normalised and turned to their positions."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).unbind(2)
    return rotate(norm.query_norm(q), rope).to(v.dtype), rotate(norm.key_norm(k), rope).to(v.dtype), v


def _inject(stream: Tensor, residuals: Sequence[Tensor | None] | None, number: int, start: int = 0) -> Tensor:
    residual = residuals[number] if residuals and number < len(residuals) else None
    if residual is not None:
        stream[:, start : start + residual.shape[1]] += residual
    return stream


def _finite(x: Tensor) -> Tensor:
    """float16 overflows in deep blocks: bring it back into range there."""
    return torch.nan_to_num(x, nan=0.0, posinf=65504, neginf=-65504) if x.dtype == torch.float16 else x


def _call(block: nn.Module, *args: object) -> object:
    return block(*args)
