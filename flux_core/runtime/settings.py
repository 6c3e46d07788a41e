"""The user's choices before anything is computed: a device, a number type, and how much memory may be used.

Number types:

    fp32   the reference: equal to ComfyUI on a CPU
    bf16   what FLUX.1 was trained in; fast where the hardware multiplies it
    fp16   for GPUs from before bf16
    auto   the fastest of them without visible loss on the device that is there

Products of the transformer:

    16bit      everything is decoded to the number type
    int8       matrices of blocks are multiplied as 8-bit integers; other files are quantised while they are loaded
    fp16-sums  as 16bit, and products of float16 are summed in float16: faster on GeForce cards, less exact
    auto       what is stored as 8-bit integers is multiplied as such, if that is faster on the device that is there

Attention of the transformer:

    pytorch    the reference
    sage       of the package sageattention, in 8 bits, where it is installed and agrees; faster, less exact

Names and sizes only, so that the command line and the server can read them without importing torch. `runtime.py`
creates the device and the number types.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..memory.budget import AUTO, Allowed

NUMBER_TYPES = (AUTO, "fp32", "bf16", "fp16")
CACHES = ("off", "fast", "faster")  # step caches, see sampling/step_cache.py
INT8, SIXTEEN_BIT, HALF_SUMS = "int8", "16bit", "fp16-sums"
LATENT_RGB, TAEF1 = "latent2rgb", "taef1"
PREVIEWS = (LATENT_RGB, TAEF1)  # of an image while it is sampled: colours of latent cells, or a small autoencoder's
COMPUTES = (AUTO, INT8, SIXTEEN_BIT, HALF_SUMS)  # how the transformer's matrices are multiplied
PYTORCH, SAGE = "pytorch", "sage"
ATTENTIONS = (PYTORCH, SAGE)  # what computes the transformer's attention


@dataclass(frozen=True)
class Settings:
    """device: "cpu", "cuda", "cuda:1", or None or "auto" for the best available one.

    dtype, cache, compute, attention: one of NUMBER_TYPES, CACHES, COMPUTES, ATTENTIONS.
    """

    device: str | None = None
    dtype: str = AUTO
    budget: Allowed = Allowed()
    cache: str = "off"
    compute: str = AUTO
    attention: str = PYTORCH

    def __post_init__(self) -> None:
        """Raises InputError for an unknown word."""
        if self.dtype not in NUMBER_TYPES:
            raise InputError(f"There is no number type {self.dtype!r}; choose {', '.join(NUMBER_TYPES)}.")
        if self.cache not in CACHES:
            raise InputError(f"There is no step cache {self.cache!r}; choose {', '.join(CACHES)}.")
        if self.compute not in COMPUTES:
            raise InputError(f"There is no compute mode {self.compute!r}; choose {', '.join(COMPUTES)}.")
        if self.attention not in ATTENTIONS:
            raise InputError(f"There is no attention {self.attention!r}; choose {', '.join(ATTENTIONS)}.")

    @classmethod
    def parse(
        cls,
        device: str | None = None,
        dtype: str | None = None,
        vram: str | None = None,
        ram: str | None = None,
        cache: str | None = None,
        compute: str | None = None,
        attention: str | None = None,
    ) -> Settings:
        """From the values of command line options. None means the default. Raises InputError."""
        budget = Allowed.parse(vram or AUTO, ram or AUTO)
        return cls(device, dtype or AUTO, budget, cache or "off", compute or AUTO, attention or PYTORCH)
