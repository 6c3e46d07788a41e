"""Which model files are there, and what is missing for a first FLUX.1 image."""

from __future__ import annotations

from collections.abc import Iterator

from ..checkpoint.detect import detect
from ..checkpoint.files import open_weights
from ..conditioning.tokenizer import CLIP_LENGTH
from ..conditioning.tokenizer_files import CLIP_VOCABULARY, T5_VOCABULARY, clip_tokenizer, t5_tokenizer
from ..errors import SluiceError
from ..io.folders import TINY_MODELS, Folders
from .finding import Finding

# part -> (what it is, category, a published file that has it)
PARTS = {
    "flux": ("transformer", "diffusion_models", "flux1-dev.safetensors"),
    "t5": ("T5 text encoder", "text_encoders", "t5xxl_fp8_e4m3fn.safetensors"),
    "clip_l": ("CLIP text encoder", "text_encoders", "clip_l.safetensors"),
    "autoencoder": ("autoencoder", "vae", "ae.safetensors"),
}


def model_findings(folders: Folders) -> Iterator[Finding]:
    """A line for every part of FLUX.1, for files that cannot be read, and for the tokenizers. Reads headers only."""
    found: dict[str, list[str]] = {part: [] for part in PARTS}
    for category in ("diffusion_models", "checkpoints", "text_encoders", "vae"):
        for name in folders.filenames(category):
            path = folders.path(category, name)
            if path.is_relative_to(TINY_MODELS):
                continue
            try:
                parts = detect(open_weights(path)).parts
            except SluiceError as error:
                yield Finding("model file", f"{category}/{name} cannot be read", str(error))
                continue
            for part in parts.keys() & found.keys():
                found[part].append(f"{category}/{name}")
    if not any(found.values()):
        places = ", ".join(str(place) for place in folders.directories("diffusion_models") if not _shipped(place))
        advice = f"Download FLUX.1 as the README's table says, or name its folder with --models. Looked in: {places}."
        yield Finding("models", "only the small model that comes with Sluice", advice)
        return
    for part, (noun, category, published) in PARTS.items():
        names = found[part]
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield Finding(noun, f"{names[0]}{more}")
        else:
            yield Finding(noun, "missing", folders.explain_missing(category, published))
    yield from _tokenizers(folders)


def _tokenizers(folders: Folders) -> Iterator[Finding]:
    places = folders.directories("tokenizers")
    for name, load, vocabulary in (
        ("T5 tokenizer", lambda: t5_tokenizer(None, places, T5_VOCABULARY), T5_VOCABULARY),
        ("CLIP tokenizer", lambda: clip_tokenizer(None, places, CLIP_VOCABULARY, CLIP_LENGTH), CLIP_VOCABULARY),
    ):
        try:
            load()
            yield Finding(name, f"found, {vocabulary} tokens")
        except SluiceError as error:
            yield Finding(name, "not found; GGUF files of T5 carry theirs", str(error).partition(" Looked in:")[0])


def _shipped(place: object) -> bool:
    return str(place).startswith(str(TINY_MODELS))
