"""Several devices for one image: this process computes on the first one, and starts a process for each other device.

Only this process has solver, noise, guidance, previews and cancelling. The others receive the model to open and the
inputs of each evaluation; all compute their shares and return the same velocity. If a process has ended or does not
answer, the job ends with an error that names its device; the next job starts a new team.

Messages to the others (team_member.py), and their answers:

    {"op": "open"} + model and run      <- {"opened": true} or {"error", "type"}
    {"op": "call", "answer"} + inputs   <- {"velocity": true} + it, if "answer"
    {"op": "close"}                     <- {"closed": [{"line", "peak_bytes", "limit_bytes"}, ...]}
    {"op": "budget", "vram", "ram"}     from the next evaluation on
    {"op": "tiles", "rank", "size"} + what to convert   <- {"tile": number} + it, ... or {"short": why} (of memory)
    {"op": "encode"} + the encoder and what to encode
    {"op": "stop"} the tiles            <- {"stopped": true}
"""

from __future__ import annotations

import contextlib
import io
import logging
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..cancel import cancellable, check_cancelled
from ..errors import SluiceError
from ..memory.report import Emit, ignore
from ..models.denoiser_inputs import DenoiserInputs
from ..models.tensor_trees import map_tensors
from ..models.tiling import Elsewhere
from ..parallel.share import DeviceShare, joined
from ..parallel.split import Split, team_words
from ..sampling.guider import Network
from .team_process import LAST_WORDS, MemberProcess, NoAnswer

log = logging.getLogger(__name__)

SECONDS = 120.0  # until a device that does not answer counts as lost
START_SECONDS = 180.0


@dataclass(frozen=True)
class TeamSettings:
    """names: of all devices, the first one this process's. members: the options of each other one (team_member.py).

    shares: relative speeds in the sequence group, or how many it has. seconds: until a silent device counts as lost.
    """

    names: tuple[str, ...]
    members: tuple[dict[str, Any], ...]
    split: Split
    shares: int | Sequence[float]
    seconds: float = SECONDS


Result = TypeVar("Result")


