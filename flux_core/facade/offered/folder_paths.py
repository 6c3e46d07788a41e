"""folder_paths: the kinds of model files with their folders, names in them, and the folders for images.

The table is a plain dict as in ComfyUI: packs add new kinds, and folders to existing ones. Kinds of ours have the
folders of this program, including those of the small model.
"""

from __future__ import annotations

import mimetypes
import os
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...io import saving
from ...io.folders import CATEGORIES, RENAMED, TINY_INPUT, Folders, annotated, confined
from ..engine import current

__all__ = [
    "add_model_folder_path",
    "annotated_filepath",
    "exists_annotated_filepath",
    "filter_files_content_types",
    "filter_files_extensions",
    "get_annotated_filepath",
    "get_directory_by_type",
    "get_filename_list",
    "get_filename_list_",
    "get_folder_paths",
    "get_full_path",
    "get_full_path_or_raise",
    "get_input_directory",
    "get_input_subfolders",
    "get_output_directory",
    "get_save_image_path",
    "get_temp_directory",
    "get_user_directory",
    "map_legacy",
    "recursive_search",
    "supported_pt_extensions",
    "cached_filename_list_",
    "filename_list_cache",
    "extension_mimetypes_cache",
]

supported_pt_extensions = {".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft"}
extension_mimetypes_cache = {"webp": "image", "fbx": "model"}
filename_list_cache: dict[str, Any] = {}

# Kinds that only packs use here: the folder of that name below each models folder.
_FOR_PACKS = (*("audio_encoders", "classifiers", "configs", "diffusers", "gligen", "hypernetworks", "photomaker"),)
_ENDINGS = {"configs": {".yaml"}, "diffusers": {"folder"}, "classifiers": {""}}

Files = tuple[list[str], dict[str, float], float]


COMPUTED = ("folder_names_and_paths",)


def _table() -> dict[str, tuple[list[str], set[str]]]:
    """Kind -> (folders, endings of file names)."""
    table: dict[str, tuple[list[str], set[str]]]
    table = current().keep("folder_names_and_paths", lambda: _first_table(current().folders))
    return table


def _first_table(folders: Folders) -> dict[str, tuple[list[str], set[str]]]:
    known = {kind: [str(place) for place in folders.directories(kind)] for kind in CATEGORIES}
    roots = list(dict.fromkeys(str(Path(place).parent) for place in known["checkpoints"]))
    for kind in _FOR_PACKS:
        known.setdefault(kind, [os.path.join(root, kind) for root in roots])
    known["custom_nodes"] = [*current().pack_folders, str(folders.user.parent / "custom_nodes")]
    return {kind: (places, _ENDINGS.get(kind, supported_pt_extensions)) for kind, places in known.items()}


def __getattr__(name: str) -> Any:
    """The table and the folders, which are plain values in ComfyUI."""
    values: dict[str, Callable[[], Any]] = {
        "folder_names_and_paths": _table,
        "base_path": lambda: str(current().folders.user.parent),
        "models_dir": lambda: str(Path(_table()["checkpoints"][0][0]).parent),
        "output_directory": get_output_directory,
        "input_directory": get_input_directory,
        "temp_directory": get_temp_directory,
        "user_directory": get_user_directory,
    }
    if name in values:
        return values[name]()
    raise AttributeError(name)


def map_legacy(folder_name: str) -> str:
    return RENAMED.get(folder_name, folder_name)


def get_output_directory() -> str:
    return str(current().folders.output)


def get_input_directory() -> str:
    return str(current().folders.input)


def get_temp_directory() -> str:
    return str(current().folders.temp)


def get_user_directory() -> str:
    return str(current().folders.user)


def get_directory_by_type(type_name: str) -> str | None:
    places = {"output": get_output_directory, "input": get_input_directory, "temp": get_temp_directory}
    return places[type_name]() if type_name in places else None


def get_folder_paths(folder_name: str) -> list[str]:
    """The folders of a kind. Raises KeyError for an unknown kind."""
    return list(_table()[map_legacy(folder_name)][0])


def add_model_folder_path(folder_name: str, full_folder_path: str, is_default: bool = False) -> None:
    """Add a folder to a kind, which may be new."""
    places, _ = _table().setdefault(map_legacy(folder_name), ([], set()))
    if full_folder_path in places:
        if not is_default:
            return
        places.remove(full_folder_path)
    places.insert(0 if is_default else len(places), full_folder_path)


