"""The rules of Windows for names and for files in use, tested on any system."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from sluice.flux_core.errors import InputError, SluiceError
from sluice.flux_core.io import paths, saving
from sluice.flux_core.io.folders import confined, standard_folders


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows' rules for names, and its `os.rename`, which refuses a name that is taken."""
    rename = os.rename

    def rename_to_a_free_name(source: str, target: str) -> None:
        if os.path.exists(target):
            raise FileExistsError(17, "Cannot create a file when that file already exists", target)
        rename(source, target)

    monkeypatch.setattr(paths, "WINDOWS", True)
    monkeypatch.setattr(saving, "WINDOWS", True)
    monkeypatch.setattr(os, "rename", rename_to_a_free_name)


LONG = "x" * 300
EXTENDED = {
    "C:\\models\\a.safetensors": "\\\\?\\C:\\models\\a.safetensors",
    "d:/models/../b": "\\\\?\\d:\\b",
    f"C:\\{LONG}": f"\\\\?\\C:\\{LONG}",
    "\\\\nas\\share\\models": "\\\\?\\UNC\\nas\\share\\models",
    "\\\\?\\C:\\already": "\\\\?\\C:\\already",
    "\\\\.\\pipe": "\\\\.\\pipe",
}


@pytest.mark.parametrize("path, expected", EXTENDED.items(), ids=[path[:24] for path in EXTENDED])
def test_paths_without_a_limit(path: str, expected: str) -> None:
    assert paths.extended(path) == expected


def test_only_long_paths_take_the_form_without_a_limit(monkeypatch: pytest.MonkeyPatch, windows: None) -> None:
    monkeypatch.setattr(os.path, "abspath", lambda path: str(path))
    assert paths.openable("C:\\models\\a.gguf") == "C:\\models\\a.gguf"
    assert paths.openable(f"C:\\{LONG}\\a.gguf") == f"\\\\?\\C:\\{LONG}\\a.gguf"
    assert paths.walkable("C:\\models") == "\\\\?\\C:\\models"


def test_elsewhere_paths_stay_as_they_are() -> None:
    assert paths.openable(Path(f"/models/{LONG}")) == f"/models/{LONG}" and paths.walkable("models") == "models"
    assert all(paths.refused(name) is None for name in ("CON", "a:b", "what?", "end."))


REFUSED = (
    "CON",
    "nul",
    "NUL.png",
    "com1",
    "LPT9.tar.gz",
    "aux .txt",
    "COM²",
    "CONOUT$",
    "ab:c",
    "a?",
    '"',
    "a.",
    "a	b",
)
FINE = ("CONTROL", "CON_00001_.png", "com10", "null", "a.b", "x NUL", ".hidden", "ä", "LPT")


@pytest.mark.parametrize("name", REFUSED)
def test_names_that_windows_keeps_for_itself_are_refused_there(windows: None, tmp_path: Path, name: str) -> None:
    assert paths.refused(name)
    for whole in (name, f"sub/{name}", f"{name}/x"):
        with pytest.raises(InputError, match="cannot be used: .*Windows|leads out"):
            confined(tmp_path, whole)
        assert standard_folders(tmp_path).find("vae", whole) is None
    for prefix in (f"{name}/picture", name):
        with pytest.raises(InputError, match="file name prefix .* cannot be used: .*Windows"):
            saving.check_prefix(prefix, tmp_path)
        with pytest.raises(InputError, match="Windows"):
            saving.place(prefix, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FINE)
def test_names_that_only_look_like_it_are_not(windows: None, tmp_path: Path, name: str) -> None:
    assert paths.refused(name) is None and confined(tmp_path, f"{name}/{name}") == tmp_path / name / name
    assert saving.place(f"{name}/{name}", tmp_path).save(b"x") == f"{name}_00001_.png"


def test_a_drive_in_the_middle_of_a_name_leads_out_on_every_system(tmp_path: Path) -> None:
    for name in ("C:x", "sub/C:/x", "sub\\d:x"):
        with pytest.raises(InputError, match="leads out"):
            confined(tmp_path, name)
    assert confined(tmp_path, "at 12:30.png") == tmp_path / "at 12:30.png"


def test_saving_by_renaming_overwrites_nothing(windows: None, tmp_path: Path) -> None:
    (tmp_path / "a_00002_.png").write_bytes(b"mine")
    place = saving.Place(tmp_path, "", "a", 1)
    assert [place.save(b"1"), place.save(b"3")] == ["a_00001_.png", "a_00003_.png"]
    contents = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert contents == {"a_00001_.png": b"1", "a_00002_.png": b"mine", "a_00003_.png": b"3"}


# -- files in use ------------------------------------------------------------------------------------------------------


class InUse(PermissionError):
    winerror = 32


class Busy:
    """`os.replace` while somebody has the target open for so many tries."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tries: int, error: PermissionError) -> None:
        self.left, self.error, self.replace = tries, error, os.replace
        self.pauses: list[float] = []
        monkeypatch.setattr(time, "sleep", self.pauses.append)
        monkeypatch.setattr(os, "replace", self)

    def __call__(self, source: str, target: str) -> None:
        self.left -= 1
        if self.left >= 0:
            raise self.error
        self.replace(source, target)


def test_a_file_in_use_for_a_moment_is_replaced_after_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_bytes(b"old")
    busy = Busy(monkeypatch, 3, InUse(13, "used by another process"))
    saving.write_whole(tmp_path / "settings.json", b"new")
    assert (tmp_path / "settings.json").read_bytes() == b"new" and len(busy.pauses) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


def test_a_file_that_stays_in_use_keeps_its_content_and_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "settings.json").write_bytes(b"old")
    busy = Busy(monkeypatch, 1000, InUse(13, "used by another process"))
    with pytest.raises(PermissionError, match="used by another process"):
        saving.write_whole(tmp_path / "settings.json", b"new")
    assert (tmp_path / "settings.json").read_bytes() == b"old" and 2 < sum(busy.pauses) < 4
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


def test_what_is_forbidden_is_tried_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    busy = Busy(monkeypatch, 1000, PermissionError(13, "Permission denied"))
    with pytest.raises(PermissionError, match="Permission denied"):
        saving.write_whole(tmp_path / "settings.json", b"new")
    assert busy.left == 999 and not busy.pauses


def test_a_folder_on_another_drive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def apart(paths: tuple[str, str]) -> str:
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr(os.path, "commonpath", apart)
    with pytest.raises(SluiceError, match="same drive"):
        saving.place("D:/pictures/x", tmp_path)
