"""Keeps the evaluations of the network on disk, so that a run that was paused or killed continues with the same bits.

A solver is a function of the results of its evaluations. Running it again from the beginning with the recorded
evaluations restores its history, noise and step cache, and takes no time. Each computed evaluation is appended to a
file; a run that finds such a file uses its records as far as they go:

    b"SLUICE-1", digest of the run; then for each evaluation
    {"inputs": digest, "dtype", "shape", "nbytes"} as a line of JSON, the bytes, their CRC-32 (4 bytes)

Reading stops at a record that is cut off (the process was killed while writing) or has other inputs. One evaluation of
a 1024x1024 image takes 131,072 bytes.

Independent of: solvers, jobs, nodes.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..models.denoiser_inputs import DenoiserInputs
from ..sampling.guider import Network, Run, velocities

MAGIC = b"SLUICE-1"
_LONGEST_HEAD = 4096


class EvaluationLog:
    """The recorded evaluations of one job. `place` names the part of the job that is running (a node)."""

    def __init__(self, folder: Path, place: Callable[[], str]) -> None:
        self._folder, self._place = folder, place
        self._runs: dict[str, int] = {}  # place -> runs begun there
        self.replayed = self.computed = 0  # evaluations so far

    @contextmanager
    def recorded(self, network: Network, run: Run, model: Hashable) -> Iterator[Network]:
        """The network, with evaluations read from the file and appended to it. model: what else they depend on.

        If the disk is full or cannot be written, recording stops and the run continues.
        """
        place = self._place()
        number = self._runs[place] = self._runs.get(place, -1) + 1
        path = self._folder / f"{hashlib.sha256(place.encode()).hexdigest()[:16]}-{number}.evaluations"
        identity = _identity(run, model)
        known = list(_read(path, identity))
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
        file = _opened(path, identity, sum(size for _, _, size in known))
        try:
            yield _Recorded(self, network, [(inputs, result) for inputs, result, _ in known], file)
        finally:
            if file is not None:
                with suppress(OSError):
                    file.close()


class _Recorded:
    """A network whose first evaluations are recorded."""

    def __init__(
        self, log: EvaluationLog, network: Network, known: list[tuple[str, Tensor]], file: BinaryIO | None
    ) -> None:
        self._log, self._network, self._known, self._file = log, network, known, file
        self._at = 0

    def __call__(self, inputs: DenoiserInputs) -> Tensor:
        digest = _digest(inputs)
        if self._at < len(self._known):
            expected, result = self._known[self._at]
            if expected == digest:
                self._at += 1
                self._log.replayed += 1
                return result.to(inputs.x.device)
            self._forget_rest()
        result = self._network(inputs)
        self._log.computed += 1
        self._keep(digest, result)
        return result

    def together(self, inputs: Sequence[DenoiserInputs]) -> list[Tensor]:
        """The results of independent evaluations; those that are not recorded are computed at the same time."""
        if self._at < len(self._known) or not hasattr(self._network, "together"):
            return [self(one) for one in inputs]
        results = velocities(self._network, inputs)
        self._log.computed += len(results)
        for one, result in zip(inputs, results, strict=True):
            self._keep(_digest(one), result)
        return results

    def _forget_rest(self) -> None:
        """The run differs from the file from here on: drop the rest of the file."""
        if self._file is not None:
            kept = sum(_size(digest, result) for digest, result in self._known[: self._at])
            with suppress(OSError):
                self._file.truncate(len(MAGIC) + 64 + kept)
                self._file.seek(0, 2)
        self._known = self._known[: self._at]

    def _keep(self, digest: str, result: Tensor) -> None:
        if self._file is None:
            return
        try:
            self._file.write(_record(digest, result))
            self._file.flush()
        except OSError:  # the disk is full: the run continues without recording
            self._file = None


def _identity(run: Run, model: Hashable) -> str:
    """64 hexadecimal digits of everything that the evaluations of a run depend on, except the latent."""
    digest = hashlib.sha256(repr((model, run.shape, run.timesteps, torch.__version__)).encode())
    for part in _parts(run.conditions):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: object) -> Iterator[bytes]:
    """Everything in a condition: numbers, texts, tensors, and weights by their identity."""
    if isinstance(value, Tensor):
        yield repr((value.dtype, tuple(value.shape))).encode()
        yield _bytes(value)
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _parts(one)
    elif hasattr(value, "identity"):
        yield repr(value.identity).encode()
    elif is_dataclass(value):
        for field in fields(value):
            yield field.name.encode()
            yield from _parts(getattr(value, field.name))
    elif isinstance(value, (int, float, str, type(None))):
        yield repr(value).encode()


def _digest(inputs: DenoiserInputs) -> str:
    digest = hashlib.sha256(_bytes(inputs.x))
    digest.update(_bytes(inputs.timesteps))
    digest.update(repr((tuple(inputs.context.shape), tuple(inputs.pooled.shape))).encode())
    digest.update(_bytes(inputs.pooled))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    plain = tensor.detach().cpu().contiguous()
    return plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def _record(digest: str, result: Tensor) -> bytes:
    data = _bytes(result)
    return _head(digest, result) + data + zlib.crc32(data).to_bytes(4, "little")


def _size(digest: str, result: Tensor) -> int:
    return len(_head(digest, result)) + result.numel() * result.element_size() + 4


def _head(digest: str, result: Tensor) -> bytes:
    dtype = str(result.dtype).removeprefix("torch.")
    record = {"inputs": digest, "dtype": dtype, "shape": list(result.shape)}
    return json.dumps(record).encode() + b"\n"


def _opened(path: Path, identity: str, used: int) -> BinaryIO | None:
    """The file to append to, truncated after the part that is used; None if it cannot be written."""
    start = MAGIC + identity.encode()
    try:
        file: BinaryIO = path.open("r+b" if used else "w+b")
        if used:
            file.truncate(len(start) + used)
            file.seek(0, 2)
        else:
            file.write(start)
            file.flush()
        return file
    except OSError:
        return None


def _read(path: Path, identity: str) -> Iterator[tuple[str, Tensor, int]]:
    """(digest of the inputs, result, bytes of the record) of every whole record of a file of this run."""
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        if file.read(len(MAGIC) + 64) != MAGIC + identity.encode():
            return
        while (found := _next(file)) is not None:
            yield found


def _next(file: BinaryIO) -> tuple[str, Tensor, int] | None:
    line = file.readline(_LONGEST_HEAD)
    try:
        head: dict[str, Any] = json.loads(line)
        dtype, shape = getattr(torch, head["dtype"]), tuple(map(int, head["shape"]))
        nbytes = torch.Size(shape).numel() * dtype.itemsize
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    data, checksum = file.read(nbytes), file.read(4)
    if len(data) != nbytes or checksum != zlib.crc32(data).to_bytes(4, "little"):
        return None
    result = torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)
    return str(head["inputs"]), result, len(line) + nbytes + 4
