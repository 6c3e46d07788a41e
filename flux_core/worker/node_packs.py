"""Node packs of other people, imported into this process beside our own nodes.

    DIR/pack/__init__.py or DIR/pack.py     with NODE_CLASS_MAPPINGS {id: class}, perhaps NODE_DISPLAY_NAME_MAPPINGS and
                                            WEB_DIRECTORY; or with comfy_entrypoint, whose nodes have schemas
    DIR/pack/prestartup_script.py           run before
    DIR/pack/requirements.txt               compared with what is installed; nothing is installed

Only code of packs can import ComfyUI's modules by their names (flux_core/facade/). A pack that cannot be imported is
reported and left out, as is a node whose declaration fails; the others work. An id that exists already keeps its class,
except the ids that nodes/other_packs/ provides while the pack is missing (all but `ActsOnModel` there). A pack's code
runs with all rights of this process, so only the folders that the user names are imported.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import inspect
import logging
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ...nodes.binding import bound_to
from ..errors import MissingFileError, SluiceError
from ..facade import added_samplers, link_values
from ..facade.engine import Engine, use
from ..facade.isolation import Isolation
from ..facade.module_names import TOP, VERSION
from ..facade.offered_modules import Offer
from ..graph.interface import Interface

if TYPE_CHECKING:
    from ..facade.routes import Answer

log = logging.getLogger(__name__)

_SHOWN = 6  # names in a sentence
_REQUIREMENT = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(\[[^\]]*\])?\s*(?P<condition>[^#]*)")


@dataclass(frozen=True)
class Pack:
    """The result of importing one pack."""

    name: str
    path: str
    nodes: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()  # ids of its nodes that existed before
    left_out: dict[str, str] = field(default_factory=dict)  # ids whose declaration fails -> why
    web: str | None = None  # folder of its JavaScript
    extensions: dict[str, str] = field(default_factory=dict)  # further folders of JavaScript by name
    missing: tuple[str, ...] = ()  # requirements that are not installed
    patches: tuple[str, ...] = ()  # names in ComfyUI's modules that it replaces
    error: str | None = None


class NodePacks:
    """The packs of one process. engine: the program around them; their nodes are added to its tables."""

    def __init__(self, engine: Engine) -> None:
        standing_in = {key for key, one in engine.classes.items() if getattr(one, "STANDS_IN", False)}
        engine.own = frozenset(engine.classes) - standing_in
        engine.executor.prepare = link_values.prepared
        use(engine)
        self.engine = engine
        self.offer = Offer()
        self.isolation = Isolation(self.offer.module, self._main_file)
        self.offer.who = self.isolation.calling_pack
        engine.absent = self.offer.absent
        self.offer.base = engine.folders.user.parent
        self._packs: list[Pack] = []
        self._copied: set[Path] = set()  # folders of JavaScript beside main.py

    def load(self, places: Iterable[Path]) -> None:
        """Import all packs in these folders and add their nodes to the tables."""
        found = [path.absolute() for place in places for path in candidates(place)]
        self.engine.pack_folders = tuple(dict.fromkeys(str(path.parent) for path in found))
        self._make_folders()
        self.isolation.install()
        for path in found:
            self.isolation.add(path, name_of(path))
        for path in found:
            self._prestart(path)
        self.offer.loading = True
        for path in found:
            pack = self._load(path)
            self._packs.append(pack)
            _tell(pack)
        self.offer.loading = False
        added_samplers.extend(self.engine)

    def _make_folders(self) -> None:
        """The folders that ComfyUI always has; packs list them, or refuse to load without them."""
        folders = self.engine.folders
        with contextlib.suppress(OSError):
            for place in (folders.input, folders.directories("checkpoints")[0].parent):
                place.mkdir(parents=True, exist_ok=True)

    def _main_file(self) -> str:
        """The path of ComfyUI's main.py, which does not exist here. Older packs copy their JavaScript to the folder
        web/extensions beside it.
        """
        with contextlib.suppress(OSError):
            self._copies.mkdir(parents=True, exist_ok=True)
        return str(self.offer.base / "main.py")

    @property
    def _copies(self) -> Path:
        return self.offer.base / "web" / "extensions"

    def _copied_since(self) -> dict[str, str]:
        """The folders of JavaScript that packs have copied since the last call."""
        with contextlib.suppress(OSError):
            new = sorted(place for place in self._copies.iterdir() if place.is_dir() and place not in self._copied)
            self._copied.update(new)
            return {place.name: str(place) for place in new}
        return {}

    @property
    def packs(self) -> list[dict[str, Any]]:
        """The result of each pack, as JSON. Read it late: packs may replace names of ComfyUI's at any time."""
        patches = self.offer.patches
        packs = [replace(pack, patches=tuple(sorted(patches.get(pack.name, ())))) for pack in self._packs]
        return [asdict(pack) for pack in packs]

    def start_routes(self) -> dict[str, Any]:
        """Start to answer packs' routes: {"routes": [{"method", "pattern"}], "on_prompt": whether they see prompts}."""
        server = self.engine.kept.get("PromptServer")
        if server is None:
            return {"routes": [], "on_prompt": False}
        return {"routes": server.pack_routes.start(), "on_prompt": bool(server.on_prompt_handlers)}

    def alter_prompt(self, request: Any) -> Any:
        """A request to run a prompt, as packs change it."""
        server = self.engine.kept.get("PromptServer")
        return request if server is None else server.trigger_on_prompt(request)

    def answer(self, method: str, path: str, headers: Sequence[Sequence[str]], body: bytes) -> Answer:
        """Answer one request to a pack's route. Raises SluiceError."""
        answer: Answer = self.engine.kept["PromptServer"].pack_routes.answer(method, path, headers, body)
        return answer

    def _prestart(self, path: Path) -> None:
        script = path / "prestartup_script.py"
        if path.is_dir() and script.is_file():
            try:
                self.isolation.load(_module_name(script), script)
            except Exception:
                log.exception("The script %s failed.", script)

    def _load(self, path: Path) -> Pack:
        pack = Pack(name_of(path), str(path), missing=lacking(path))
        classes = self.engine.classes
        before = {*_table(self.engine), *(key for key in classes if not getattr(classes[key], "YIELDS", False))}
        try:
            if not path.exists():
                raise SluiceError(f"There is no folder {path}.")
            module = self.isolation.load(_module_name(path), path)
            offered, named = _declared(module)
            added = {key: value for key, value in _table(self.engine).items() if key not in before}
            if offered is None and not added:
                reason = "It has neither NODE_CLASS_MAPPINGS nor comfy_entrypoint, so it is not a ComfyUI node pack."
                return replace(pack, error=reason)
            return self._taken_in(pack, module, {**added, **(offered or {})}, named)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a pack may do anything on import, even sys.exit
            traceback.print_exc()
            return replace(pack, error=self._reason(error, pack))

    def _taken_in(self, pack: Pack, module: ModuleType, offered: Mapping[str, Any], named: Mapping[str, Any]) -> Pack:
        classes, titles = self.engine.classes, self.engine.titles
        free: dict[str, Any] = {}
        left_out: dict[str, str] = {}
        for key, node_class in offered.items():
            if key in classes and not getattr(classes[key], "YIELDS", False):
                if key not in self.engine.own:  # other packs find the pack's own class
                    _table(self.engine).setdefault(str(key), node_class)
                continue
            try:
                node_class.RELATIVE_PYTHON_MODULE = link_values.PACK_MODULE + pack.name
                node_class = bound_to(self.engine.host, {key: node_class})[key]
                Interface(node_class)
                free[str(key)] = node_class
            except Exception as error:
                left_out[str(key)] = _told(error)
        classes.update(free)
        titles.update({key: str(named.get(key) or key) for key in free})
        _table(self.engine).update(free)
        taken = tuple(str(key) for key in offered if key not in free and key not in left_out)
        web = self.engine.kept.get("EXTENSION_WEB_DIRS", {})
        more = {str(name): str(place) for name, place in web.items() if Path(str(place)).is_dir()}
        web.clear()
        more |= self._copied_since()
        return replace(
            pack, nodes=tuple(free), taken=taken, left_out=left_out, web=_web(Path(pack.path), module), extensions=more
        )

    def _reason(self, error: BaseException, pack: Pack) -> str:
        error = _first_cause(error)
        if isinstance(error, ModuleNotFoundError) and error.name:
            module = error.name.partition(".")[0]
            if module in TOP:
                return f"It imports {error.name}, which ComfyUI {VERSION} does not have: it is for another version."
            wanted = f" Its requirements that are not installed: {_listed(pack.missing)}." if pack.missing else ""
            return f"It needs the Python package {module}, which is not installed.{wanted}"
        return _told(error)


