"""comfy.cli_args: the values of ComfyUI's command line options that correspond to this program.

Options that packs read and that have no meaning here are off.
"""

from __future__ import annotations

import argparse
import enum
from typing import Any

from ...engine import current

__all__ = ["LatentPreviewMethod", "PerformanceFeature", "args", "parser"]


class LatentPreviewMethod(enum.Enum):
    NoPreviews = "none"
    Auto = "auto"
    Latent2RGB = "latent2rgb"
    TAESD = "taesd"

    @classmethod
    def from_string(cls, value: str) -> LatentPreviewMethod | None:
        return next((member for member in cls if member.value == value), None)


class PerformanceFeature(enum.Enum):
    Fp16Accumulation = "fp16_accumulation"
    Fp8MatrixMultiplication = "fp8_matrix_mult"
    CublasOps = "cublas_ops"
    AutoTune = "autotune"


class _Options(argparse.Namespace):
    """Options that are not set are off."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return False


parser = argparse.ArgumentParser(prog="sluice", add_help=False)


def _options() -> _Options:
    folders = current().folders
    return _Options(
        listen="127.0.0.1",
        port=8188,
        preview_method=LatentPreviewMethod.Auto,
        preview_size=512,
        base_directory=str(folders.user.parent),
        output_directory=str(folders.output),
        input_directory=str(folders.input),
        temp_directory=str(folders.temp),
        user_directory=str(folders.user),
        default_device=None,
        cuda_device=None,
        directml=None,
        reserve_vram=None,
        fast=set(),
        cache_lru=0,
        verbose="INFO",
        max_upload_size=100,
        enable_cors_header=None,
        extra_model_paths_config=None,
        front_end_version="",
        multi_user=False,
    )


args = _options()
