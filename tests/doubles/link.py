"""A TCP connection that can be cut: what dials `port` reaches another port of this machine, until `cut`."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any


class Link:
    """The link between a worker and its server, in a thread of its own."""

    def __init__(self, target: int) -> None:
        """target: the port that is reached through this one."""
        self._target, self._open = target, True
        self._ends: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._server = self._wait(asyncio.start_server(self._pass_on, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def _wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open:
            writer.transport.abort()
            return
        with contextlib.suppress(OSError):
            back, there = await asyncio.open_connection("127.0.0.1", self._target)
            self._ends |= {writer, there}
            await asyncio.gather(self._pump(reader, there), self._pump(back, writer))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                sink.write(data)
                await sink.drain()
        sink.close()
        self._ends.discard(sink)

    def cut(self) -> None:
        """All connections break, and none is made."""
        self._wait(self._cut())

    async def _cut(self) -> None:
        self._open = False
        for end in self._ends:
            end.transport.abort()
        self._ends.clear()

    def mend(self) -> None:
        """Connections are made again."""
        self._open = True

    def close(self) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
