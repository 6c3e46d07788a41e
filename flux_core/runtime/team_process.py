"""The process of another device of a team, as the first device's process sees it: its messages, and how it ended."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from ..errors import InputError, SluiceError
from ..workers.protocol import Channel, Message

LAST_WORDS = 1.0  # seconds for which a failing process has time to report its error
_ENTRY = Path(__file__).resolve().parents[1] / "entry" / "team_member.py"


class NoAnswer(SluiceError):
    """A device did not answer in time, although its process may still run."""


class MemberProcess:
    """The process of one other device. It is started at once."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, str(_ENTRY), json.dumps(options)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._channel = Channel(self.process.stdout, self.process.stdin)  # type: ignore[arg-type]  # both are binary
        self._heard: queue.SimpleQueue[tuple[Message, bytes] | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError, ValueError):
            while True:
                self._heard.put(self._channel.receive())
        self._heard.put(None)

    def say(self, message: Message, payload: bytes = b"") -> None:
        """Raises SluiceError if the process has ended."""
        try:
            self._channel.send(message, payload)
        except (OSError, ValueError):
            raise SluiceError(self.account) from None

    def answer(self, seconds: float) -> Message:
        """Its next message. Raises SluiceError for an error of the process, for its end, or if it does not answer."""
        return self.delivery(seconds)[0]

    def delivery(self, seconds: float) -> tuple[Message, bytes]:
        """Its next message with the bytes that follow it. Raises like `answer`."""
        try:
            heard = self._heard.get(timeout=seconds)
        except queue.Empty:
            raise NoAnswer(f"The device {self.name} did not answer for {seconds:.0f} seconds.") from None
        if heard is None:
            self._heard.put(None)  # for whoever asks again
            raise SluiceError(self.account)
        message, payload = heard
        if "error" in message:
            kind = InputError if message["type"] == InputError.__name__ else SluiceError
            raise kind(f"The device {self.name}: {message['error']}")
        return message, payload

    def complaint(self, seconds: float) -> str | None:
        """Its error, or a sentence about its end; None if it still runs without an error."""
        try:
            self.answer(seconds)
        except NoAnswer as error:
            return None if self.process.poll() is None else str(error)
        except SluiceError as error:
            return str(error)
        return None

    @property
    def account(self) -> str:
        """A sentence about the end of the process."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(LAST_WORDS)
        code = self.process.poll()
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        return f"The process of the device {self.name} (pid {self.process.pid}) {how} in the middle of an image."

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