def recursive_search(directory: str, excluded_dir_names: list[str] | None = None) -> tuple[list[str], dict[str, float]]:
    """Every file below a folder, relative to it, and the modification times of the folders."""
    files, times = [], {}
    if not os.path.isdir(directory):
        return [], {}
    for place, below, names in os.walk(directory, followlinks=True):
        below[:] = [name for name in below if name not in (excluded_dir_names or ())]
        times[place] = os.path.getmtime(place)
        files += [os.path.relpath(os.path.join(place, name), directory) for name in names]
    return files, times


def filter_files_extensions(files: Collection[str], extensions: Collection[str]) -> list[str]:
    """Sorted file names; without extensions all files are included."""
    return sorted(file for file in files if not extensions or os.path.splitext(file)[1].lower() in extensions)


def filter_files_content_types(files: Iterable[str], content_types: Collection[str]) -> list[str]:
    """The files whose endings belong to these types: image, video, audio, model."""
    return [file for file in files if _content_type(file) in content_types]


def _content_type(file: str) -> str:
    ending = file.rpartition(".")[2].lower()
    known = extension_mimetypes_cache.get(ending)
    return known or (mimetypes.guess_type(file)[0] or "").partition("/")[0]


def get_filename_list_(folder_name: str) -> Files:
    places, endings = _table()[map_legacy(folder_name)]
    names: set[str] = set()
    times: dict[str, float] = {}
    for place in places:
        files, seen = recursive_search(place, [".git"])
        names.update(filter_files_extensions(files, endings))
        times |= seen
    return sorted(names), times, time.perf_counter()


def cached_filename_list_(folder_name: str) -> None:
    """Nothing is kept: the folders are read again."""


def get_filename_list(folder_name: str) -> list[str]:
    """The names of all files of a kind, including formats that only we read (GGUF) for kinds of ours."""
    kind = map_legacy(folder_name)
    own = current().folders.filenames(kind) if kind in CATEGORIES else []
    return sorted({*get_filename_list_(kind)[0], *own})


def get_full_path(folder_name: str, filename: str) -> str | None:
    """The path of a file of a kind. None if it does not exist, or if its name leads out of the folder."""
    for place in _table().get(map_legacy(folder_name), ((), ()))[0]:
        try:
            path = confined(Path(place), str(filename))
        except InputError:
            continue
        if path.is_file():
            return str(path)
    return None


def get_full_path_or_raise(folder_name: str, filename: str) -> str:
    """Raises FileNotFoundError with the full explanation."""
    path = get_full_path(folder_name, filename)
    if path is None:
        kind = map_legacy(folder_name)
        if kind in CATEGORIES:
            return str(current().folders.path(kind, filename))
        places = ", ".join(get_folder_paths(kind)) if kind in _table() else "none is set"
        raise FileNotFoundError(f"{filename!r} is in none of the {kind} folders ({places}). Put it there.")
    return path


def annotated_filepath(name: str) -> tuple[str, str | None]:
    plain, kind = annotated(name)
    return plain, None if plain == name else get_directory_by_type(kind)


def get_annotated_filepath(name: str, default_dir: str | None = None) -> str:
    """The path of an image whose name may end in [input], [output] or [temp]."""
    plain, place = annotated_filepath(name)
    path = os.path.join(place or default_dir or get_input_directory(), plain)
    if place is None and default_dir is None and not os.path.exists(path) and (TINY_INPUT / plain).is_file():
        return str(TINY_INPUT / plain)
    return path


def exists_annotated_filepath(name: str) -> bool:
    return os.path.exists(get_annotated_filepath(name))


def get_save_image_path(
    filename_prefix: str, output_dir: str, image_width: int = 0, image_height: int = 0
) -> tuple[str, str, int, str, str]:
    """(folder, file name without number, next number, subfolder, prefix with its fields replaced)."""
    saving.check_prefix(filename_prefix, output_dir)
    place = saving.place(filename_prefix, output_dir, image_width, image_height)
    subfolder = os.path.relpath(place.folder, output_dir)
    subfolder = "" if subfolder == "." else subfolder
    return str(place.folder), place.name, place.counter, subfolder, os.path.join(subfolder, place.name)


def get_input_subfolders() -> list[str]:
    """The folders below the input folder, relative to it."""
    root = get_input_directory()
    places = [place for place, _, _ in os.walk(root)]
    return sorted(os.path.relpath(place, root).replace(os.sep, "/") for place in places if place != root)
