"""The parts of `sluice bench gpu`: what each of its processes measures. Every record is sent as soon as it is known.

On a CPU the same code runs, so that it can be tried without a GPU: the budget then limits RAM, the threads sleep in
place of the streams, and a block raises an out-of-memory error. Independent of: the order of parts, targets, files.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..adapters.branches import LowRank
from ..adapters.lora import Lora, LoraUse
from ..errors import BudgetTooSmall
from ..memory import rates
from ..memory.budget import Allowed, format_size
from ..memory.cpu import CpuDevice
from ..memory.cuda import CudaDevice
from ..memory.device import COMPUTE, COPY
from ..memory.plan import Plan, smallest_budget
from ..memory.workload import MiB, letters
from ..runtime import handles
from ..runtime.device import find_device
from ..runtime.runtime import Runtime
from ..runtime.settings import Settings
from .files import path_of
from .limit import physical_limit
from .steps import Setup, condition_of, manager_of, sample

WARM = 2  # steps that are not timed: the first loads the resident weights, and a new plan is made after it
SLEEP = 3_000_000  # cycles of a GPU, at most: about 1.5 ms
SLEEPS = 0.3  # after how many of a stream's events, each
TRIES = 12  # of budgets, each an eighth of the weights larger, until one is large enough
EVERYTHING = 1 << 50
CHANGED = (  # by a LoRA
    "double_blocks.0.img_attn.qkv", "double_blocks.0.txt_mlp.2", "double_blocks.0.img_mod.lin",
    "single_blocks.0.linear1", "single_blocks.1.linear2",
)  # fmt: skip
POLL = 0.02  # seconds between two readings of a card's memory

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Part:
    """One part: its setup, sizes and files, and how the memory of the device is limited."""

    setup: Setup
    files: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    seed: int
    cap: int | None = None  # bytes; None: none
    ballast: bool = False  # whether another process holds the rest of the memory, so that the budget is the free memory
    hidden: int = 3072  # width of the model


def machine(part: Part, tell: Tell) -> None:
    """The machine of the measurements."""
    device = find_device(part.setup.device)
    found: dict[str, Any] = {"device": str(device), "torch": torch.__version__}
    if device.type == "cuda":
        torch.zeros(1, device=device)
        free, total = torch.cuda.mem_get_info(device)
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "card": properties.name, "cuda": torch.version.cuda or torch.version.hip, "card_bytes": total,
            "capability": f"{properties.major}.{properties.minor}",
            "idle_bytes": total - free - torch.cuda.memory_reserved(device),  # with the context of one process
        }  # fmt: skip
    tell(found)


# --- the same bits, whatever happens ---------------------------------------------------------------------------


def correctness(part: Part, tell: Tell) -> None:
    """Streamed, partly resident and resident, from RAM and from disk, with sleeps on both streams; out of memory."""
    runtime = Runtime(Settings(part.setup.device, "bf16"))
    for file in part.files:
        try:
            _compare(part, file, runtime, tell)
        except Exception:
            tell({"file": file, "error": traceback.format_exc()})


def _compare(part: Part, file: str, runtime: Runtime, tell: Tell) -> None:
    """One file, without and with a LoRA."""
    device = runtime.device
    rng, cuda = random.Random(part.seed), device.type == "cuda"

    def told(case: str, loras: tuple[LoraUse, ...], equal: bool, plan: Plan) -> None:
        words = f"{file}{' with a LoRA' if loras else ''}, {case}"
        tell({
            "file": file, "lora": bool(loras), "case": case, "equal": equal,
            "homes": letters(plan.locations),
            "streamed_bytes": plan.streamed_bytes, "line": f"{words}: {'equal' if equal else 'NOT EQUAL'}",
        })  # fmt: skip

    loaded = handles.load_flux(runtime, path_of(part.setup.folder, file))
    for loras in ((), (_lora(part, loaded),)):
        model = replace(loaded, loras=loras)
        runtime.budget = Allowed(managed=False)
        expected = _picture(part, model)
        resident = _fitting(part, model, EVERYTHING, None)[1]
        least = smallest_budget(resident.workload, resident.machine)
        between, whole = least + resident.weight_bytes // 2, int(1.1 * resident.peak_bytes) + 512 * MiB
        cases: list[tuple[str, int, int | None]] = [("streamed", least, None), ("partly resident", between, None)]
        if not loras:
            cases += [("resident", whole, None)]
            if cuda:
                cases += [("streamed from disk", least, 1), ("partly resident, from disk", between, 1)]
        for case, budget, ram in cases:
            with _sleeps(device, rng):
                x, plan = _fitting(part, model, budget, ram)
            told(case, loras, torch.equal(x, expected), plan)
        _allow(runtime, whole, None)
        with _crowded(device, _network(model)) as crowded:
            equal = torch.equal(_picture(part, model), expected) and bool(crowded)
        told(f"out of memory in a step, {'by ballast' if cuda else 'injected'}", loras, equal, _report(model).plan)
        model.weights.unload()
        if cuda:  # removes the limit of an earlier budget
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(1.0, device)


def _fitting(part: Part, model: Any, budget: int, ram: int | None) -> tuple[Tensor, Plan]:
    """The result under this budget, or under a larger one if it is too small, and the plan of that run."""
    more = model.weights.nbytes // 8
    for _ in range(TRIES):
        _allow(model.runtime, budget, ram)
        try:
            return _picture(part, model), _report(model).plan
        except BudgetTooSmall:
            budget += more
        finally:
            model.weights.unload()
    raise BudgetTooSmall(f"even {format_size(budget)} are too small")


def _lora(part: Part, model: Any) -> LoraUse:
    """Random changes of some layers of all kinds, those of the modulation table among them."""
    generator = torch.Generator().manual_seed(part.seed)
    tensors, changes = model.weights.tensors, {}
    for name in CHANGED:
        outputs, inputs = tensors[f"{name}.weight"].shape
        down, up = torch.randn(16, inputs, generator=generator), torch.randn(outputs, 16, generator=generator)
        changes[name] = (LowRank(0.02 * down, 0.02 * up),)
    return LoraUse(Lora("random", changes, {}), 0.8)


@contextmanager
def _sleeps(device: torch.device, rng: random.Random) -> Iterator[None]:
    """Random pauses between the commands of both streams: if a wait is missing, the image is wrong."""
    kind: Any = CudaDevice if device.type == "cuda" else CpuDevice
    record = kind.record

    def slow(slabs: Any, stream: str, event: Any) -> None:
        for chosen in (COPY, COMPUTE):
            if rng.random() >= SLEEPS:
                continue
            if device.type != "cuda":
                time.sleep(rng.random() * 1e-3)
                continue
            with torch.cuda.stream(slabs._stream(chosen)):
                torch.cuda._sleep(rng.randrange(1, SLEEP))
        record(slabs, stream, event)

    kind.record = slow
    try:
        yield
    finally:
        kind.record = record


@contextmanager
def _crowded(device: torch.device, network: Any) -> Iterator[list[bool]]:
    """Take all free memory in the middle of the first step. Yields a list that then has an entry."""
    block, happened, ballast = list(network.module.blocks())[1], list[bool](), list[Tensor]()

    def take_all(_: Any, args: tuple[Any, ...]) -> None:
        if happened or args[0].is_meta:  # a dry run takes no memory
            return
        happened.append(True)
        if device.type != "cuda":
            raise torch.OutOfMemoryError("injected")
        for size in (64 * MiB, 2 * MiB):
            while True:
                try:
                    ballast.append(torch.empty(size, dtype=torch.uint8, device=device))
                except torch.OutOfMemoryError:
                    break

    hook = block.register_forward_pre_hook(take_all)
    try:
        yield happened
    finally:
        hook.remove()
        ballast.clear()


# --- peak and time ----------------------------------------------------------------------------------------------


def steps(part: Part, tell: Tell) -> None:
    """Peak and seconds of a step of every size under the cap, and the rate of the link at the same time."""
    runtime = Runtime(Settings(part.setup.device, "bf16"))
    device = runtime.device
    _allow(runtime, None if part.ballast and device.type == "cuda" else part.cap or EVERYTHING, None)
    model = handles.load_flux(runtime, path_of(part.setup.folder, part.files[0]))
    for width, height in part.sizes:
        setup = replace(part.setup, width=width, height=height)
        with _Watched(device) as watched:
            seconds, x = _timed(model, setup, part.seed)
        report = _report(model)
        plan = report.plan
        record: dict[str, Any] = {
            "file": part.files[0], "width": width, "height": height, "step_seconds": seconds,
            "told_seconds": report.actual, "predicted_seconds": plan.seconds, "bound": plan.bound,
            "peak_bytes": report.peak, "card_peak_bytes": watched.most, "budget_bytes": report.limit,
            "predicted_peak_bytes": plan.peak_bytes, "streamed_bytes": plan.streamed_bytes,
            "resident_bytes": plan.resident_bytes, "disk_bytes": plan.disk_bytes,
            "homes": letters(plan.locations),
            "restarts": report.restarts, "picture": _fingerprint(x), "line": report.line(),
            "rates": physical_limit(_network(model), setup),
        }  # fmt: skip
        if device.type == "cuda":
            with suppress(torch.OutOfMemoryError):  # then what was measured before the run has to do
                record["link_bytes_per_second"] = rates.link_rate.__wrapped__(device)
        tell(record)


def _timed(model: Any, setup: Setup, seed: int) -> tuple[float, Tensor]:
    """Wall-clock seconds of a step when all resident weights are loaded, and the result."""
    marks: dict[int, float] = {}

    def mark(number: int) -> None:
        if number in (WARM, setup.steps):
            _finish(model.device)
            marks[number] = time.perf_counter()

    x, _ = sample(model, setup, condition_of(setup, model.device), seed, mark)
    return (marks[setup.steps] - marks[WARM]) / (setup.steps - WARM), x


class _Watched:
    """The largest memory use of a card by all processes, read at intervals. None for a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.most = device, None if device.type != "cuda" else 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Watched:
        if self.most is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self.most is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(POLL):
            free, total = torch.cuda.mem_get_info(self.device)
            self.most = max(self.most or 0, total - free)