def load_packs(places: Iterable[Path], engine: Engine) -> NodePacks:
    """Import the packs of these folders. Raises MissingFileError for a folder that does not exist."""
    places = [place.expanduser().absolute() for place in places]
    for place in places:
        if not place.exists():
            raise MissingFileError(f"The folder of node packs {place} does not exist.")
    packs = NodePacks(engine)
    packs.load(places)
    return packs


def _first_cause(error: BaseException) -> BaseException:
    """For a missing module or sys.exit: the module that was missing first; packs handle that and then give up."""
    found, before = error, error.__context__
    while before is not None and isinstance(error, (ModuleNotFoundError, SystemExit)):
        found, before = (before if isinstance(before, ModuleNotFoundError) else found), before.__context__
    return found


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, SluiceError) else f"{type(error).__name__}: {error}"


def name_of(path: Path) -> str:
    """The name of a pack: the name of its folder or file."""
    return path.stem if path.is_file() else path.name


def candidates(place: Path) -> list[Path]:
    """The entries of a folder that may be packs; or the folder itself, if it is one."""
    if (place / "__init__.py").is_file() or not place.is_dir():
        return [place]  # a path that does not exist is listed too, so that it is reported
    entries = sorted(entry for entry in place.iterdir() if not entry.name.startswith((".", "_")))
    return [
        entry
        for entry in entries
        if entry.suffix == ".py" or ((entry / "__init__.py").is_file() and not entry.name.endswith(".disabled"))
    ]


