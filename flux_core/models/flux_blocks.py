"""The blocks of the FLUX.1 transformer: attention and MLP, modulated by time, guidance and pooled text.

Attribute names are the keys of BFL checkpoints. A block leaves its inputs unchanged, so it can be run again. In
`eval()` it reuses the memory of its own intermediate results; in `train()` it does not, so that it can be
differentiated. The numbers are the same.

Independent of: the source of modulation rows, the blocks before and after.

Each block uses its matrices in a fixed order, which is the order in which they can be streamed:
  double  img_attn.qkv, txt_attn.qkv, (attention),
          img_attn.proj, img_mlp.0, img_mlp.2, txt_attn.proj, txt_mlp.0, txt_mlp.2
  single  linear1, (attention), linear2
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .activations import gelu, gelu_
from .attention import attention, backwards, rotate
from .linear import Linear

EPS = 1e-6
SINUSOIDS = 256  # width of the timestep and guidance embeddings
IN_CACHE = 1 << 18  # float32 numbers of queries or keys at a time for each thread of a CPU


class DoubleStreamBlock(nn.Module):
    """Image and text as two streams with weights of their own, joined in attention."""

    def __init__(self, hidden: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.img_mod = Modulation(hidden, 6)
        self.img_attn = Attention(hidden, heads)
        self.img_mlp = Mlp(hidden, mlp)
        self.txt_mod = Modulation(hidden, 6)
        self.txt_attn = Attention(hidden, heads)
        self.txt_mlp = Mlp(hidden, mlp)

    def modulate(self, active: Tensor) -> Tensor:
        """silu(vec) [B, D] -> [B, 12, D]."""
        return torch.cat((self.img_mod(active), self.txt_mod(active)), dim=1)

    def forward(
        self,
        img: Tensor,
        txt: Tensor,
        mods: Tensor,
        rope: Tensor,
        mask: Tensor | None = None,
        attend: Callable[..., Tensor] = attention,
        *seen: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """img [B, Li, D], txt [B, Lt, D], mods [B, 12, D] -> both, one block later. Inputs are not changed.

        attend: used in place of `attention` if other devices have some of the tokens. seen: keys and values
        [2, n, T, D] of n images that the image tokens also attend to.
        """
        img_a, img_m, txt_a, txt_m = (Mods(*part.split(1, dim=1)) for part in mods.split(3, dim=1))

        txt_rope, img_rope = rope.split([txt.shape[1], img.shape[1]])
        img_heads = self.img_attn(img_a.apply(img), img_rope)
        txt_heads = self.txt_attn(txt_a.apply(txt), txt_rope)
        q, k, v = (torch.cat(pair, dim=1) for pair in zip(txt_heads, img_heads, strict=True))  # [B, Lt+Li, H, d]
        look = _looked_at(img_heads[0], img_rope, seen) if seen else None
        del img_heads, txt_heads
        out = attend(q, k, v, mask)  # [B, Lt+Li, D]
        del q, k, v
        txt_out, img_out = out.split([txt.shape[1], img.shape[1]], dim=1)

        img = torch.addcmul(img, img_a.gate, self.img_attn.proj(img_out))
        img = torch.addcmul(img, img_m.gate, self.img_mlp(img_m.apply(img)))
        if look is not None:
            img = img + look
        txt = torch.addcmul(txt, txt_a.gate, self.txt_attn.proj(txt_out))
        txt = torch.addcmul(txt, txt_m.gate, self.txt_mlp(txt_m.apply(txt)))
        return img, finite(txt, infinite=False)


def _looked_at(queries: Tensor, rope: Tensor, seen: Sequence[Tensor]) -> Tensor:
    """The attention of image tokens to images, [B, L, D]: for each of `seen` the mean over its n images.

    queries [B, L, H, d] with rotated positions; the rotation is undone, as `seen` has none. seen: [2, n, T, D] each.
    """
    plain = rotate(queries.float(), backwards(rope)).to(queries.dtype)
    return sum((_found(plain, keys_and_values) for keys_and_values in seen[1:]), _found(plain, seen[0]))


def _found(queries: Tensor, keys_and_values: Tensor) -> Tensor:
    batch, heads = queries.shape[0], queries.shape[2]
    total = torch.zeros((), dtype=queries.dtype, device=queries.device)
    for pair in keys_and_values.unflatten(-1, (heads, -1)).unbind(1):  # of one image [2, T, H, d]
        key, value = pair[:, None].expand(-1, batch, -1, -1, -1)
        total = total + attention(queries, key, value)
    return total / keys_and_values.shape[1]


class SingleStreamBlock(nn.Module):
    """One stream of text and image; attention and MLP side by side (Dehghani et al. 2023)."""

    def __init__(self, hidden: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.modulation = Modulation(hidden, 3)
        self.linear1 = Linear(hidden, hidden * 3 + mlp)
        self.norm = QKNorm(hidden // heads)
        self.linear2 = Linear(hidden + mlp, hidden)
        self.heads = heads

    def modulate(self, active: Tensor) -> Tensor:
        """silu(vec) [B, D] -> [B, 3, D]."""
        out: Tensor = self.modulation(active)
        return out

    def forward(
        self,
        x: Tensor,
        mods: Tensor,
        rope: Tensor,
        mask: Tensor | None = None,
        attend: Callable[..., Tensor] = attention,
    ) -> Tensor:
        """x [B, Lt+Li, D], mods [B, 3, D] -> x, one block later. The input is not changed. attend: as above."""
        mod = Mods(*mods.split(1, dim=1))
        hidden = x.shape[-1]
        both = self.linear1(mod.apply(x))  # [B, L, 3D + mlp]
        qkv, wide = both.split([3 * hidden, both.shape[-1] - 3 * hidden], dim=-1)
        q, k, v = self.norm(qkv, self.heads, rope)
        out = attend(q, k, v, mask)  # [B, L, D]
        if self.training:
            out = torch.cat((out, gelu(wide)), dim=-1)
        else:  # v is no longer needed: the attention's output is written to its columns, so no wide tensor is copied
            qkv[..., 2 * hidden :] = out
            gelu_(wide)
            out = both[..., 2 * hidden :]
        return finite(torch.addcmul(x, mod.gate, self.linear2(out)))


class FinalLayer(nn.Module):
    """Normalise, modulate, project to patches."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.linear = Linear(hidden, width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(hidden, 2 * hidden))

    def modulate(self, active: Tensor) -> Tensor:
        """silu(vec) [B, D] -> shift, scale [B, 2, D]."""
        out: Tensor = self.adaLN_modulation[1](active).unflatten(-1, (2, -1))
        return out

    def forward(self, x: Tensor, mods: Tensor) -> Tensor:
        shift, scale = mods.split(1, dim=1)
        out: Tensor = self.linear(normalise(x, shift, scale))
        return out


