"""The inputs of a FLUX transformer for one evaluation: the arguments of the network, with their shapes.

Guiders create them, streamed networks, caches and several devices pass them on, and the model's forward uses them. All
inputs besides the latent (text, references, ControlNet residuals, tokens of image adapters) are fields here, and the
functions of tensor_trees.py apply to every field: code that passes the inputs on does not depend on them.

Uses no conditioning, no noise schedule and no device.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ControlResiduals:
    """The residuals of ControlNets for the image tokens: entry k is added after block k.

    Each entry is [B, T, hidden] and is added to the first T image tokens. None, or a tuple that ends early, adds
    nothing. own: whether the entries are for this device's tokens only, where several devices share the tokens.
    """

    double: tuple[Tensor | None, ...] = ()  # after the double-stream blocks
    single: tuple[Tensor | None, ...] = ()  # after the single-stream blocks
    own: bool = False


@dataclass(frozen=True)
class ControlInput:
    """An image that one ControlNet follows.

    net        which ControlNet: its name in `Flux.controlnets`
    hint       [B or 1, 16 or 17, h, w] a scaled latent (and a mask), or [B or 1, 3, 8h, 8w] an image in 0..1: see
               `ControlNetConfig`
    strength   the factor of its residuals
    modes      for a union ControlNet: numbers of the kinds of images this is
    """

    net: str
    hint: Tensor
    strength: float
    modes: tuple[int, ...] = ()


@dataclass(frozen=True)
class DenoiserInputs:
    """One evaluation of the network for a batch of B latents of h x w cells.

    x               [B, in_channels, h, w]  scaled noisy latent, then any concatenated channels (Canny, Depth, Fill);
                    the network computes in its number type
    timesteps       [B]  the network's input for each latent's noise level, always float32: sigma, or the value of
                    `Sampling.timestep` for it
    context         [B, L, context_dim]  text tokens
    pooled          [B, vec_dim]  pooled text vector
    guidance        [B], or None: no guidance term (not "no guidance": the model was trained with one)
    references      scaled latents [B, 16, h', w'] that the image attends to (Kontext)
    reference_method  the positions of their tokens: see `latents.place_references`
    attention_mask  [B, T, T] or broadcastable, added to the attention's logits; T counts text tokens, then those of the
                    image, then those of the references, but not those of `style`
    control         residuals of ControlNets that were computed before, or None
    controls        images that ControlNets of the model follow
    seen            images that the double blocks also attend to (models/image_adapter.py): for each adapter one tensor
                    a block, its keys and values [2, n, tokens, hidden] for n images, whose mean counts
    shows_none      whether this conditioning has no image: a black one is then used for `seen`
    style           [B or 1, S, hidden] tokens of style references (models/style_projector.py), before the text tokens
                    and behind the text's embedder, at the origin; or None

    x, context, references, attention_mask, control, controls, seen and style are on the device that computes.
    timesteps, pooled and guidance may be on the CPU in any case: a table of modulation rows can then be searched for
    them without waiting for a GPU.
    """

    x: Tensor
    timesteps: Tensor
    context: Tensor
    pooled: Tensor
    guidance: Tensor | None = None
    references: tuple[Tensor, ...] = ()
    reference_method: str = "offset"
    attention_mask: Tensor | None = None
    control: ControlResiduals | None = None
    controls: tuple[ControlInput, ...] = ()
    seen: tuple[tuple[Tensor, ...], ...] = ()
    shows_none: bool = False
    style: Tensor | None = None
