"""ComfyUI's modules as objects: the parts that we offer, and clear errors for the others.

    comfy.utils.ProgressBar              ours, from flux_core/facade/offered/comfy/utils.py (its __all__)
    comfy.ldm.flux.model.Flux            an `Absent`: it can be imported, named and subclassed; a call raises an error
    hasattr(comfy.utils, "something")    False for what is absent: packs then use their own fallback
    comfy.samplers.sample = mine         recorded as a patch by that pack; it affects other packs, never our engine

Independent of: who may see these modules (isolation.py).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NoReturn

from ..errors import SluiceError
from .module_names import KNOWN, LIBRARIES, PACKAGES, SAME, TOP
from .partly_offered import PartlyOffered, is_probe

_HERE = Path(__file__).resolve().parent / "offered"


class NotOffered(SluiceError, AttributeError):
    """A pack uses a part of ComfyUI that is not offered. The text names it."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} is a part of ComfyUI that Sluice does not offer to node packs: it runs FLUX.1 with an engine of "
            "its own. This node works inside ComfyUI only; leave it out, or use a node of Sluice that does the same."
        )


@dataclass
class Offer:
    """All modules of one process, and packs' changes of them. who: returns the pack of a calling frame."""

    who: Callable[[FrameType | None], str] = lambda frame: ""
    base: Path = Path()  # where ComfyUI's own files would be
    loading: bool = False  # packs are being imported: instances of absent classes may never be used
    patches: dict[str, set[str]] = field(default_factory=dict)  # pack -> dotted names it has set
    _modules: dict[str, ModuleType] = field(default_factory=dict)
    _absent: dict[str, Any] = field(default_factory=dict)

    def module(self, name: str) -> ModuleType | None:
        """The module of this name, created at the first use; None if ComfyUI has none of that name."""
        if name not in KNOWN:
            return None
        if name not in self._modules:
            self._modules[name] = OfferedModule(name, self)
        return self._modules[name]

    def absent(self, name: str) -> Any:
        """The substitute for a name that we do not offer: the module of that name, or an `Absent`."""
        if name in KNOWN:
            return self.module(name)
        if name not in self._absent:
            self._absent[name] = Absent(name.rpartition(".")[2], (), {"_absent_": name, "_offer_": self})
        return self._absent[name]

    def patched(self, name: str, frame: FrameType | None) -> None:
        """Record that a pack has set a name of ComfyUI."""
        self.patches.setdefault(self.who(frame), set()).add(name)


class OfferedModule(ModuleType):
    """One module with ComfyUI's name. Its implementation is imported at the first use."""

    def __init__(self, name: str, offer: Offer) -> None:
        super().__init__(name, f"The part of ComfyUI's {name} that Sluice offers.")
        file = "nodes" if name.startswith("comfy_extras.nodes_") else SAME.get(name, name)  # core nodes share a table
        own: dict[str, Any] = {"_offer": offer, "_file": file, "_source": None}
        if name in PACKAGES:
            own["__path__"] = []
        stem = offer.base.joinpath(*name.split("."))
        place = stem / "__init__.py" if name in PACKAGES else stem.with_suffix(".py")
        self.__dict__.update(own, __file__=str(place), __package__=name.rpartition(".")[0])

    def _offers(self) -> ModuleType | None:
        own = self.__dict__
        if own["_source"] is None and _HERE.joinpath(*own["_file"].split(".")).with_suffix(".py").is_file():
            own["_source"] = importlib.import_module(f".offered.{own['_file']}", __package__)
        source: ModuleType | None = own["_source"]
        return source

    def __getattr__(self, name: str) -> Any:
        source = self._offers()
        if source is not None and name == "__all__":
            return [*source.__all__, *getattr(source, "COMPUTED", ())]
        if name.startswith("__") and (source is None or name not in source.__all__):
            raise AttributeError(f"{self.__name__} has no {name}")
        inner = self._offer.module(f"{self.__name__}.{name}")
        if inner is not None:
            return inner
        if source is not None and (name in source.__all__ or _answers(source, name)):
            return getattr(source, name)
        if name in TOP:  # execution.nodes: a module that this one imports
            return self._offer.module(name)
        if name in LIBRARIES:
            return importlib.import_module(LIBRARIES[name])
        if is_probe(sys._getframe(1)):
            raise NotOffered(f"{self.__name__}.{name}")
        return self._offer.absent(f"{self.__name__}.{name}")

    def __setattr__(self, name: str, value: Any) -> None:
        source = self._offers()
        if name in getattr(source, "SETTABLE", ()):
            setattr(source, name, value)
            return
        if not name.startswith("__"):
            self._offer.patched(f"{self.__name__}.{name}", sys._getframe(1))
        self.__dict__[name] = value

    def __dir__(self) -> list[str]:
        source = self._offers()
        return sorted({*self.__dict__, *(source.__all__ if source is not None else ())})


class Absent(PartlyOffered):
    """The type of absent names: classes, so that packs can derive from them and use them in annotations."""

    _absent_: str
    _offer_: Offer

    def _refuse(cls, /, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotOffered(cls._absent_)

    def __call__(cls, /, *args: Any, **kwargs: Any) -> Any:
        if "_absent_" in cls.__dict__:
            if cls._offer_.loading and not cls.__name__.islower():
                return _Unusable(cls._absent_)
            raise NotOffered(cls._absent_)
        raise NotOffered(f"{cls._absent_}, on which the pack's own {cls.__name__} is built,")

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_") or is_probe(sys._getframe(1)):
            raise AttributeError(f"{cls._absent_}.{name} is not offered by Sluice")
        return cls._offer_.absent(f"{cls._absent_}.{name}")

    def __setattr__(cls, name: str, value: Any) -> None:
        if not name.startswith("_") and "_absent_" in cls.__dict__:
            cls._offer_.patched(f"{cls._absent_}.{name}", sys._getframe(1))
        super().__setattr__(name, value)

    def __iter__(cls) -> Iterator[Any]:
        """A table of names (UNET_MAP_BASIC) is empty while packs are imported: they add it to tables of their own."""
        if cls.__name__.isupper() and cls.__dict__.get("_absent_") and cls._offer_.loading:
            return iter(())
        raise NotOffered(cls._absent_)

    __len__ = __contains__ = __getitem__ = _refuse

    def __bool__(cls) -> bool:
        return True

    def __repr__(cls) -> str:
        return f"<{cls._absent_}, not offered by Sluice>"


class _Unusable:
    """An instance of an absent class, made while a pack was imported. Its use raises an error with its name."""

    def __init__(self, name: str) -> None:
        self.__dict__["_name"] = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or is_probe(sys._getframe(1)):
            raise AttributeError(f"{self._name}.{name} is not offered by Sluice")
        raise NotOffered(f"{self._name}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotOffered(self._name)


def _answers(source: ModuleType, name: str) -> bool:
    """Whether a module computes this name (PEP 562)."""
    compute = source.__dict__.get("__getattr__")
    if compute is None:
        return False
    try:
        compute(name)
    except AttributeError:
        return False
    return True