def lacking(path: Path) -> tuple[str, ...]:
    """The lines of a pack's requirements.txt whose packages are not installed."""
    file = path / "requirements.txt"
    if not path.is_dir() or not file.is_file():
        return ()
    missing = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        found = _REQUIREMENT.match(line)
        if found is None or "://" in line:
            continue
        try:
            importlib.metadata.version(found.group(1))
        except importlib.metadata.PackageNotFoundError:
            missing.append(line.partition("#")[0].strip())
    return tuple(missing)


def _tell(pack: Pack) -> None:
    if pack.error:
        log.error("The node pack %s was not loaded: %s", pack.name, pack.error)
        return
    log.info("The node pack %s has %d node%s.", pack.name, len(pack.nodes), "" if len(pack.nodes) == 1 else "s")
    if pack.left_out:
        reason = next(iter(pack.left_out.values()))
        log.warning("%s: %d nodes are left out (%s): %s", pack.name, len(pack.left_out), _listed(pack.left_out), reason)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _table(engine: Engine) -> dict[str, Any]:
    """NODE_CLASS_MAPPINGS as packs see it; {} until a pack has read it."""
    table: dict[str, Any] = engine.kept.get("nodes", {})
    return table


def _declared(module: ModuleType) -> tuple[Mapping[str, Any] | None, Mapping[str, Any]]:
    """(id -> class, id -> title) of a pack in either style; None for a module that is not a pack."""
    plain = getattr(module, "NODE_CLASS_MAPPINGS", None)
    if isinstance(plain, Mapping):
        return plain, dict(getattr(module, "NODE_DISPLAY_NAME_MAPPINGS", None) or {})
    entry = getattr(module, "comfy_entrypoint", None)
    if not callable(entry):
        return None, {}
    classes, titles = asyncio.run(_by_schema(entry))
    return classes, titles


async def _by_schema(entry: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    extension = entry()
    if inspect.isawaitable(extension):
        extension = await extension
    await extension.on_load()
    classes, titles = {}, {}
    for node_class in await extension.get_node_list():
        schema = node_class.GET_SCHEMA()
        classes[schema.node_id], titles[schema.node_id] = node_class, schema.display_name
    return classes, titles


def _module_name(path: Path) -> str:
    """A unique module name."""
    return "sluice_pack_" + re.sub(r"\W", "_", str(path.absolute()))


def _web(path: Path, module: ModuleType) -> str | None:
    directory = getattr(module, "WEB_DIRECTORY", None)
    if not isinstance(directory, str) or not path.is_dir():
        return None
    web = (path / directory).resolve()
    return str(web) if web.is_dir() and web.is_relative_to(path.resolve()) else None