class Team:
    """The devices of one runtime. `share` is this process's own, once the team has been started."""

    def __init__(self, settings: TeamSettings, device: torch.device, emit: Emit = ignore) -> None:
        """device: this process's. emit: receives {"type": "device.job"} for each model that ran on another device, with
        the line of its report and its peak and limit in bytes. Starts nothing.
        """
        self.settings, self._device, self._emit = settings, device, emit
        self.share: DeviceShare | None = None
        self._members: list[MemberProcess] = []
        self._budget: dict[str, str] = {}  # of each other device, once it was changed
        self._waiting = False  # whether the others compute an evaluation in which this device takes part
        self._running = False  # whether a model is open

    @classmethod
    def parse(cls, options: dict[str, Any], device: torch.device, emit: Emit = ignore) -> Team:
        """Of data: {"names", "members", "split", "shares"}, as the command line makes it."""
        split = Split(**options["split"])
        settings = TeamSettings(tuple(options["names"]), tuple(options["members"]), split, options["shares"])
        return cls(settings, device, emit)

    @property
    def words(self) -> str:
        """Which devices, and how they share an image."""
        return team_words(self.settings.names, self.settings.split)

    def start(self) -> DeviceShare:
        """Start missing processes. Raises SluiceError if a device does not start or cannot exchange data."""
        if self.share is None or any(member.process.poll() is not None for member in self._members):
            self.close()
            try:
                self.share = self._started()
            except BaseException:
                self.close()
                raise
        return self.share

    def _started(self) -> DeviceShare:
        given = self.settings
        torchs: Any = torch.distributed
        patience = timedelta(seconds=START_SECONDS)
        store = torchs.TCPStore("127.0.0.1", 0, given.split.size, True, patience, wait_for_workers=False)
        for rank, (name, options) in enumerate(zip(given.names[1:], given.members, strict=True), start=1):
            place = {"rank": rank, "port": store.port, "split": given.split.__dict__, "shares": given.shares}
            self._members.append(MemberProcess(name, {**options, **self._budget, **place, "seconds": given.seconds}))
        for member in self._members:
            member.answer(START_SECONDS)  # its device is there
        for member in self._members:
            member.say({"op": "join"})
        share, wrong = joined(store, given.split, 0, given.shares, self._device, given.seconds)
        found = [(0, other) for other in wrong]
        for rank, member in enumerate(self._members, start=1):
            found += [(rank, other) for other in member.answer(given.seconds)["wrong"]]
        if found:
            pairs = ", ".join(f"{given.names[a]} from {given.names[b]}" for a, b in found)
            raise SluiceError(
                f"Devices do not receive what others send ({pairs}). One image cannot be computed on them together; "
                "give each a worker of its own: separate them by commas in --devices."
            )
        return share

    @contextmanager
    def opened(self, model: object, run: object, own: AbstractContextManager[Network]) -> Iterator[Network]:
        """The network of all devices for one run. own: this device's part. model, run: what the others open, picklable.

        Raises SluiceError, with the device's name, for errors of other devices.
        """
        payload = _packed((model, run))
        self._waiting = self._running = True
        try:
            for member in self._members:
                member.say({"op": "open"}, payload)
            with own as network:
                for member in self._members:
                    member.answer(START_SECONDS)
                self._waiting = False
                yield _TeamNetwork(self, network)
        finally:
            self._running = False
            if self._waiting:
                self.close()  # a process in the middle of a step reads no messages
            self._close_run()

    def _close_run(self) -> None:
        """End the run on the other devices, and emit what each of them reports of its memory."""
        try:
            for member in self._members:
                member.say({"op": "close"})
            for member in self._members:
                for report in member.answer(self.settings.seconds)["closed"]:
                    log.info("%s: %s", member.name, report["line"])
                    self._emit({"type": "device.job", "device": member.name, **report})
        except SluiceError:  # the run has its result, or an error of its own; the next run starts the team anew
            self.close()

    @contextmanager
    def converting(self, tiles: object) -> Iterator[Elsewhere]:
        """Tiles of the autoencoder from the other devices, by number: device r computes r, r + size, r + 2 size, ...

        tiles: what all convert, picklable. A device that has too little memory leaves its tiles to this one. While
        a model is open, all are left to this one. Raises SluiceError, with the device's name, for other errors.
        """
        if self._running:
            yield lambda number: None
            return
        self.start()
        payload, size, short = _packed(tiles), len(self._members) + 1, set[int]()

        def elsewhere(number: int) -> Tensor | None:
            rank = number % size
            if rank == 0 or rank in short:
                return None
            member = self._members[rank - 1]
            message, tile = member.delivery(self.settings.seconds)
            if "short" in message:
                short.add(rank)
                log.warning("%s leaves its tiles to %s. %s", member.name, self.settings.names[0], message["short"])
                return None
            made: Tensor = pickle.loads(tile)
            return made

        try:
            for rank, member in enumerate(self._members, start=1):
                member.say({"op": "tiles", "rank": rank, "size": size}, payload)
            yield elsewhere
            self._stop_converting()
        except NoAnswer:
            self.close()
            raise
        except BaseException:  # a cancelled job, or an error of a device, which has ended then
            try:
                self._stop_converting()
            except SluiceError:
                self.close()
            raise

    def _stop_converting(self) -> None:
        """Raises SluiceError if a device has ended or does not answer."""
        for member in self._members:
            member.say({"op": "stop"})
        for member in self._members:
            while "stopped" not in member.answer(self.settings.seconds):
                pass

    def encoded(self, encoder_and_args: object, own: Callable[[], Result]) -> Result:
        """The output of a text encoder whose rows are divided. own: computes this device's rows, with the others.

        encoder_and_args: what all compute, picklable. Raises SluiceError, with the device's name, for errors of
        other devices.
        """
        payload = _packed(encoder_and_args)
        try:
            for member in self._members[: self.settings.split.group - 1]:
                member.say({"op": "encode"}, payload)
            return self.computed(own)
        except BaseException:
            self.close()  # a process in the middle of an encoding reads no messages
            raise

    def computed(self, own: Callable[[], Result]) -> Result:
        """This device's part of something that all compute. Raises SluiceError for errors of other devices."""
        try:
            with cancellable(lambda: None):  # devices that wait for each other cannot stop in the middle
                return own()
        except SluiceError:
            raise
        except Exception as error:
            reason = self.reason(error)
            if reason is None:
                raise
            raise reason from error

    def tell_inputs(self, inputs: DenoiserInputs, group: int = 0) -> None:
        """Called when the others of a group begin an evaluation. The first device of another group returns it."""
        payload, size = _packed(inputs), self.settings.split.group
        self._waiting = True
        for rank in range(group * size, (group + 1) * size):
            if rank > 0:
                self._members[rank - 1].say({"op": "call", "answer": group > 0 and rank == group * size}, payload)

    def velocity(self, group: int) -> Tensor:
        """What another group has computed. Raises SluiceError."""
        member = self._members[group * self.settings.split.group - 1]
        made: Tensor = pickle.loads(member.delivery(self.settings.seconds)[1])
        return made.to(self._device)

    def tell_budget(self, words: dict[str, str]) -> None:
        """Each other device has this budget from its next evaluation on. words: {"vram", "ram"}, as written."""
        self._budget = words
        for member in self._members:
            with contextlib.suppress(SluiceError):  # a process that has ended is started again with it
                member.say({"op": "budget", **words})

    def finished(self) -> None:
        """Called when an evaluation has ended here, and so on all devices: none waits for another."""
        self._waiting = False

    def reason(self, error: Exception) -> SluiceError | None:
        """The error of another device that made an evaluation fail; None if there is none."""
        time.sleep(0.05)
        complaints = [complaint for member in self._members if (complaint := member.complaint(LAST_WORDS / 4))]
        if complaints:
            return SluiceError(" ".join(complaints))
        if isinstance(error, RuntimeError) and "imed out" in str(error):
            names = " or ".join(member.name for member in self._members)
            return SluiceError(f"The device {names} did not answer for {self.settings.seconds:.0f} seconds.")
        return None

    def close(self) -> None:
        """End all other processes."""
        for member in self._members:
            member.end()
        self._members, self.share = [], None


