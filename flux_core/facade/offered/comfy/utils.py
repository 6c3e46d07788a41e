"""comfy.utils: resizing, tiles, state dicts of files, progress."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....checkpoint.whole_files import read_tensors
from ....images import masks, resize
from ...engine import current

__all__ = [
    "PROGRESS_BAR_ENABLED",
    "PROGRESS_BAR_HOOK",
    "ProgressBar",
    "bislerp",
    "calculate_parameters",
    "common_upscale",
    "convert_sd_to",
    "copy_to_param",
    "get_attr",
    "get_tiled_scale_steps",
    "lanczos",
    "load_torch_file",
    "repeat_to_batch_size",
    "reshape_mask",
    "resize_to_batch_size",
    "safetensors_header",
    "save_torch_file",
    "set_attr",
    "set_attr_param",
    "set_progress_bar_enabled",
    "set_progress_bar_global_hook",
    "state_dict_key_replace",
    "state_dict_prefix_replace",
    "string_to_seed",
    "tiled_scale",
    "tiled_scale_multidim",
    "weight_dtype",
]
SETTABLE = ("PROGRESS_BAR_ENABLED", "PROGRESS_BAR_HOOK")

PROGRESS_BAR_ENABLED = True
PROGRESS_BAR_HOOK: Any = None
StateDict = dict[str, Any]


# -- images ------------------------------------------------------------------------------------------------------------


def common_upscale(samples: Tensor, width: int, height: int, upscale_method: str, crop: str) -> Tensor:
    """[B, C, H, W] -> [B, C, height, width]; also [B, C, T, H, W], frame by frame."""
    if samples.ndim == 5:
        batch, channels, frames = samples.shape[:3]
        flat = samples.movedim(2, 1).reshape(batch * frames, channels, *samples.shape[3:])
        flat = resize.resize(flat, width, height, upscale_method, crop)
        return flat.reshape(batch, frames, channels, height, width).movedim(1, 2)
    return resize.resize(samples, width, height, upscale_method, crop)


def bislerp(samples: Tensor, width: int, height: int) -> Tensor:
    return resize.resize(samples, width, height, "bislerp")


def lanczos(samples: Tensor, width: int, height: int) -> Tensor:
    return resize.resize(samples, width, height, "lanczos")


def repeat_to_batch_size(tensor: Tensor, batch_size: int, dim: int = 0) -> Tensor:
    """Cut or repeat a tensor along `dim`."""
    return resize.repeat_to_batch(tensor.movedim(dim, 0), batch_size).movedim(0, dim)


def resize_to_batch_size(tensor: Tensor, batch_size: int) -> Tensor:
    """A batch of another size: items at equal distances from the first to the last."""
    count = tensor.shape[0]
    if count == batch_size:
        return tensor
    if batch_size <= 1:
        return tensor[:batch_size]
    if batch_size < count:
        picked = [min(count - 1, round((count - 1) / (batch_size - 1) * i)) for i in range(batch_size)]
    else:
        picked = [min(count - 1, int((i + 0.5) * count / batch_size)) for i in range(batch_size)]
    return tensor[picked]


def reshape_mask(input_mask: Tensor, output_shape: Sequence[int]) -> Tensor:
    """A mask of any rank, stretched and repeated to `output_shape` [B, C, ..., H, W]."""
    mask = masks.resize(input_mask, *output_shape[-2:])
    mask = repeat_to_batch_size(mask, output_shape[0])
    while mask.ndim < len(output_shape):
        mask = mask.unsqueeze(2)
    return mask.expand(output_shape[0], output_shape[1], *mask.shape[2:]) if output_shape[1] > 1 else mask


# -- tiles -------------------------------------------------------------------------------------------------------------


def _corners(length: int, tile: int, overlap: int) -> list[int]:
    """The start positions of the tiles along one side."""
    if length <= tile:
        return [0]
    return [max(0, min(length - overlap, at)) for at in range(0, length - overlap, tile - overlap)]


def get_tiled_scale_steps(width: int, height: int, tile_x: int, tile_y: int, overlap: int) -> int:
    """The number of tiles in `tiled_scale`."""
    return len(_corners(width, tile_x, overlap)) * len(_corners(height, tile_y, overlap))


def tiled_scale(
    samples: Tensor,
    function: Callable[[Tensor], Tensor],
    tile_x: int = 64,
    tile_y: int = 64,
    overlap: int = 8,
    upscale_amount: float = 4,
    out_channels: int = 3,
    output_device: Any = "cpu",
    pbar: Any = None,
) -> Tensor:
    """`function` over overlapping tiles of [B, C, H, W], its results blended: [B, out_channels, ...]."""
    tile = (tile_y, tile_x)
    return tiled_scale_multidim(
        samples, function, tile, overlap, upscale_amount, out_channels, output_device, pbar=pbar
    )


@torch.inference_mode()
def tiled_scale_multidim(
    samples: Tensor,
    function: Callable[[Tensor], Tensor],
    tile: Sequence[int] = (64, 64),
    overlap: int | Sequence[int] = 8,
    upscale_amount: Any = 4,
    out_channels: int = 3,
    output_device: Any = "cpu",
    downscale: bool = False,
    index_formulas: Any = None,
    pbar: Any = None,
) -> Tensor:
    """`tiled_scale` over any number of sides. `upscale_amount`: a factor for all sides, or one for each (or a function
    of the length); `downscale` divides by it."""
    sides = len(tile)
    overlaps = [overlap] * sides if isinstance(overlap, (int, float)) else list(overlap)
    factors = list(upscale_amount) if isinstance(upscale_amount, (list, tuple)) else [upscale_amount] * sides

    def scaled(side: int, length: float) -> int:
        factor = factors[side]
        exact = factor(length) if callable(factor) else length / factor if downscale else length * factor
        return int(round(exact))

    size = [scaled(side, samples.shape[2 + side]) for side in range(sides)]
    done = torch.empty(samples.shape[0], out_channels, *size, device=output_device)
    for number in range(samples.shape[0]):
        one = samples[number : number + 1]
        total = torch.zeros(1, out_channels, *size, device=output_device)
        weights = torch.zeros_like(total)
        walks = [_corners(one.shape[2 + side], tile[side], int(overlaps[side])) for side in range(sides)]
        for corner in itertools.product(*walks):
            part = one
            for side, start in enumerate(corner):
                part = part.narrow(2 + side, start, min(tile[side], one.shape[2 + side] - start))
            result = function(part).to(output_device)
            share = torch.ones_like(result)
            place: list[Any] = [slice(None), slice(None)]
            for side, start in enumerate(corner):
                at = scaled(side, start)
                place.append(slice(at, at + result.shape[2 + side]))
                _ramp(share, 2 + side, scaled(side, int(overlaps[side])))
            total[tuple(place)] += result * share
            weights[tuple(place)] += share
            if pbar is not None:
                pbar.update(1)
        done[number : number + 1] = total / weights
    return done


def _ramp(share: Tensor, dim: int, feather: int) -> None:
    """Fade a tile at both ends of one side, in place."""
    length = share.shape[dim]
    if feather >= length:
        return
    for i in range(feather):
        share.narrow(dim, i, 1).mul_((i + 1) / feather)
        share.narrow(dim, length - 1 - i, 1).mul_((i + 1) / feather)


# -- files and state dicts ---------------------------------------------------------------------------------------------


class FileTensors(dict[str, Any]):
    """The tensors of a file, with its path: LoRAs are then read by our own reader."""

    path: str | None = None


def load_torch_file(ckpt: Any, safe_load: bool = False, device: Any = None, return_metadata: bool = False) -> Any:
    """The tensors of a safetensors file, or of a pickle, from which only tensors are loaded."""
    path = Path(ckpt)
    metadata: Any = None
    if path.suffix.lower() in (".safetensors", ".sft", ".gguf"):
        tensors: Any = {name: tensor.to(device or "cpu") for name, tensor in read_tensors(path).items()}
        header = safetensors_header(str(path)) if path.suffix.lower() != ".gguf" else None
        metadata = json.loads(header).get("__metadata__") if header else None
    else:
        loaded = torch.load(path, map_location=device or "cpu", weights_only=True)
        tensors = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if isinstance(tensors, dict):
        tensors = FileTensors(tensors)
        tensors.path = str(path)
    return (tensors, metadata) if return_metadata else tensors


def save_torch_file(sd: Mapping[str, Tensor], ckpt: str, metadata: dict[str, str] | None = None) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in sd.items()}, ckpt, metadata)


def safetensors_header(safetensors_path: str, max_size: int = 100 << 20) -> bytes | None:
    """The JSON at the start of the file; None if it is longer than `max_size`."""
    with open(safetensors_path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return file.read(length) if length <= max_size else None


def calculate_parameters(sd: Mapping[str, Tensor], prefix: str = "") -> int:
    return sum(tensor.nelement() for name, tensor in sd.items() if name.startswith(prefix))


def weight_dtype(sd: Mapping[str, Tensor], prefix: str = "") -> torch.dtype | None:
    """The type of most of the values."""
    counts: dict[torch.dtype, int] = {}
    for name, tensor in sd.items():
        if name.startswith(prefix):
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return max(counts, key=lambda dtype: counts[dtype]) if counts else None


def convert_sd_to(state_dict: StateDict, dtype: torch.dtype) -> StateDict:
    for name in state_dict:
        state_dict[name] = state_dict[name].to(dtype)
    return state_dict


def state_dict_key_replace(state_dict: StateDict, keys_to_replace: Mapping[str, str]) -> StateDict:
    for old, new in keys_to_replace.items():
        if old in state_dict:
            state_dict[new] = state_dict.pop(old)
    return state_dict


def state_dict_prefix_replace(
    state_dict: StateDict, replace_prefix: Mapping[str, str], filter_keys: bool = False
) -> StateDict:
    """Replace the prefixes of names. With `filter_keys` only these names are removed and returned in a new dict."""
    out = {} if filter_keys else state_dict
    for old, new in replace_prefix.items():
        for name in [name for name in state_dict if name.startswith(old)]:
            out[new + name[len(old) :]] = state_dict.pop(name)
    return out


def get_attr(obj: Any, attr: str) -> Any:
    for name in attr.split("."):
        obj = getattr(obj, name)
    return obj


def set_attr(obj: Any, attr: str, value: Any) -> Any:
    """Sets the attribute of a dotted name. Returns its previous value."""
    place, _, name = attr.rpartition(".")
    owner = get_attr(obj, place) if place else obj
    before = getattr(owner, name)
    setattr(owner, name, value)
    return before


def set_attr_param(obj: Any, attr: str, value: Any) -> Any:
    return set_attr(obj, attr, torch.nn.Parameter(value, requires_grad=False))


def copy_to_param(obj: Any, attr: str, value: Any) -> None:
    get_attr(obj, attr).data.copy_(value)


def string_to_seed(data: Iterable[int]) -> int:
    import zlib

    return zlib.crc32(bytes(data))


# -- progress ----------------------------------------------------------------------------------------------------------


def set_progress_bar_enabled(enabled: bool) -> None:
    global PROGRESS_BAR_ENABLED
    PROGRESS_BAR_ENABLED = enabled


def set_progress_bar_global_hook(function: Any) -> None:
    """Store a hook that packs can read. It is not called: progress always goes to the pages."""
    global PROGRESS_BAR_HOOK
    PROGRESS_BAR_HOOK = function


class ProgressBar:
    """The progress of the running node. Raises Interrupted if the run must stop."""

    def __init__(self, total: float, node_id: str | None = None) -> None:
        self.total, self.current, self.node_id = total, 0.0, node_id

    def update_absolute(self, value: float, total: float | None = None, preview: Any = None) -> None:
        """preview: ("JPEG", image, longest side)."""
        self.total = self.total if total is None else total
        self.current = min(value, self.total)
        image = preview[1] if isinstance(preview, tuple) and len(preview) > 1 else None
        current().progress(self.current, self.total, None if image is None else lambda: image)

    def update(self, value: float) -> None:
        self.update_absolute(self.current + value)
