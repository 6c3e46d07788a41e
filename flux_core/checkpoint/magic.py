"""Recognises by the first bytes what a file is, so that an error message can say it.

Independent of: the contents of any format.
"""

from __future__ import annotations

SAFETENSORS_HINT = "Download or convert it to .safetensors."

_SIGNS: tuple[tuple[bytes, str], ...] = (
    (b"GGUF", "a GGUF file"),
    (b"PK\x03\x04", "a zip archive, most likely a PyTorch pickle (.ckpt, .pt), which can run code when opened"),
    (b"\x80\x02", "a Python pickle, which can run code when opened"),
    (b"\x80\x03", "a Python pickle, which can run code when opened"),
    (b"\x80\x04", "a Python pickle, which can run code when opened"),
    (b"\x80\x05", "a Python pickle, which can run code when opened"),
    (b"version https://git-lfs", "a Git LFS pointer: a small placeholder for a file that was never fetched"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"RIFF", "a WebP image or a sound"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"%PDF", "a PDF document"),
    (b"ggml", "an old GGML file"),
    (b"ggjt", "an old GGML file"),
)


def seems(start: bytes) -> str | None:
    """A noun with its article for the type that the first bytes show ("a PNG image"), or None."""
    for sign, noun in _SIGNS:
        if start.startswith(sign):
            return noun
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page, which is what a download without permission returns"
    if len(start) >= 9 and start[8:9] == b"{":
        return "a safetensors file"
    if text.startswith((b"{", b"[")):
        return "a JSON text"
    if start and not start.strip(b"\0"):
        return "a file of zero bytes, which an unfinished download leaves"
    return None