class _TeamNetwork:
    """The function that a guider calls: it sends the inputs to the others, then this device computes its share."""

    def __init__(self, team: Team, network: Network) -> None:
        self._team, self._network = team, network

    def __call__(self, inputs: DenoiserInputs) -> Tensor:
        return self._evaluated([inputs])[0]

    def together(self, inputs: Sequence[DenoiserInputs]) -> list[Tensor]:
        """The velocities of independent evaluations: as many at a time as there are groups."""
        groups, found = self._team.settings.split.cfg, list[Tensor]()
        for start in range(0, len(inputs), groups):
            found += self._evaluated(inputs[start : start + groups])
        return found

    def _evaluated(self, inputs: Sequence[DenoiserInputs]) -> list[Tensor]:
        """One evaluation for each of the first groups."""
        check_cancelled()
        for group, one in enumerate(inputs):
            self._team.tell_inputs(one, group)
        own = self._team.computed(lambda: self._network(inputs[0]))
        with cancellable(lambda: None):
            velocities = [own, *(self._team.velocity(group) for group in range(1, len(inputs)))]
        self._team.finished()
        check_cancelled()
        return velocities


def _packed(value: Any) -> bytes:
    """With all tensors on the CPU."""
    buffer = io.BytesIO()
    pickle.dump(_on_cpu(value), buffer, protocol=pickle.HIGHEST_PROTOCOL)
    return buffer.getvalue()


def _on_cpu(value: Any) -> Any:
    return map_tensors(value, lambda tensor: tensor.detach().cpu())
