"""The value of a CLIP link: both text encoders, with their files, tokenizers, options and LoRAs.

It implements the interface that encoding needs (conditioning/text.py: Encoders). Its weights are shared by all handles
of a file (weights.py).

Independent of: nodes, prompts, and how bytes become parameters.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..adapters.apply import adapted
from ..adapters.lora import LoraUse
from ..conditioning.embeddings import lookup
from ..conditioning.text import Cache, TextOptions
from ..conditioning.tokenizer import ClipTokenizer, Lookup, T5Tokenizer
from ..conditioning.tokenizer_files import clip_tokenizer, t5_tokenizer
from .encoder import ManagedEncoder
from .loaded_whole import ReportedEncoder
from .lora_memory import reclaim_for_loras
from .model_weights import ClipWeights, T5Weights
from .runtime import Runtime
from .sound import unsound
from .team import Team


@dataclass(frozen=True)
class TextEncoders:
    """Both text encoders with their tokenizers, which are searched beside the files, then in `tokenizers`."""

    clip_weights: ClipWeights
    t5_weights: T5Weights
    options: TextOptions = TextOptions()
    on_cpu: bool = False
    tokenizers: tuple[Path, ...] = ()
    embedding_folders: tuple[Path, ...] = ()
    clip_loras: tuple[LoraUse, ...] = ()
    t5_loras: tuple[LoraUse, ...] = ()

    @property
    def runtime(self) -> Runtime:
        return self.t5_weights.runtime

    @property
    def encodings(self) -> Cache:
        return self.runtime.encodings

    @property
    def clip_identity(self) -> Hashable:
        return self.clip_weights.identity, tuple(use.identity for use in self.clip_loras), self.device

    @property
    def t5_identity(self) -> Hashable:
        return self.t5_weights.identity, tuple(use.identity for use in self.t5_loras), self.device

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if self.on_cpu else self.runtime.device

    @property
    def clip_tokenizer(self) -> ClipTokenizer:
        config = self.clip_weights.config
        return clip_tokenizer(self.clip_weights.path, self.tokenizers, config.vocabulary, config.positions)

    @property
    def t5_tokenizer(self) -> T5Tokenizer:
        return t5_tokenizer(self.t5_weights.path, self.tokenizers, self.t5_weights.config.vocabulary)

    def clip(self) -> Any:
        return self._ready(self.clip_weights, self.clip_loras)

    def t5(self) -> Any:
        return self._ready(self.t5_weights, self.t5_loras)

    def _ready(self, weights: ClipWeights | T5Weights, loras: tuple[LoraUse, ...]) -> Any:
        team = self.runtime.team
        if team is None or team.settings.split.tp == 1 or self.device != self.runtime.device:
            return ready(weights, loras, self.device)
        self.runtime.share = team.start()
        kind = "clip_l" if isinstance(weights, ClipWeights) else "t5"
        return _Divided(team, EncoderOf(str(weights.path), kind, loras), ready(weights, loras, self.device))

    def embeddings(self, encoder: str) -> Lookup | None:
        return lookup(self.embedding_folders, encoder) if self.embedding_folders else None

    def unsound(self, encoder: str) -> str | None:
        """Why an encoder's output is not finite: a sentence about a tensor of its file that is not finite, or None."""
        return unsound((self.clip_weights if encoder == "clip_l" else self.t5_weights).tensors)


@dataclass(frozen=True)
class EncoderOf:
    """A text encoder, as another process is told it. kind: "clip_l" or "t5"."""

    path: str
    kind: str
    loras: tuple[LoraUse, ...]


def ready(weights: ClipWeights | T5Weights, loras: tuple[LoraUse, ...], device: torch.device) -> Any:
    """The encoder with LoRAs, to be called; if several devices have rows of its matrices, they call it together."""
    runtime = weights.runtime
    manager, dtype = runtime.manager(device, weights.nbytes), runtime.text_dtype
    if manager is not None:
        return _Managed(weights.managed(manager, dtype), loras, device, dtype)
    module = adapted(weights.module(device, dtype), loras, device, dtype)
    if not runtime.events.has_listeners:
        return module
    label = "CLIP-L" if isinstance(weights, ClipWeights) else "T5"
    return ReportedEncoder(label, module, runtime, device, weights.tensors, dtype)


class _Divided:
    """A text encoder of which each device has some rows of every matrix."""

    def __init__(self, team: Team, told: EncoderOf, own: Any) -> None:
        self._team, self._told, self._own = team, told, own
        self.config, self.embed = own.config, own.embed

    def __call__(self, *args: Any) -> Any:
        return self._team.encoded((self._told, args), lambda: self._own(*args))


class _Managed:
    """A text encoder under a memory manager, with its LoRAs."""

    def __init__(
        self, managed: ManagedEncoder, uses: tuple[LoraUse, ...], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.managed, self.uses, self.device, self.dtype = managed, uses, device, dtype
        self.config, self.embed = managed.module.config, managed.module.embed

    def __call__(self, *args: Any) -> Any:
        reclaim_for_loras(self.managed.manager, self.uses, self.device, self.dtype)
        module = adapted(self.managed.module, self.uses, self.device, self.dtype)
        return self.managed.run(*args, module=module)