# --- shared -----------------------------------------------------------------------------------------------------


def _allow(runtime: Runtime, nbytes: int | None, ram: int | None) -> None:
    """A budget of so many bytes of the device; None: its free memory."""
    runtime.budget = Allowed(vram=nbytes, ram=ram) if runtime.device.type == "cuda" else Allowed(ram=nbytes)


def _picture(part: Part, model: Any) -> Tensor:
    return sample(model, part.setup, condition_of(part.setup, model.device), part.seed)[0]


def _network(model: Any) -> Any:
    return model.weights.managed(manager_of(model.runtime), model.dtype)


def _report(model: Any) -> Any:
    return _network(model).report


def _fingerprint(x: Tensor) -> str:
    return hashlib.sha256(x.float().cpu().numpy().tobytes()).hexdigest()[:16]


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def hold(device: str, leave: int, ready: Any) -> None:
    """Ballast: allocate a card's memory until only so much is free, send a message, and keep it until one arrives."""
    held: list[Tensor] = []
    if device != "cpu":
        for size in (1024 * MiB, 64 * MiB, 2 * MiB):
            while torch.cuda.mem_get_info(device)[0] - size >= leave:
                held.append(torch.empty(size, dtype=torch.uint8, device=device))
    ready.send(True)
    ready.recv()
