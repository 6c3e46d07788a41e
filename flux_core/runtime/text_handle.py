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
from .runtime import Runtime
from .sound import unsound
from .weights import ClipWeights, T5Weights


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
        manager, dtype = self.runtime.manager(self.device, weights.nbytes), self.runtime.text_dtype
        if manager is not None:
            return _Managed(weights.managed(manager, dtype), loras, self.device, dtype)
        module = adapted(weights.module(self.device, dtype), loras, self.device, dtype)
        if not self.runtime.events.has_listeners:
            return module
        label = "CLIP-L" if weights is self.clip_weights else "T5"
        return ReportedEncoder(label, module, self.runtime, self.device, weights.tensors, dtype)

    def embeddings(self, encoder: str) -> Lookup | None:
        return lookup(self.embedding_folders, encoder) if self.embedding_folders else None

    def unsound(self, encoder: str) -> str | None:
        """Why an encoder's output is not finite: a sentence about a tensor of its file that is not finite, or None."""
        return unsound((self.clip_weights if encoder == "clip_l" else self.t5_weights).tensors)


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
