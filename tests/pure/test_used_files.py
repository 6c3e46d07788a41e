"""An image names the files it was made with; another machine reports each as the same, another one, or missing."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sluice.flux_core.commands import workflows
from sluice.flux_core.commands.prepare import prepared
from sluice.flux_core.errors import PromptError
from sluice.flux_core.io import file_hashes
from sluice.flux_core.io.file_hashes import FileHashes, hashes_of
from sluice.flux_core.io.folders import Folders, standard_folders
from sluice.flux_core.worker.registry import standalone_tables
from sluice.flux_core.worker.used_files import chosen_settings, compared, used_files, used_paths, with_files
from sluice.nodes.host import pack_host


class Loader:
    FILES = {"lora_name": "loras"}


CLASSES: dict[str, type[Any]] = {"Loader": Loader}
PROMPT = {
    "1": {"class_type": "Loader", "inputs": {"lora_name": "a.safetensors"}},
    "2": {"class_type": "Loader", "inputs": {"lora_name": "b.safetensors"}},
    "3": {"class_type": "Loader", "inputs": {"lora_name": "c.safetensors"}},
    "4": {"class_type": "LoadImage", "inputs": {"image": "sketch.png"}},
}


def store(base: Path, **files: bytes) -> Folders:
    (base / "models/loras").mkdir(parents=True)
    (base / "input").mkdir()
    for name, data in files.items():
        (base / "models/loras" / f"{name}.safetensors").write_bytes(data)
    (base / "input/sketch.png").write_bytes(b"a sketch")
    return standard_folders(base)


def test_the_same_another_and_missing_are_told_apart(tmp_path: Path) -> None:
    here = store(tmp_path / "here", a=b"1" * 10, b=b"2" * 10, c=b"3" * 10)
    recorded = used_files(used_paths(PROMPT, CLASSES, here), hashes_of(here.user))
    assert [one["name"] for one in recorded] == ["a.safetensors", "b.safetensors", "c.safetensors", "sketch.png"]
    assert recorded[0]["sha256"] == hashlib.sha256(b"1" * 10).hexdigest()
    there = store(tmp_path / "there", a=b"1" * 10, b=b"4" * 10, renamed=b"3" * 10)
    (there.input / "sketch.png").write_bytes(b"another sketch")
    told = {one.name: one for one in compared(json.loads(json.dumps(recorded)), there, hashes_of(there.user))}
    assert {name: one.state for name, one in told.items()} == {
        "a.safetensors": "same", "b.safetensors": "other", "c.safetensors": "missing", "sketch.png": "other",
    }  # fmt: skip
    assert "choose renamed.safetensors" in told["c.safetensors"].text
    assert "content differs" in told["b.safetensors"].text and "14 bytes here, 8 then" in told["sketch.png"].text


def test_hashes_are_computed_once_and_again_for_a_changed_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashes, "SMALL", 4)
    large, kept = tmp_path / "large", tmp_path / "user/sluice/hashes.json"
    large.write_bytes(b"12345")
    hashes = FileHashes(kept)
    (tmp_path / "user").mkdir()
    assert hashes.known(large) is None
    hashes.compute_missing([large], stop=lambda: True)
    assert hashes.known(large) is None
    hashes.compute_missing([large, tmp_path / "absent"])
    expected = hashlib.sha256(b"12345").hexdigest()
    assert hashes.known(large) == expected == FileHashes(kept).known(large)
    os.utime(large, ns=(1, 1))
    assert FileHashes(kept).known(large) is None
    kept.write_text("no JSON", "utf-8")
    assert FileHashes(kept).known(large) is None and FileHashes(kept).compute(large) == expected


@pytest.mark.parametrize(
    "recorded", [None, "text", {"a": 1}, [1, None, {"name": "x"}, {"category": 1, "name": "x", "bytes": 1}]]
)
def test_what_is_no_list_of_files_says_nothing(tmp_path: Path, recorded: Any) -> None:
    assert compared(recorded, store(tmp_path), hashes_of(tmp_path)) == []


def test_names_that_lead_out_of_their_folder_are_missing(tmp_path: Path) -> None:
    folders = store(tmp_path)
    recorded = [
        {"category": "loras", "name": "../../secret.safetensors", "bytes": 5},
        {"category": "input", "name": "../../secret.png", "bytes": 5},
    ]
    assert [one.state for one in compared(recorded, folders, hashes_of(tmp_path))] == ["missing", "missing"]


def test_the_list_goes_beside_the_workflow() -> None:
    files = [{"category": "vae", "name": "ae.safetensors", "bytes": 5}]
    before = {"client_id": "x", "extra_pnginfo": {"workflow": {"nodes": []}}}
    after = with_files(before, files)
    assert after == {"client_id": "x", "extra_pnginfo": {"workflow": {"nodes": []}, "sluice_files": files}}
    assert before["extra_pnginfo"] == {"workflow": {"nodes": []}}
    assert with_files({}, [], None, "--cache fast")["extra_pnginfo"] == {"sluice_settings": "--cache fast"}
    chosen = {"device": "cpu", "cache": "fast", "compute": None, "attention": "sage"}
    assert chosen_settings(chosen, exact=False) == "--cache fast --attention sage"
    assert chosen_settings(chosen, exact=True) == chosen_settings({"cache": "off"}, exact=False) == ""
    assert with_files({}, []) == {} and with_files({"extra_pnginfo": 5}, files) == {"extra_pnginfo": 5}


def test_a_workflow_elsewhere_says_which_file_is_missing_which_renamed_and_which_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole answer of `sluice run` to an image that was made in another place."""
    monkeypatch.chdir(tmp_path)
    kinds = {"diffusion_models": "flux", "vae": "ae", "text_encoders": "t5"}
    here, there = tmp_path / "here", tmp_path / "there"
    for base in (here, there):
        for kind, name in kinds.items():
            (base / "models" / kind).mkdir(parents=True)
            (base / "models" / kind / f"my-{name}.safetensors").write_bytes(name.encode() * 9)
    (there / "models/vae/my-ae.safetensors").unlink()
    (there / "models/text_encoders/my-t5.safetensors").rename(there / "models/text_encoders/other.safetensors")
    (there / "models/diffusion_models/my-flux.safetensors").write_bytes(b"FLUX" * 9)
    prompt = {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "my-flux.safetensors", "weight_dtype": "default"}},
        "2": {"class_type": "CLIPLoader", "inputs": {"clip_name": "my-t5.safetensors", "type": "flux"}},
        "3": {"class_type": "VAELoader", "inputs": {"vae_name": "my-ae.safetensors"}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
        "6": {"class_type": "PreviewAny", "inputs": {"source": ["3", 0]}},
    }
    folders = standard_folders(here)
    classes, titles = standalone_tables(pack_host())
    recorded = used_files(used_paths(prompt, classes, folders), hashes_of(folders.user))
    (tmp_path / "x.json").write_text(json.dumps({"prompt": prompt, "extra_data": {}}), "utf-8")
    read = workflows.read(tmp_path / "x.json", classes)
    made = replace(read, embedded=replace(read.embedded, files=recorded))
    monkeypatch.setattr(workflows, "read", lambda *given: made)
    with pytest.raises(PromptError) as told:
        prepared(tmp_path / "x.json", classes, titles, standard_folders(there))
    text = "\n".join(told.value.problems)
    assert "my-flux.safetensors is another file of this name (its content differs): the image will differ." in text
    assert "my-t5.safetensors is here under another name: choose other.safetensors." in text
    assert "'my-ae.safetensors' is in none of the vae folders" in text and "my-ae.safetensors is" not in text
