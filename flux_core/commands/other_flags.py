"""Flags of ComfyUI's command line: what to write here in place of each, or why nothing has to be written."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

_AUTOMATIC = "Not needed: models are streamed through the memory that is free. --vram SIZE sets a limit."
_DTYPE = "Write --dtype fp32, bf16 or fp16 for all models (default: the fastest without visible loss)."
_FP8 = "Not needed: files in fp8 stay in fp8. `sluice convert` writes a model file in fp8."
_ATTENTION = "Not needed: PyTorch's attention is used."
_DEFAULT = "Not needed: this is the default."
_NVIDIA_OR_CPU = "Not available: models run on NVIDIA and AMD cards and on the CPU."
_PACKS = "Not needed: only the node packs in the folder of --node-packs DIR are loaded."
_CACHE = "Not available: the results of the last job are kept for the next one."
_HTTPS = "Not available: this server speaks HTTP. Put a proxy with a certificate in front of it."
_FRONTEND = "The editor's version is that of the package comfyui-frontend-package: install the one you want."
_LOADING = "Not needed: weights are read straight from the file to where they are used."
_DEBUG = "Set the environment variable SLUICE_DEBUG=1."

ADVICE = {
    # the server
    "--listen": "Write --host 0.0.0.0 to allow other machines; each visitor then needs the token that is printed.",
    "--tls-keyfile": _HTTPS, "--tls-certfile": _HTTPS,
    "--enable-cors-header": "Not available: pages of other sites get no answer. See --allow-host for names.",
    "--max-upload-size": "Not available: uploads are limited to 100 MiB.",
    "--enable-compress-response-body": _DEFAULT,
    "--auto-launch": "Write --open.", "--disable-auto-launch": _DEFAULT,
    "--front-end-version": _FRONTEND, "--front-end-root": _FRONTEND,
    "--multi-user": "Not available: all visitors share one user.",
    "--dont-print-server": _DEFAULT, "--windows-standalone-build": _DEFAULT,
    "--log-stdout": "Write 2>&1 after the command.",
    "--verbose": _DEBUG, "--disable-api-nodes": _DEFAULT,
    "--disable-all-custom-nodes": _PACKS, "--whitelist-custom-nodes": _PACKS,
    # folders
    "--extra-model-paths-config": "Write --extra-model-paths FILE.",
    "--temp-directory": "Previews are written to temp below --base-directory.",
    "--user-directory": "The queue and the page's settings are in user below --base-directory.",
    "--disable-metadata": "Not available: every image that is saved carries its workflow.",
    # memory
    "--gpu-only": _AUTOMATIC, "--highvram": _AUTOMATIC, "--normalvram": _AUTOMATIC, "--medvram": _AUTOMATIC,
    "--lowvram": _AUTOMATIC, "--novram": _AUTOMATIC, "--disable-smart-memory": _AUTOMATIC,
    "--async-offload": _AUTOMATIC,
    "--force-non-blocking": _AUTOMATIC, "--cpu-vae": _AUTOMATIC,
    "--reserve-vram": "Write --vram SIZE with the size that may be used.",
    "--cuda-malloc": _LOADING, "--disable-cuda-malloc": _LOADING, "--mmap-torch-files": _LOADING,
    "--disable-mmap": _LOADING,
    "--cache-lru": _CACHE, "--cache-none": _CACHE, "--cache-classic": _DEFAULT,
    # devices and number types
    "--cpu": "Write --device cpu.", "--cuda-device": "Write --device cuda:N.",
    "--default-device": "Write --device cuda:N.",
    "--directml": _NVIDIA_OR_CPU, "--oneapi-device-selector": _NVIDIA_OR_CPU, "--disable-ipex-optimize": _NVIDIA_OR_CPU,
    "--force-fp32": "Write --dtype fp32.", "--force-fp16": "Write --dtype fp16.",
    "--fp32-unet": "Write --dtype fp32.", "--fp64-unet": "Write --dtype fp32.",
    "--bf16-unet": "Write --dtype bf16.", "--fp16-unet": "Write --dtype fp16.",
    "--fp8_e4m3fn-unet": "Choose weight_dtype fp8_e4m3fn in Load Diffusion Model.",
    "--fp8_e5m2-unet": "Choose weight_dtype fp8_e5m2 in Load Diffusion Model.",
    "--fp8_e8m0fnu-unet": _FP8, "--supports-fp8-compute": _FP8,
    "--fp8_e4m3fn-text-enc": _FP8, "--fp8_e5m2-text-enc": _FP8,
    "--fp16-vae": _DTYPE, "--fp32-vae": _DTYPE, "--bf16-vae": _DTYPE,
    "--fp16-text-enc": _DTYPE, "--fp32-text-enc": _DTYPE, "--bf16-text-enc": _DTYPE, "--fast": _DTYPE,
    "--force-channels-last": _DEFAULT,
    "--deterministic": "Not available: the algorithms that PyTorch chooses are used.",
    "--use-split-cross-attention": _ATTENTION, "--use-quad-cross-attention": _ATTENTION,
    "--use-pytorch-cross-attention": _ATTENTION, "--use-sage-attention": "Write --attention sage.",
    "--use-flash-attention": _ATTENTION, "--disable-xformers": _ATTENTION,
    "--force-upcast-attention": _ATTENTION, "--dont-upcast-attention": _ATTENTION,
    "--preview-method": "Previews are always made; write --previews taef1 for taesd.",
    "--preview-size": "Not needed: previews are always made.",
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """argparse's parser, with advice for flags of ComfyUI beside its own error."""

    def __init__(self, given: Sequence[str], prog: str, description: str) -> None:
        """`given`: the words of the command line that this parser reads."""
        super().__init__(prog=prog, description=description)
        self._flags = [word.partition("=")[0] for word in given if word.startswith("--")]

    def error(self, message: str) -> NoReturn:
        """Print the message and the advice, and exit with code 2 as argparse does."""
        self.print_usage(sys.stderr)
        foreign = [flag for flag in dict.fromkeys(self._flags) if flag in ADVICE]
        lines = [f"{self.prog}: error: {message}", *(f"  {flag}: {ADVICE[flag]}" for flag in foreign)]
        self.exit(2, "\n".join(lines) + "\n")
