"""Sequence parallelism: each device has some of the tokens; attention is over all of them. Nothing is padded.

    ulysses  tokens are exchanged for heads: attention over all tokens with some heads, then back   (Jacobs et al. 2023)
    gather   everybody's keys and values are collected; own queries see them
    ring     keys and values travel round; partial results are merged by their log-sum-exp          (Liu et al. 2023)

What arrives is put into the order of a single device (all text, then all image), so that sums run in its order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from .split import Split, Tokens, spans
from .wire import Wire


@dataclass(frozen=True)
class SharedTokens:
    """The share of one device in one evaluation; see models/token_share.py."""

    wire: Wire
    tokens: Tokens
    how: str = "ulysses"
    shares: int | Sequence[float] | None = None  # of the heads too, in ulysses; None: even ones

    def text(self, tokens: Tensor) -> Tensor:
        return tokens[:, slice(*self.tokens.text[self.wire.rank])]

    def image(self, tokens: Tensor) -> Tensor:
        return tokens[:, slice(*self.tokens.image[self.wire.rank])]

    def positions(self, rope: Tensor) -> Tensor:
        return torch.cat([rope[slice(*span)] for span in self.tokens.places(self.wire.rank)])

    def whole_image(self, own: Tensor) -> Tensor:
        shapes = [(own.shape[0], end - start, own.shape[2]) for start, end in self.tokens.image]
        return torch.cat(self.wire.gather(own, shapes), dim=1)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None and mask.ndim == 3:
            mask = mask[:, None]
        return _ATTENTIONS[self.how](self, q, k, v, mask).flatten(2)

    # -- the order of a single device --------------------------------------------------------------------------------

    def ordered(self, parts: Sequence[Tensor], dim: int) -> Tensor:
        """[t0 i0], [t1 i1], ... -> [t0 t1 ... i0 i1 ...]."""
        cut = [part.split(list(self.tokens.lengths(rank)), dim=dim) for rank, part in enumerate(parts)]
        return torch.cat([text for text, _ in cut] + [image for _, image in cut], dim=dim)

    def unordered(self, whole: Tensor, dim: int) -> list[Tensor]:
        """Undo `ordered`."""
        size = self.wire.size
        lengths = [self.tokens.lengths(rank) for rank in range(size)]
        cut = whole.split([text for text, _ in lengths] + [image for _, image in lengths], dim=dim)
        return [torch.cat((cut[rank], cut[rank + size]), dim=dim) for rank in range(size)]

    @cached_property
    def _places(self) -> list[Tensor]:
        """Where each device's tokens are in that order."""
        return [torch.cat([torch.arange(*span) for span in self.tokens.places(rank)]) for rank in range(self.wire.size)]

    def own_rows(self, mask: Tensor | None) -> Tensor | None:
        """The rows of a mask [B, 1 or H, 1 or L, L] that belong to its own queries."""
        if mask is None or mask.shape[-2] == 1:
            return mask
        return mask[..., self._places[self.wire.rank].to(mask.device), :]

    def columns(self, mask: Tensor | None, rank: int) -> Tensor | None:
        """The columns of a mask that belong to a device's keys."""
        return None if mask is None else mask[..., self._places[rank].to(mask.device)]


@dataclass(frozen=True)
class TokenSharing:
    """Makes the shares of a sequence group. shares: the relative speeds of the devices, or how many there are."""

    wire: Wire
    split: Split
    shares: int | Sequence[float]

    def __call__(self, text: int, image: int) -> SharedTokens:
        return SharedTokens(self.wire, Tokens.of(text, image, self.shares), self.split.attention, self.shares)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """[B, L, H, d] -> [B, L, H, d]."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return out.transpose(1, 2)


def _heads_of(mask: Tensor | None, span: tuple[int, int]) -> Tensor | None:
    return mask if mask is None or mask.shape[1] == 1 else mask[:, slice(*span)]


def _ulysses(share: SharedTokens, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    wire, (batch, own, heads, width) = share.wire, q.shape
    cut = spans(heads, share.shares or wire.size)
    mine = cut[wire.rank]
    count = mine[1] - mine[0]
    both = torch.stack((q, k, v))  # [3, B, l, H, d]
    shapes = [(3, batch, share.tokens.count(rank), count, width) for rank in range(wire.size)]
    got = wire.exchange([both[..., start:end, :] for start, end in cut], shapes)
    whole_q, whole_k, whole_v = share.ordered(got, dim=2).unbind(0)  # [B, L, h, d]
    out = _sdpa(whole_q, whole_k, whole_v, _heads_of(mask, mine)) if count else whole_q
    back = wire.exchange(share.unordered(out, dim=1), [(batch, own, end - start, width) for start, end in cut])
    return torch.cat(back, dim=2)


def _gather(share: SharedTokens, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    batch, _, heads, width = q.shape
    shapes = [(2, batch, share.tokens.count(rank), heads, width) for rank in range(share.wire.size)]
    whole_k, whole_v = share.ordered(share.wire.gather(torch.stack((k, v)), shapes), dim=2).unbind(0)
    return _sdpa(q, whole_k, whole_v, share.own_rows(mask))


def _ring(share: SharedTokens, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    wire, (batch, _, heads, width) = share.wire, q.shape
    rows = share.own_rows(mask)
    total, lse = (
        torch.zeros_like(q, dtype=torch.float32),
        q.new_full((*q.shape[:3], 1), -torch.inf, dtype=torch.float32),
    )
    for step in range(wire.size):
        wait = None
        if step < wire.size - 1:
            shape = (batch, share.tokens.count((wire.rank - step - 1) % wire.size), heads, width)
            wait = wire.shift((k, v), (shape, shape))
        if k.shape[1] and q.shape[1]:
            out, own = with_lse(q, k, v, share.columns(rows, (wire.rank - step) % wire.size))
            total, lse = merged(total, lse, out, own)
        if wait is not None:
            k, v = wait()
    return total.to(v.dtype)


def with_lse(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention [B, L, H, d] and the log-sum-exp of its logits [B, L, H, 1], both float32. Rows may see nothing.

    In plain arithmetic, a block of queries at a time: PyTorch's kernels keep the log-sum-exp to themselves.
    """
    outs, sums = [], []
    rows = max(1, (1 << 24) // max(1, q.shape[0] * q.shape[2] * k.shape[1]))
    keys, values = k.transpose(1, 2).float(), v.transpose(1, 2).float()
    for start in range(0, q.shape[1], rows):
        logits = q[:, start : start + rows].transpose(1, 2).float() @ keys.transpose(2, 3) * q.shape[-1] ** -0.5
        if mask is not None:
            logits = logits + (mask if mask.shape[-2] == 1 else mask[..., start : start + rows, :])
        lse = logits.logsumexp(-1, keepdim=True)
        weights = (logits - lse.masked_fill(lse == -torch.inf, 0.0)).exp()
        outs.append((weights @ values).transpose(1, 2))
        sums.append(lse.transpose(1, 2))
    return torch.cat(outs, dim=1), torch.cat(sums, dim=1)


def merged(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Two partial results of attention over different keys as one: m = log(e^a + e^b), out e^(a-m) + other e^(b-m)."""
    both = torch.logaddexp(lse, other_lse)
    safe = both.masked_fill(both == -torch.inf, 0.0)  # nothing was seen yet: both weights are 0
    return out * (lse - safe).exp() + other * (other_lse - safe).exp(), both


_ATTENTIONS: dict[str, Callable[[SharedTokens, Tensor, Tensor, Tensor, Tensor | None], Tensor]] = {
    "ulysses": _ulysses,
    "gather": _gather,
    "ring": _ring,
}
