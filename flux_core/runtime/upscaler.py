"""Upscale models (ESRGAN and its relatives) from files to ready models: images are processed in tiles, one at a time.

The library spandrel has the networks and recognises the files. A model is small and stays in RAM; it is on the device
only while it works, with tiles as large as memory allows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..cancel import check_cancelled
from ..errors import BudgetTooSmall, FileFormatError
from ..memory.workload import MiB
from ..models.tiling import tiled, tiles
from .autoencoder import KERNELS
from .dry_run import dry_run
from .meta_results import META
from .runtime import Runtime
from .spandrel import spandrel

log = logging.getLogger(__name__)

TILES = (512, 256, 128)  # pixels a side, tried in this order
OVERLAP = 32
BYTES_A_PIXEL = 384 * 4 * 3  # and factor of enlargement, for networks that cannot be observed (ComfyUI's estimate)
PRODUCTS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
OnTile = Callable[[int, int], None] | None


def _ask(module: nn.Module, inputs: object) -> None:
    """Raises Interrupted before one of PRODUCTS if the run is to end."""
    check_cancelled()


class Network:
    """One loaded file."""

    def __init__(self, path: Path) -> None:
        """Raises InputError if spandrel is missing, FileFormatError for a file that it does not recognise."""
        library = spandrel()
        try:
            self.found = library.ModelLoader(device="cpu").load_from_file(str(path))
        except library.UnsupportedModelError as error:
            raise FileFormatError(
                f"{path.name} is not an upscale model that spandrel {library.__version__} recognises. "
                "Choose another file, such as 4x-UltraSharp, RealESRGAN_x4plus or 4x_NMKD-Siax_200k."
            ) from error
        except Exception as error:  # any error of the unpicklers and readers of other formats
            raise FileFormatError(
                f"{path.name} cannot be read as an upscale model: {error}. Fetch it again."
            ) from error
        if not isinstance(self.found, library.ImageModelDescriptor) or self.found.input_channels != 3:
            raise FileFormatError(f"{path.name} is a {self.found.purpose} model for other inputs than one RGB image.")
        self.found.eval()
        for part in self.module.modules():
            if isinstance(part, PRODUCTS):
                part.register_forward_pre_hook(_ask)
        self.name, self.scale = path.name, int(self.found.scale)
        self._made: dict[int, int] = {}  # bytes of a tile besides the weights, by its side

    @property
    def module(self) -> nn.Module:
        module: nn.Module = self.found.model
        return module

    @property
    def nbytes(self) -> int:
        """Bytes of its weights."""
        return sum(part.nbytes for part in (*self.module.parameters(), *self.module.buffers()))

    def tile_bytes(self, tile: int) -> int:
        """Bytes of one tile besides the weights, found on the meta device, or estimated."""
        if tile not in self._made:
            sample = torch.empty(1, 3, tile, tile, device=META)
            try:
                self._made[tile] = dry_run(self.module, lambda copy: copy(sample), repeat=False).peak
            except Exception:  # some networks depend on values, which the meta device does not have
                self._made[tile] = tile * tile * BYTES_A_PIXEL * max(1, self.scale)
        return self._made[tile]


@dataclass(frozen=True)
class Upscaler:
    """The value of an UPSCALE_MODEL link."""

    runtime: Runtime
    network: Network

    @torch.no_grad()
    def enlarge(self, image: Tensor, on_tile: OnTile = None) -> Tensor:
        """Images [B, H, W, C >= 3] in 0..1 -> [B, scale * H, scale * W, 3], float32 on the CPU.

        Raises BudgetTooSmall if there is not enough memory even for the smallest tile, and Interrupted.
        """
        planes = image[..., :3].movedim(-1, 1).float()
        for tile in self._sizes(planes):
            try:
                return self._enlarged(planes, tile, on_tile)
            except (torch.OutOfMemoryError, BudgetTooSmall):
                if tile == TILES[-1]:
                    raise
                log.warning("Tiles of %d pixels did not fit on the device; smaller ones are tried.", tile)
        raise AssertionError("there is a smallest tile")

    def _enlarged(self, planes: Tensor, tile: int, on_tile: OnTile) -> Tensor:
        runtime, network = self.runtime, self.network
        manager = runtime.manager(runtime.device, network.nbytes)
        if manager is None:
            return self._through(planes, tile, on_tile)
        with manager.reserved(f"The upscale model {network.name}", self._needed(planes, tile)):
            return self._through(planes, tile, on_tile)

    def _through(self, planes: Tensor, tile: int, on_tile: OnTile) -> Tensor:
        """Process the planes with the model on the device; before and after, the model is in RAM."""
        device, found, done = self.runtime.device, self.network.found, 0
        total = planes.shape[0] * tiles(planes, (tile, tile), OVERLAP)

        def one(part: Tensor) -> Tensor:
            nonlocal done
            made: Tensor = found(part.to(device)).float().cpu()
            done += 1
            if on_tile is not None:
                on_tile(done, total)
            return made

        try:
            found.to(device)
            made = tiled(planes, one, (tile, tile), OVERLAP, self.network.scale)
        finally:
            found.to("cpu")
        return made.movedim(1, -1).clamp(0, 1)

    def _sizes(self, planes: Tensor) -> Iterator[int]:
        """The tile sizes that fit in the budget, the largest first, and the smallest in any case."""
        manager = self.runtime.manager(self.runtime.device, self.network.nbytes)
        if manager is None:
            yield from TILES
            return
        manager.request_external(self._needed(planes, TILES[0]))
        room = manager.available()
        yield from (tile for tile in TILES if tile == TILES[-1] or self._needed(planes, tile) <= room)

    def _needed(self, planes: Tensor, tile: int) -> int:
        """Bytes on the device: the weights, the tensors of a tile, and on a CPU the images too."""
        device = self.runtime.device.type
        side = min(tile, max(planes.shape[-2:]))
        made = int(self.network.tile_bytes(tile if side == tile else -(-side // 64) * 64) * KERNELS.get(device, 1.0))
        if device != "cpu":
            return self.network.nbytes + made + 64 * MiB
        return made + 2 * planes.nbytes * self.network.scale**2 + 64 * MiB


def load_upscaler(runtime: Runtime, path: str | Path) -> Upscaler:
    """The upscale model of a file. Raises MissingFileError, InputError, FileFormatError, BudgetTooSmall."""
    path = Path(path)
    status = path.stat()
    runtime.make_room_in_ram(f"The upscale model {path.name}", 2 * status.st_size)
    identity = "upscale model", path, status.st_size, status.st_mtime_ns
    return Upscaler(runtime, runtime.weights.get(identity, lambda: Network(path)))
