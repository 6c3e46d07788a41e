"""`sluice doctor`: its findings about simulated machines, and about folders."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from sluice.flux_core.commands.doctor import lines
from sluice.flux_core.doctor import service, storage
from sluice.flux_core.doctor.finding import Finding
from sluice.flux_core.doctor.graphics import Card, PyTorch, graphics_findings, wheel
from sluice.flux_core.doctor.model_files import model_findings
from sluice.flux_core.io.folders import TINY_MODELS, Folders, standard_folders

GTX1070 = Card("NVIDIA GeForce GTX 1070", (6, 1), "560.94", 8192)
RTX4060 = Card("NVIDIA GeForce RTX 4060", (8, 9), "560.94", 8188)
RTX5060 = Card("NVIDIA GeForce RTX 5060", (12, 0), "560.94", 8151)
CPU_BUILD = PyTorch("2.13.0+cpu", None, None, False)
CU128 = PyTorch("2.13.0+cu128", "12.8", None, True, ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"))


def advice(*cards: Card, pytorch: PyTorch | None, amd: bool = False) -> dict[str, str]:
    return {one.subject: one.advice for one in graphics_findings(cards, amd, pytorch) if one.advice}


def test_a_machine_that_is_ready_needs_no_advice() -> None:
    assert advice(RTX4060, pytorch=CU128) == {}
    assert advice(pytorch=CPU_BUILD) == {}


def test_the_build_of_pytorch_is_matched_with_the_card() -> None:
    assert "whl/cu128" in advice(RTX4060, pytorch=CPU_BUILD)["PyTorch"]
    assert "whl/cu126" in advice(GTX1070, pytorch=CPU_BUILD)["PyTorch"]
    assert "no kernels for the NVIDIA GeForce GTX 1070" in advice(GTX1070, pytorch=CU128)["PyTorch"]
    assert "whl/cu126" in advice(GTX1070, RTX4060, pytorch=None)["PyTorch"]  # one build for both cards
    assert "rocm" in advice(pytorch=CPU_BUILD, amd=True)["PyTorch"]
    assert wheel(()).endswith("cpu")


def test_kernels_run_on_newer_cards_of_their_generation() -> None:
    ada_only = PyTorch("2.13.0", "12.8", None, True, ("sm_86",))
    assert advice(RTX4060, pytorch=ada_only) == {}
    with_ptx = PyTorch("2.13.0", "12.8", None, True, ("sm_86", "compute_90"))
    assert "PyTorch" in advice(RTX4060, pytorch=PyTorch("2.13.0", "12.8", None, True, ("sm_90",)))
    newer = Card("a card of tomorrow", (13, 0), "600.1", 8192)
    assert advice(newer, pytorch=with_ptx) == {}


def test_an_old_driver_is_told() -> None:
    assert "570" in advice(RTX5060, pytorch=CU128)["graphics card"]
    old = Card("NVIDIA GeForce RTX 3060", (8, 6), "470.82", 12288)
    assert "525" in advice(old, pytorch=CU128)["graphics card"]
    unusable = PyTorch("2.13.0+cu128", "12.8", None, False)
    assert "no CUDA device" in advice(RTX4060, pytorch=unusable)["PyTorch"]


def store(root: Path, *parts: str) -> Folders:
    """Folders with these parts of the shipped model as if they were a person's own."""
    for part in parts:
        shutil.copytree(TINY_MODELS / part, root / "models" / part, dirs_exist_ok=True)
    return standard_folders(root)


def test_what_is_missing_in_the_model_folders_is_told(tmp_path: Path) -> None:
    (only,) = model_findings(store(tmp_path))
    assert "only the small model" in only.text and str(tmp_path) in only.advice
    folders = store(tmp_path, "diffusion_models", "text_encoders")
    (tmp_path / "models/vae").mkdir()
    (tmp_path / "models/vae/ae.safetensors").write_bytes(b"not a weight file")
    found = {one.subject: one for one in model_findings(folders)}
    assert found["transformer"].good and found["T5 text encoder"].good and found["CLIP text encoder"].good
    assert "FLUX.1-schnell" in found["autoencoder"].advice
    assert "vae/ae.safetensors cannot be read" in found["model file"].text and found["model file"].advice


def test_little_room_and_folders_that_cannot_be_written_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = SimpleNamespace(free=2 * storage.LITTLE_ROOM)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room)  # how full this disk is has no part in the test
    (good,) = storage.room_findings([tmp_path / "output", tmp_path / "output"])
    assert good.good and "free" in good.text
    room.free = storage.LITTLE_ROOM - 1
    (full,) = storage.room_findings([tmp_path / "output"])
    assert not full.good and "Free some space" in full.advice
    room.free = storage.LITTLE_ROOM
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (refused,) = storage.room_findings([tmp_path / "output"])
    assert "cannot be written" in refused.advice


def test_a_port_in_use_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert f"--port {port + 1}" in service.port_finding(port).advice
    assert service.port_finding(port).good


def test_lines_fit_the_terminal() -> None:
    told = lines(Finding("PyTorch", "2.13.0", "word " * 40), 60)
    assert told[0].startswith("todo  PyTorch") and all(len(line) <= 60 for line in told) and len(told) > 3
