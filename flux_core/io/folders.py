"""The folders of files: model folders by category, and those for inputs, outputs and previews.

The layout is ComfyUI's, so that one model store serves both programs: `models/<folder>/` below one or several roots,
and `extra_model_paths.yaml` for everything else. A name is relative to its folder; a name that leads outside it is
refused. Opens no model file and imports no torch.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, MissingFileError, SluiceError
from .paths import has_drive, is_file, refused, refused_in, walkable
from .published_files import published, size_text, told_forms
from .shards import INDEX, ShardName, first_of_each, shard_name

# Category -> folders below `models/`, first found wins. Any other category is the folder of its own name.
SUBFOLDERS: Mapping[str, tuple[str, ...]] = {
    "diffusion_models": ("unet", "diffusion_models"),
    "text_encoders": ("text_encoders", "clip"),
    "controlnet": ("controlnet", "t2i_adapter", "xlabs/controlnets"),
    "loras": ("loras", "xlabs/loras"),
    "xlabs_ipadapters": ("xlabs/ipadapters",),
}
CATEGORIES = (
    "checkpoints",
    "clip_vision",
    "controlnet",
    "diffusion_models",
    "embeddings",
    "loras",
    "model_patches",
    "style_models",
    "text_encoders",
    "upscale_models",
    "vae",
    "vae_approx",
    "xlabs_ipadapters",
)
_KINDS = (*CATEGORIES, "tokenizers")  # these are folders, not files, so no widget lists them
RENAMED = {"unet": "diffusion_models", "clip": "text_encoders"}
WEIGHT_FILES = (".safetensors", ".sft", ".gguf")
PICKLES = (".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl")
# Nearly all upscale models are published as pickles. They are read by an unpickler that makes tensors and runs no code.
ENDINGS = {"upscale_models": (".safetensors", ".sft", ".pth", ".pt", ".ckpt")}
PICTURE_FILES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")

_NO_SHARD = ShardName("", 0, 0, "")

TINY_MODELS = Path(__file__).resolve().parents[1] / "tiny" / "models"
TINY_INPUT = TINY_MODELS.parent / "input"  # the input images of the shipped workflows


class Folders:
    """The folders of one program run. `models` maps category -> directories in order of search."""

    def __init__(
        self, models: Mapping[str, Sequence[Path]], *, input: Path, output: Path, temp: Path, user: Path
    ) -> None:
        self.models = {category: tuple(places) for category, places in models.items()}
        self.input, self.output, self.temp, self.user = input, output, temp, user
        self._lists: dict[tuple[str, tuple[str, ...]], tuple[dict[str, int], list[str]]] = {}

    def directories(self, category: str) -> tuple[Path, ...]:
        """Every folder searched for this category, in order. They need not exist."""
        return self.models.get(RENAMED.get(category, category), ())

    def search_first(self, category: str, folder: Path) -> None:
        """Search this folder for the category too, before all others."""
        category = RENAMED.get(category, category)
        places = self.directories(category)
        if places[:1] != (folder,):
            self.models[category] = (folder, *(place for place in places if place != folder))
            self._lists = {key: found for key, found in self._lists.items() if key[0] != category}

    def filenames(self, category: str, endings: tuple[str, ...] | None = None) -> list[str]:
        """Sorted names, relative to their folders, sub-folders written with "/". Re-read when a folder has changed.

        endings: of files; None for those of the category. A model in several files is listed by the first of them;
        links to nowhere are left out.
        """
        endings = ENDINGS.get(category, WEIGHT_FILES) if endings is None else endings
        key = (RENAMED.get(category, category), endings)
        stamps, names = self._lists.get(key, ({}, []))
        if not stamps or any(_stamp(place) != stamp for place, stamp in stamps.items()):
            stamps, names = _list(self.directories(category), endings)
            self._lists[key] = (stamps, names)
        return list(names)

    def find(self, category: str, name: str) -> Path | None:
        """The file of that name in the first folder that has it, or a folder below that holds one model in shards."""
        relative = _relative(name)
        if relative is None:
            return None
        places = [place / relative for place in self.directories(category)]
        return next((p for p in places if is_file(p) or (p.is_dir() and self.listed(category, name) != name)), None)

    def listed(self, category: str, name: str) -> str:
        """The name under which `filenames` lists a model that may be named by a folder, an index or another shard.

        With slashes, and unchanged if it is listed so, or not at all.
        """
        name = name.replace("\\", "/")
        names = self.filenames(category)
        if name in names:
            return name
        bare = name.rstrip("/").removesuffix(INDEX)
        for shard, first in ((shard_name(first), first) for first in names):
            if shard is not None and (shard_name(name) or _NO_SHARD).set == shard.set:
                return first
            if shard is not None and bare == shard.index.removesuffix(INDEX):
                return first
        inside = [first for first in names if first.rpartition("/")[0] == name.rstrip("/")]
        return inside[0] if len(inside) == 1 else name

    def located(self, name: str, categories: Iterable[str]) -> tuple[str, str] | None:
        """(category, listed name) of a model named with or without its ending, in the first category that has it."""
        for category in categories:
            for candidate in (name, *(name + ending for ending in WEIGHT_FILES)):
                if self.find(category, candidate) is not None:
                    return category, self.listed(category, candidate)
        return None

    def path(self, category: str, name: str) -> Path:
        """As `find`, but raises MissingFileError with the whole explanation if there is no such file."""
        found = self.find(category, name)
        if found is None:
            raise MissingFileError(self.explain_missing(category, name))
        return found

    def explain_missing(self, category: str, name: str, also: Sequence[str] = ()) -> str:
        """An explanation: the file, the folders searched, the files there, where it is published, the folder for it.

        category: the one to put it into. also: further categories that were searched.
        """
        category = RENAMED.get(category, category)
        searched = [category, *also]
        places = [str(d) for each in searched for d in self.directories(each) if not d.is_relative_to(TINY_MODELS)]
        what = " and ".join(searched)
        text = [f"{name!r} is in none of the {what} folders ({', '.join(places) or 'none is set'})."]
        if name.lower().endswith(PICKLES) and category not in ENDINGS:
            text.append("Only .safetensors, .sft and .gguf files are read: the others may run code when opened.")
        elsewhere = [c for c in self.models if c not in searched and self.find(c, name)]
        if elsewhere:
            text.append(f"A file of that name lies in {elsewhere[0]}.")
        close = _close(name, [listed for each in searched for listed in self.filenames(each)])
        if close:
            text.append(f"Close names there: {', '.join(close)}.")
        publisher = published(name)
        target = self.place_for(category)
        if publisher and target:
            size = f" ({size_text(name)})" if size_text(name) else ""
            text.append(f"It is published on Hugging Face as {publisher}{size}; put it into {target}.")
            if smaller := told_forms(name):
                text.append(f"Smaller forms of it: {smaller}.")
        elif target and not elsewhere:
            text.append(f"Put it into {target}, or choose another file.")
        return " ".join(text)

    def place_for(self, category: str) -> Path | None:
        """The folder a person should put a new file of this category into."""
        own = [d for d in self.directories(category) if not d.is_relative_to(TINY_MODELS)]
        named = [d for d in own if d.name == category]
        return next(iter([*(d for d in named if d.is_dir()), *named, *own]), None)


def standard_folders(
    base: Path,
    models: Iterable[Path] = (),
    *,
    extra: Iterable[Path] = (),
    input: Path | None = None,
    output: Path | None = None,
) -> Folders:
    """The folders of a run in `base`: the given model roots, `base/models`, those of `extra`, and the tiny model's.

    `extra` are extra_model_paths.yaml files. The one in `base` is read by default.
    Raises MissingFileError for a root or file that does not exist.
    """
    roots = [Path(root).expanduser().absolute() for root in models]
    for root in roots:
        if not root.is_dir():
            raise MissingFileError(f"There is no folder {root}, which --models names.")
    found: dict[str, list[Path]] = {}
    for root in [*roots, base / "models"]:
        for category in _KINDS:
            found.setdefault(category, []).extend(_folders_below(root, category))
    beside = base / "extra_model_paths.yaml"
    for file in [*extra, *([beside] if beside.is_file() else [])]:
        for category, place, first in extra_model_paths(Path(file)):
            places = found.setdefault(category, [])
            if place in places and first:
                places.remove(place)
            if place not in places:
                places.insert(0 if first else len(places), place)
    own = (input or base / "input", output or base / "output", base / "temp", base / "user")
    for_input, for_output, temp, user = (place.expanduser().absolute() for place in own)
    return Folders(with_tiny_model(found), input=for_input, output=for_output, temp=temp, user=user)


def with_tiny_model(models: Mapping[str, Sequence[Path]]) -> dict[str, list[Path]]:
    """The same folders without repetition, followed by those of the model that is shipped with Sluice."""
    found = {category: list(dict.fromkeys(places)) for category, places in models.items()}
    for category in _KINDS:
        found.setdefault(category, []).extend(_folders_below(TINY_MODELS, category))
    return found


def extra_model_paths(file: Path) -> Iterator[tuple[str, Path, bool]]:
    """ComfyUI's extra_model_paths.yaml as (category, folder, goes first).

    Sections of `category: folder` (several folders on several lines), with `base_path` (relative to the file, `~` and
    `$VARIABLES` expanded) and `is_default`.
    """
    import yaml

    try:
        config: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingFileError(f"The file {file} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SluiceError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config or {}, dict):
        raise SluiceError(f"{file} holds no sections: a line `name:` with `category: folder` lines below it.")
    for title, section in (config or {}).items():
        if section is None:
            continue
        if not isinstance(section, dict):
            raise SluiceError(f"{file}: section {title!r} should hold `category: folder` lines, not {section!r}.")
        start = file.parent.absolute()
        start /= os.path.expandvars(os.path.expanduser(str(section.get("base_path") or "")))
        for category, value in section.items():
            if category in ("base_path", "is_default"):
                continue
            if value is not None and not isinstance(value, str):
                raise SluiceError(f"{file}: section {title!r} should name a folder after `{category}:`, not {value!r}.")
            for line in (value or "").splitlines():
                if line.strip():
                    place = Path(os.path.normpath(start / os.path.expanduser(line.strip())))
                    yield RENAMED.get(str(category), str(category)), place, bool(section.get("is_default"))


def confined(root: Path, name: str) -> Path:
    """`root/name`. Raises InputError if it leads outside `root` (an absolute path, a drive, "..", or a symbolic link),
    or if this system stores no file under such a name."""
    if reason := refused_in(name):
        raise InputError(f"The name {name!r} cannot be used: {reason}. Choose another name.")
    relative = _relative(name)
    if relative is not None and Path(os.path.realpath(root / relative)).is_relative_to(os.path.realpath(root)):
        return root / relative
    raise InputError(f"The name {name!r} leads out of the folder {root}; names must stay inside it.")


def annotated(name: str) -> tuple[str, str]:
    """ComfyUI's `name [output]` -> (name, "output"). Without a mark the folder is "input"."""
    for kind in ("input", "output", "temp"):
        if name.endswith(f"[{kind}]"):
            return name[: -len(kind) - 2].rstrip(), kind
    return name, "input"


