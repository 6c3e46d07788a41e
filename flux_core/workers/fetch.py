"""Fetches files that a job needs and this machine lacks: named by content, resumed after a break, checked.

A file that exists here with the right name and content is used where it is. Others are fetched into the folder for
files of the server, which is searched first.

Independent of: jobs, workers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from ..errors import InputError, SluiceError
from ..io.digests import Digests, digest
from ..io.folders import Folders, confined
from ..io.paths import is_file
from ..io.saving import replace

ATTEMPTS = 5  # seconds without receiving a byte
_TOLD_SECONDS = 0.5  # seconds between two reports of a file's progress
_BLOCK = 1 << 20

Told = Callable[[str], None]


@dataclass(frozen=True)
class Needed:
    """A file of a job: its folder ("input", "models/vae", ...), its name there, bytes, SHA-256."""

    folder: str
    name: str
    size: int
    sha256: str

    @classmethod
    def parse(cls, message: Any) -> Needed:
        """From a frame. Raises SluiceError for anything that does not describe a file."""
        try:
            needed = cls(str(message["folder"]), str(message["name"]), int(message["size"]), str(message["sha256"]))
        except (KeyError, TypeError, ValueError):
            raise SluiceError("The server described a file in a way that this worker cannot read.") from None
        if len(needed.sha256) != 64 or not needed.sha256.isalnum() or needed.size < 0:
            raise SluiceError(f"The server named the file {needed.name[:100]!r} without a digest.")
        return needed


class Fetcher:
    """Fetches files from one server into one folder. Several jobs may use it at once."""

    def __init__(self, session: aiohttp.ClientSession, url: str, place: Path, folders: Folders) -> None:
        """url: of the server, without a slash at its end. place: a folder with the layout of a base directory. folders:
        searched.
        """
        self._session, self._url, self._place, self._folders = session, url, place, folders
        self._digests = Digests()
        self._locks: dict[str, asyncio.Lock] = {}

    async def bring(self, needed: Needed, tell: Told) -> None:
        """Make the file available here. Raises SluiceError if it cannot be fetched."""
        async with self._locks.setdefault(needed.sha256, asyncio.Lock()):
            if not await asyncio.to_thread(self._is_here, needed):
                await self._fetch(needed, self._target(needed), tell)

    def _is_here(self, needed: Needed) -> bool:
        kind, _, category = needed.folder.partition("/")
        path = self._folders.find(category, needed.name) if kind == "models" else self._target(needed)
        return (
            path is not None
            and is_file(path)
            and path.stat().st_size == needed.size
            and self._digests.of(path) == needed.sha256
        )

    def _target(self, needed: Needed) -> Path:
        kind, _, category = needed.folder.partition("/")
        if kind not in ("input", "output", "temp", "models") or (kind == "models") != bool(category):
            raise SluiceError(
                f"The server named a file for the folder {needed.folder[:50]!r}, which a worker does not have."
            )
        try:
            return confined(confined(self._place, needed.folder), needed.name)
        except InputError as error:
            raise SluiceError(str(error)) from error

    async def _fetch(self, needed: Needed, target: Path, tell: Told) -> None:
        part = self._place / "parts" / f"{needed.sha256}.part"
        for folder in (part.parent, target.parent):
            folder.mkdir(parents=True, exist_ok=True)
        failed = 0
        while (there := part.stat().st_size if part.exists() else 0) < needed.size or not part.exists():
            reason = await self._continue(needed, part, there, tell)
            grown = part.exists() and part.stat().st_size > there
            failed = 0 if grown else failed + 1
            if reason is not None and failed >= ATTEMPTS:
                raise SluiceError(f"{needed.name} could not be fetched from {self._url}: {reason}.")
            if reason is not None:
                await asyncio.sleep(0.2 * 2**failed)
        if part.stat().st_size != needed.size or await asyncio.to_thread(digest, part) != needed.sha256:
            part.unlink()
            raise SluiceError(f"{needed.name} arrived damaged from {self._url}. It is fetched again with the next job.")
        await asyncio.to_thread(replace, part, target)

    async def _continue(self, needed: Needed, part: Path, there: int, tell: Told) -> str | None:
        """Fetch the missing part of a file. Returns why it is still incomplete; None if it is complete."""
        headers = {"Range": f"bytes={there}-"} if there else {}
        reported = 0.0
        try:
            async with self._session.get(f"{self._url}/sluice/file/{needed.sha256}", headers=headers) as answer:
                if answer.status not in (200, 206):
                    return f"the server answered {answer.status}"
                if there and answer.status == 200:
                    part.unlink()  # a server without ranges sends the whole file
                with part.open("ab") as file:
                    async for block in answer.content.iter_chunked(_BLOCK):
                        file.write(block)
                        if time.monotonic() - reported > _TOLD_SECONDS:
                            reported = time.monotonic()
                            tell(f"fetching {needed.name}: {file.tell() >> 20} of {needed.size >> 20} MiB")
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            return str(error) or type(error).__name__
        except OSError as error:
            raise SluiceError(f"{part} cannot be written: {error.strerror}.") from error
        return None
