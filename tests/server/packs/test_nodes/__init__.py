"""A plain V1 pack for the tests: nodes that need no torch and do one odd thing each."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from typing import Any

import psutil
from sluice.nodes.binding import HostedNode


class Source:
    """A number goes in, and something comes out."""

    CATEGORY, FUNCTION = "test", "give"
    RETURN_TYPES: tuple[str, ...] = ("INT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("INT", {"default": 0, "min": -100, "max": 100})}}


class Number(Source):
    """A number. Output node variants below show what they get."""

    def give(self, value: Any) -> tuple[Any]:
        return (value,)


class Half(Number):
    RETURN_TYPES = ("FLOAT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("FLOAT", {"default": 1.0})}}

    def give(self, value: Any) -> tuple[Any]:
        return (value / 2,)


class Show:
    """Shows any value."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "test", "show", (), True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("*", {})}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types: Any) -> Any:
        return True

    def show(self, value: Any) -> dict[str, Any]:
        return {"ui": {"value": [value]}}


class Chosen:
    """One of a list."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "give", ("STRING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": (["red", "green"],)}}

    def give(self, value: Any) -> tuple[Any]:
        return (value,)


class OnlyEven(Number):
    """A number with a will of its own."""

    @classmethod
    def VALIDATE_INPUTS(cls, value: Any) -> Any:
        return True if value % 2 == 0 else f"{value} is odd"


class Add:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "add", ("INT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"a": ("INT", {"forceInput": True}), "b": ("INT", {"forceInput": True})}}

    def add(self, a: Any, b: Any) -> tuple[Any]:
        return (a + b,)


class Either:
    """Returns `first` for a positive choice, else `second`; only the needed one is computed."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "choose", ("INT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        lazy = ("INT", {"lazy": True, "forceInput": True})
        return {"required": {"choice": ("INT", {}), "first": lazy, "second": lazy}}

    def check_lazy_status(self, choice: Any, first: Any = None, second: Any = None) -> Any:
        wanted = "first" if choice > 0 else "second"
        return [wanted] if {"first": first, "second": second}[wanted] is None else []

    def choose(self, choice: Any, first: Any = None, second: Any = None) -> tuple[Any]:
        return (first if choice > 0 else second,)


class Clock(Number):
    """Is different each time when `value` is positive."""

    @classmethod
    def IS_CHANGED(cls, value: Any) -> Any:
        return time.monotonic() if value > 0 else "same"


class Upset(Number):
    """Cannot even say whether it has changed."""

    @classmethod
    def IS_CHANGED(cls, value: Any) -> None:
        raise RuntimeError("do not ask")


class Broken(Source):
    def give(self, value: Any) -> None:
        raise ValueError(f"{value} is not to my taste")


class Many:
    """The numbers below `count`, as a list: what follows runs once for each."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_IS_LIST = "test", "give", ("INT",), (True,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"count": ("INT", {"default": 3})}}

    def give(self, count: int) -> tuple[Any]:
        return (list(range(count)),)


class Total:
    """The sum of a list, taken whole."""

    CATEGORY, FUNCTION, RETURN_TYPES, INPUT_IS_LIST = "test", "add", ("INT",), True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"values": ("INT", {"forceInput": True})}}

    def add(self, values: Any) -> tuple[Any]:
        return (sum(values),)


class Anything:
    """Takes inputs of any name, as keywords."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "add", ("INT",)

    class Welcome(dict[str, Any]):
        def __contains__(self, name: object) -> bool:
            return True

        def __getitem__(self, name: str) -> tuple[Any, Any]:
            return ("INT", {})

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}, "optional": cls.Welcome()}

    def add(self, **numbers: Any) -> tuple[Any]:
        return (sum(numbers.values()),)


class Twice:
    """Becomes a graph: an addition of its input to itself."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "grow", ("INT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("INT", {"rawLink": True, "forceInput": True})}, "hidden": {"id": "UNIQUE_ID"}}

    def grow(self, value: Any, id: Any) -> dict[str, Any]:
        graph = {f"{id}.sum": {"class_type": "Add", "inputs": {"a": value, "b": value}}}
        return {"result": ([f"{id}.sum", 0],), "expand": graph}


class Later(Source):
    """Answers asynchronously."""

    async def give(self, value: Any) -> tuple[Any]:
        await asyncio.sleep(0.01)
        return (value,)


class Steps(HostedNode, Source):
    """Works in steps, with previews, and can be stopped between them."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("INT", {}), "steps": ("INT", {}), "seconds": ("FLOAT", {})}}

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> Any:
        return time.monotonic()

    def give(self, value: Any, steps: int, seconds: Any) -> tuple[Any]:
        from PIL import Image

        for step in range(steps):
            time.sleep(seconds)
            self.host.step(step + 1, steps, lambda: Image.new("RGB", (64, 64), "red"))
        return (value,)


class Paint(HostedNode, Source):
    """Saves a picture, as SaveImage does."""

    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"value": ("INT", {}), "text": ("STRING", {}), "steps": ("INT", {})},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def give(self, value: Any, text: str, steps: int, prompt: Any = None, extra_pnginfo: Any = None) -> dict[str, Any]:
        from PIL import Image
        from sluice.flux_core.io.png import encode
        from sluice.flux_core.io.saving import place

        target = place("painted/picture", self.host.output)
        name = target.save(encode(Image.new("RGB", (48, 32), "blue"), prompt, extra_pnginfo))
        return {"ui": {"images": [{"filename": name, "subfolder": target.subfolder, "type": "output"}]}}


class Loaded(Steps):
    """Steps that need a model file in memory."""

    FILES = {"name": "vae"}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        needed = super().INPUT_TYPES()["required"]
        return {"required": {"name": ("STRING", {}), **needed}}

    def give(self, value: Any, steps: int, seconds: Any, name: str = "") -> tuple[Any]:
        return super().give(value, steps, seconds)


class Die(Source):
    """Takes the process with it."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("INT", {}), "how": (["kill", "exit", "crash", "memory"],)}}

    def give(self, value: Any, how: str) -> None:
        if how == "kill":
            psutil.Process().kill()
        if how == "exit":
            print("I have had enough.", flush=True)
            os._exit(7)
        if how == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        raise MemoryError("out of memory")


class Stuck(Source):
    """A step that never ends and hears nothing."""

    def give(self, value: Any) -> None:
        while True:
            time.sleep(0.1)


class Family(Show):
    """Starts a process that starts another, and shows the ids of both."""

    def show(self, value: Any) -> dict[str, Any]:
        child = (
            "import subprocess, sys\n"
            "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
            "print(p.pid, flush=True); p.wait()\n"
        )
        process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return {"ui": {"value": [process.pid, int(process.stdout.readline())]}}


class Odd(Show):
    """Shows what JSON cannot hold."""

    def show(self, value: Any) -> dict[str, Any]:
        return {"ui": {"value": [float("nan"), float("inf"), {1, 2}, b"bytes", "\ud800"]}}


class KSampler(Number):
    """An id that is taken."""


WEB_DIRECTORY = "./web"
_CLASSES = (
    Number, Half, Show, Chosen, OnlyEven, Add, Either, Clock, Upset, Broken, Many, Total, Anything, Twice, Later, Steps,
    Loaded, Paint, Die, Stuck, Family, Odd, KSampler,
)  # fmt: skip
NODE_CLASS_MAPPINGS = {node_class.__name__: node_class for node_class in _CLASSES}
NODE_DISPLAY_NAME_MAPPINGS = {"Number": "A Number"}