class Modulation(nn.Module):
    """adaLN: one linear layer from the conditioning vector to `count` rows."""

    def __init__(self, hidden: int, count: int) -> None:
        super().__init__()
        self.lin = Linear(hidden, count * hidden)
        self.count = count

    def forward(self, active: Tensor) -> Tensor:
        out: Tensor = self.lin(active).unflatten(-1, (self.count, -1))  # [B, count, D]
        return out


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

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.qkv = Linear(hidden, hidden * 3)
        self.norm = QKNorm(hidden // heads)
        self.proj = Linear(hidden, hidden)
        self.heads = heads

    def forward(self, x: Tensor, rope: Tensor) -> tuple[Tensor, ...]:
        """[B, L, D] -> q, k, v, each [B, L, H, d]."""
        qkv: tuple[Tensor, Tensor, Tensor] = self.norm(self.qkv(x), self.heads, rope)
        return qkv


class Mlp(nn.Sequential):
    """Linear, GELU, linear: numbered 0, 1, 2 as in the checkpoint."""

    def __init__(self, hidden: int, mlp: int) -> None:
        super().__init__(Linear(hidden, mlp), nn.Identity(), Linear(mlp, hidden))

    def forward(self, x: Tensor) -> Tensor:
        wide = self[0](x)
        out: Tensor = self[2](gelu(wide) if self.training else gelu_(wide))
        return out


class QKNorm(nn.Module):
    """RMS norm of queries and keys, over each head."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.query_norm = Scale(head_dim)
        self.key_norm = Scale(head_dim)

    def forward(self, qkv: Tensor, heads: int, rope: Tensor) -> tuple[Tensor, ...]:
        """[B, L, 3D] -> q, k, v, each [B, L, H, d]; q and k normalised and turned to their positions.

        In `eval()` they are views of `qkv`, which is overwritten.
        """
        q, k, v = qkv.unflatten(-1, (3, heads, -1)).unbind(2)
        return self._turned(q, self.query_norm, rope), self._turned(k, self.key_norm, rope), v

    def _turned(self, x: Tensor, norm: Scale, rope: Tensor) -> Tensor:
        if self.training:
            return rotate(norm(x), rope).to(x.dtype)
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return rotate(norm(x), rope, out=x)
        count = max(1, IN_CACHE * torch.get_num_threads() // max(1, x[:, :1].numel()))
        for part, turns in zip(x.split(count, dim=1), rope.split(count), strict=True):
            rotate(norm(part), turns, out=part)
        return x


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
        out: Tensor = self.out_layer(F.silu(self.in_layer(x)))
        return out


def sinusoids(values: Tensor) -> Tensor:
    """Sinusoidal features of 1000 * values, cosines first: [B] -> [B, 256] in the dtype of `values`."""
    half = SINUSOIDS // 2
    steps = torch.arange(half, dtype=torch.float32, device=values.device)
    frequencies = torch.exp(-math.log(10_000) * steps / half)
    angles = (1000.0 * values)[:, None].float() * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(values.dtype)


def normalise(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights of its own, then x * (1 + scale) + shift."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=EPS), 1 + scale)


def finite(x: Tensor, infinite: bool = True) -> Tensor:
    """float16 overflows in deep blocks for some tokens: clamp it to its range, as ComfyUI does. x [B, L, D].

    A channel that is not a number for any token comes from damaged weights or inputs. It would be replaced like the
    others, and the image would be noise; so everything becomes NaN, which ends the run with a message. infinite:
    whether the same applies to a channel that is infinite for every token, as it does unless all are text tokens.
    """
    if x.dtype != torch.float16:
        return x
    lost = (~x.isfinite() if infinite else x.isnan()).all(dim=1).any()
    return torch.nan_to_num(x, nan=0.0, posinf=65504, neginf=-65504).masked_fill_(lost, torch.nan)