def _folders_below(root: Path, category: str) -> list[Path]:
    return [root / folder for folder in SUBFOLDERS.get(category, (category,))]


def _relative(name: str) -> Path | None:
    """A file name from a workflow as a relative path, its separators those of Windows or POSIX.

    None if it would leave its folder, also on another system than this one, or names no file on this one.
    """
    parts = name.replace("\\", "/").split("/")
    if not name or "\0" in name or ".." in parts or parts[0] == "":
        return None
    if any(has_drive(part) or refused(part) for part in parts):
        return None
    return Path(*[part for part in parts if part])


def make_folder(place: Path, option: str = "--base-directory") -> None:
    """Create a folder that is written to, if it is not there. option: names another one.

    Raises SluiceError if it cannot be made.
    """
    file = next((above for above in (place, *place.parents) if is_file(above)), None)
    if file is not None:
        raise SluiceError(f"{file} is a file, so there is no folder {place}. Move it away, or name another folder.")
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SluiceError(
            f"The folder {place} cannot be made: {error.strerror}. Choose one that you may write to ({option})."
        ) from error


def _close(name: str, names: Sequence[str]) -> list[str]:
    by_last: dict[str, str] = {n.rpartition("/")[2].lower(): n for n in names}
    last = name.replace("\\", "/").rpartition("/")[2].lower()
    return [by_last[n] for n in difflib.get_close_matches(last, by_last, n=3, cutoff=0.5)]


def _stamp(place: str) -> int:
    try:
        return os.stat(place).st_mtime_ns
    except OSError:
        return -1


def _list(directories: Iterable[Path], endings: tuple[str, ...]) -> tuple[dict[str, int], list[str]]:
    """Names below the folders, and the modification times of every folder visited."""
    stamps: dict[str, int] = {}
    names: set[str] = set()
    for directory in map(walkable, directories):
        stamps[directory] = _stamp(directory)
        for place, subfolders, files in os.walk(directory, followlinks=True):
            # Following a link to a folder that contains it would never end.
            here = Path(os.path.realpath(place))
            deeper = [s for s in subfolders if not here.is_relative_to(os.path.realpath(here / s))]
            subfolders[:] = [s for s in deeper if s != ".git"]
            stamps[place] = _stamp(place)
            below = os.path.relpath(place, directory).replace(os.sep, "/")
            wanted = (file for file in files if file.lower().endswith(endings) and _leads_somewhere(place, file))
            names.update(file if below == "." else f"{below}/{file}" for file in wanted)
    return stamps, first_of_each(names)


def _leads_somewhere(place: str, file: str) -> bool:
    path = os.path.join(place, file)
    return not os.path.islink(path) or os.path.exists(path)
