"""The command line reports errors in one sentence and without a traceback, and sets the values that it is given."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sluice.flux_core.commands import cli, overrides
from sluice.flux_core.commands.inspect import workflow_facts
from sluice.flux_core.errors import PromptError
from sluice.flux_core.graph.canvas_edit import canvas_saying
from sluice.flux_core.io.folders import standard_folders
from sluice.flux_core.worker.registry import standalone_tables
from sluice.flux_core.worker.required_models import as_listed, wanted_files
from sluice.nodes.host import pack_host

CLASSES, _ = standalone_tables(pack_host())


def node(class_type: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"class_type": class_type, "inputs": inputs}
    return made | ({"_meta": {"title": title}} if title else {})


def prompt() -> dict[str, Any]:
    return {
        "1": node("UNETLoader", unet_name="flux1-dev.safetensors", weight_dtype="default"),
        "2": node("DualCLIPLoader", clip_name1="t5.sft", clip_name2="clip_l.sft", type="flux"),
        "3": node("CLIPTextEncode", "Prompt", text="a cat", clip=["2", 0]),
        "4": node("CLIPTextEncode", "Negative", text="", clip=["2", 0]),
        "5": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "6": node(
            "KSampler",
            seed=["9", 0],
            steps=4,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
            model=["1", 0],
            positive=["3", 0],
            negative=["4", 0],
            latent_image=["5", 0],
        ),
        "7": node("RandomNoise", noise_seed=1),
        "8": node("PreviewImage", images=["6", 0]),
        "9": node("PrimitiveInt", value=5),
    }


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLUICE_DEBUG", raising=False)
    return tmp_path


def write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


# Values given on the command line


def changed(*settings: str, seed: int | None = None) -> dict[str, Any]:
    return overrides.apply(prompt(), CLASSES, settings, None if seed is None else overrides.seeds(seed, 1)[0])


@pytest.mark.parametrize("named", ["3.text", "Prompt.text", "prompt.text"])
def test_a_node_is_named_by_id_or_title(named: str) -> None:
    assert changed(f"{named}=a = dog.")["3"]["inputs"]["text"] == "a = dog."


def test_a_node_is_named_by_its_class_or_not_at_all_if_only_one_can_be_meant() -> None:
    assert changed("ksampler.steps=9")["6"]["inputs"]["steps"] == 9
    assert changed("width=128")["5"]["inputs"]["width"] == 128
    assert changed("PrimitiveInt.value=7")["9"]["inputs"]["value"] == 7


def test_values_are_json_unless_the_input_takes_text() -> None:
    assert changed("Prompt.text=12")["3"]["inputs"]["text"] == "12"
    assert changed("6.denoise=0.5")["6"]["inputs"]["denoise"] == 0.5
    assert changed("6.sampler_name=heun")["6"]["inputs"]["sampler_name"] == "heun"
    assert changed("2.device=cpu")["2"]["inputs"]["device"] == "cpu"


def test_a_seed_is_set_wherever_there_is_one_also_behind_a_number_node() -> None:
    seeded = changed(seed=2**64 - 1)
    assert seeded["7"]["inputs"]["noise_seed"] == seeded["9"]["inputs"]["value"] == 2**64 - 1
    assert seeded["6"]["inputs"]["seed"] == ["9", 0]


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("CLIPTextEncode.text=x", ["node 3", "node 4", "Name one: 3.text="]),
        ("text=x", ["node 3", "node 4"]),
        ("Nobody.text=x", ["no node 'Nobody'", 'node 3 "Prompt"']),
        ("6.colour=x", ["no input 'colour'", "sampler_name"]),
        ("colour=x", ["no node has an input 'colour'"]),
        ("steps", ["NODE.INPUT=VALUE"]),
        ('steps=["1", 0]', ["a number, a text, true or false"]),
    ],
)
def test_a_setting_that_fits_nowhere_is_explained(setting: str, told: list[str]) -> None:
    with pytest.raises(PromptError) as error:
        changed(setting)
    assert all(part in str(error.value) for part in told), error.value


def test_all_settings_that_fit_nowhere_are_told_at_once() -> None:
    with pytest.raises(PromptError) as error:
        overrides.apply({"1": node("VAELoader", vae_name="x")}, CLASSES, ["a.b=1", "c.d=2"], overrides.seeds(3, 1)[0])
    assert len(error.value.problems) == 3


def test_the_prompt_given_is_not_changed() -> None:
    before = prompt()
    overrides.apply(before, CLASSES, ["6.steps=9"], overrides.seeds(3, 1)[0])
    assert before == prompt()


# The canvas has the same contents as the prompt


def canvas() -> dict[str, Any]:
    return {
        "nodes": [
            {"id": 1, "type": "RandomNoise", "order": 0, "widgets_values": [1, "randomize"], "outputs": []},
            {"id": 2, "type": "BasicScheduler", "order": 1, "widgets_values": ["simple", 20, 1], "outputs": []},
            {
                "id": 3,
                "type": "KSampler",
                "order": 2,
                "outputs": [],
                "widgets_values": [5, "fixed", 20, 1, "euler", "simple", 1],
            },
        ],
        "links": [],
    }


def canvas_prompt() -> dict[str, Any]:
    return {
        "1": node("RandomNoise", noise_seed=1),
        "2": node("BasicScheduler", scheduler="simple", steps=20, denoise=1),
        "3": node("KSampler", seed=5, steps=20, cfg=1, sampler_name="euler", scheduler="simple", denoise=1),
    }


def test_widgets_on_the_canvas_follow_the_prompt() -> None:
    settings = ["2.steps=8", "2.scheduler=beta", "3.steps=4", "3.cfg=2"]
    after = overrides.apply(canvas_prompt(), CLASSES, settings, overrides.seeds(99, 1)[0])
    told = canvas_saying(canvas(), canvas_prompt(), after, CLASSES)
    assert told is not None
    assert [box["widgets_values"] for box in told["nodes"]] == [
        [99, "randomize"],
        ["beta", 8, 1],
        [99, "fixed", 4, 2, "euler", "simple", 1],
    ]


def test_an_unchanged_canvas_is_passed_on_as_it_is() -> None:
    drawn = canvas()
    assert canvas_saying(drawn, canvas_prompt(), canvas_prompt(), CLASSES) is drawn


def test_a_canvas_that_cannot_say_the_same_is_dropped() -> None:
    after = canvas_prompt()
    after["2"]["inputs"]["steps"] = 8
    one_node: list[dict[str, Any]] = [{"id": 2, "type": "BasicScheduler"}]
    for nodes in ([], one_node):
        spoilt = {"nodes": nodes, "links": []}
        assert canvas_saying(spoilt, canvas_prompt(), after, CLASSES) is None


# What the person sees


def test_the_front_page_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    page = capsys.readouterr().out
    assert all(f"  {name}" in page for name in cli.COMMANDS)


@pytest.mark.parametrize("argv", [["bogus"], ["run"], ["run", "x", "--seed", "-1"], ["run", "x", "--dtype", "int4"]])
def test_a_wrong_command_line_ends_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_everything_wrong_with_a_workflow_is_told_at_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = prompt() | {"10": node("SaveImage", images=["6", 0], filename_prefix="x")}
    broken["6"]["inputs"]["steps"] = "many"
    assert cli.main(["run", write(here / "w.json", broken)]) == 2
    told = capsys.readouterr()
    for part in (
        "w.json cannot be run",
        "flux1-dev.safetensors",
        "black-forest-labs/FLUX.1-dev",
        str(here / "models"),
        "t5.sft",
        "clip_l.sft",
        "'many'",
        "--models DIR",
        "images: it takes IMAGE",
    ):
        assert part in told.err, told.err
    assert told.out == "" and not (here / "output").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no file"),
        (b"", "empty"),
        (b"hello", "neither"),
        (b"{}", "neither a canvas"),
        (b"[" * 100_000, "nested too deep"),
        (b"\x89PNG\r\n\x1a\n\0\0", "cut off"),
        (b'{"1": {"class_type": "NoSuchNode", "inputs": {}}}', "NoSuchNode"),
        (b'{"1": {"class_type": "VAELoader", "inputs": {"vae_name": "x"}}}', "no output"),
        (
            b'{"1": {"class_type": "ImageInvert", "inputs": {"image": ["2", 0]}}, "2": {"class_type": "ImageInvert",'
            b' "inputs": {"image": ["1", 0]}}, "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0],'
            b' "filename_prefix": "x"}}}',
            "circle",
        ),
    ],
)
def test_a_file_that_cannot_be_run_is_told_in_a_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, told: str
) -> None:
    file = here / "w.png"
    if content is not None:
        file.write_bytes(content)
    code = cli.main(["run", str(file)])
    assert code == (1 if content is None else 2)
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error
    assert not (here / "output").exists()


def test_with_json_an_error_is_json_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "nothing.png", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "MissingFileError"


def test_ctrl_c_during_an_import_that_would_swallow_it_ends_the_program(prologue: str) -> None:
    code = (
        "import signal\n"
        "from sluice.flux_core.commands import run\n"
        "with run.first_import():\n"
        "    try: signal.raise_signal(signal.SIGINT)\n"
        "    except BaseException: pass\n"
        "print('went on')"
    )
    ended = subprocess.run([sys.executable, "-c", prologue + code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr.strip()) == (130, "", "Stopped.")


def test_what_the_tests_start_hears_ctrl_c_also_in_the_background_of_a_shell() -> None:
    tests = str(Path(__file__).parents[1])
    child = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    code = (
        "import signal, subprocess, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "if sys.argv[1:]: sys.path.insert(0, sys.argv[1]); import conftest\n"
        f"subprocess.run([sys.executable, '-c', {child!r}], check=True)\n"
    )
    for arguments, heard in (([], "False"), ([tests], "True")):
        told = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        ).stdout
        assert told.strip() == heard


def test_an_unexpected_error_is_one_line_unless_debugging(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Room:
        @staticmethod
        def add_arguments(parser: argparse.ArgumentParser) -> None: ...

        @staticmethod
        def run(args: argparse.Namespace) -> int:
            raise ZeroDivisionError("oh")

    monkeypatch.setattr(importlib, "import_module", lambda *_: Room)
    assert cli.main(["inspect"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "sluice: unexpected ZeroDivisionError: oh. SLUICE_DEBUG=1 shows where it happened."
    ]
    monkeypatch.setenv("SLUICE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main(["inspect"])
    monkeypatch.setattr(Room, "run", staticmethod(lambda args: (_ for _ in ()).throw(KeyboardInterrupt)))
    assert cli.main(["inspect"]) == 130
    monkeypatch.delenv("SLUICE_DEBUG")
    capsys.readouterr()
    monkeypatch.setattr(Room, "run", staticmethod(lambda args: open(here / "nowhere" / "file", "w")))
    assert cli.main(["inspect"]) == 1
    assert capsys.readouterr().err == f"sluice: {here / 'nowhere' / 'file'}: No such file or directory.\n"


def test_inspect_tells_prompts_seeds_sizes_and_models(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "models/text_encoders").mkdir(parents=True)
    (here / "models/text_encoders/t5.sft").touch()
    file = write(here / "w.json", prompt())
    facts = workflow_facts(Path(file), standard_folders(here))
    assert [text["value"] for text in facts["texts"]] == ["a cat", ""]
    assert {(seed["input"], seed["value"]) for seed in facts["seeds"]} == {("seed", 5), ("noise_seed", 1)}
    assert [(size["width"], size["height"]) for size in facts["sizes"]] == [(64, 64)]
    assert [bool(model["path"]) for model in facts["models"]] == [False, True, False]
    ids = [told["id"] for told in facts["nodes"]]
    assert sorted(ids) == sorted(prompt()) and ids.index("2") < ids.index("3") < ids.index("6") < ids.index("8")
    assert cli.main(["inspect", file]) == 0
    page = capsys.readouterr().out
    assert "a cat" in page and "MISSING" in page and "64x64" in page
    assert cli.main(["inspect", file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nodes"]


def test_inspect_shows_nodes_it_does_not_know_and_circles(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = {"1": node("Alien", x=["2", 0]), "2": node("ImageInvert", image=["1", 0])}
    assert cli.main(["inspect", write(here / "w.json", odd)]) == 0
    assert "[unknown here]" in capsys.readouterr().out


def test_a_model_named_as_on_windows_is_found(here: Path) -> None:
    (here / "models/vae/sub").mkdir(parents=True)
    (here / "models/vae/sub/x.sft").touch()
    asked, folders = {"1": node("VAELoader", vae_name="sub\\x.sft")}, standard_folders(here)
    wanted = as_listed(asked, wanted_files(asked, CLASSES, folders), folders)
    assert wanted["1"]["inputs"]["vae_name"] == "sub/x.sft"


def test_reading_and_checking_workflows_needs_no_torch(here: Path, prologue: str) -> None:
    file = write(here / "w.json", prompt())
    code = (
        "from sluice.flux_core.commands.cli import main\n"
        f"code = main(['run', {file!r}]), main(['inspect', {file!r}])\n"
        "heavy = {'torch', 'numpy', 'PIL', 'scipy', 'transformers', 'torchvision', 'aiohttp'}\n"
        "print('last', code, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", prologue + code], cwd=here, env={}, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["last (2, 0) []"], done.stderr


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_the_program_lets_waiting_threads_sleep_unless_told_otherwise(
    prologue: str, given: str | None, expected: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if given is not None:
        environment["OMP_WAIT_POLICY"] = given
    code = prologue + (
        "import os\nfrom sluice.flux_core.commands import cli\n"
        "cli.main = lambda: print(os.environ['OMP_WAIT_POLICY']) or 0\ncli.program()\n"
    )
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == expected


def test_seeds_of_several_runs() -> None:
    def used(given: int | str | None, count: int, old: int = 7) -> list[int | None]:
        return [seed and seed(old) for seed in overrides.seeds(given, count)]

    assert used(None, 1) == [None] and used(None, 3) == [7, 8, 9]
    assert used(5, 1) == [5] and used(2**64 - 1, 2) == [2**64 - 1, 0]
    drawn = used("random", 3)
    assert len(set(drawn)) == 3 and all(seed is not None and 0 <= seed < 2**53 for seed in drawn)


def test_a_number_node_that_feeds_two_samplers_is_counted_up_once() -> None:
    linked = {
        "1": node("PrimitiveInt", value=7),
        "2": node("KSampler", seed=["1", 0]),
        "3": node("KSampler", seed=["1", 0]),
    }
    assert overrides.apply(linked, CLASSES, [], overrides.seeds(None, 3)[2])["1"]["inputs"]["value"] == 9


def test_nodes_are_named_by_what_the_editor_calls_them() -> None:
    nodes = {"1": node("VAELoader", vae_name="x"), "2": node("KSampler", steps=1)}
    changed = overrides.apply(nodes, CLASSES, ["Load VAE.vae_name=y"], None, {"VAELoader": "Load VAE"})
    assert changed["1"]["inputs"]["vae_name"] == "y"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["serve", "--listen"], "--host 0.0.0.0"),
        (["serve", "--lowvram", "--cpu"], "--device cpu"),
        (["run", "x.png", "--reserve-vram=2"], "--vram SIZE"),
        (["run", "x.png", "--count", "0"], "a count is"),
        (["run", "x.png", "--seed", "often"], "or random"),
        (["--listen"], "--host 0.0.0.0"),
        (["run", "x.png", "--lowvram", "--set"], "--vram SIZE"),
    ],
)
def test_flags_of_comfyui_are_answered_with_ours(
    line: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(line)
    assert ended.value.code == 2 and told in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    workflow = Path(__file__).parents[2] / "workflows" / "text_to_image.png"
    assert cli.main(["run", str(workflow), "--out", str(tmp_path / "file" / "below")]) == 1
    assert "is a file. Choose another --out." in capsys.readouterr().err


def test_a_plan_is_for_the_card_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    class Told:
        stdout = "NVIDIA GeForce RTX 3060, 12288\nNVIDIA GeForce RTX 3090, 24576\n"

    monkeypatch.setattr(subprocess, "run", lambda *_, **__: Told())
    assert cli.main(["plan", "flux1-dev-fp8"]) == 0
    told = capsys.readouterr().out
    assert "RTX 3060" in told and "12.00 GiB of memory" in told and "No card" not in told

    def nothing(*_: object, **__: object) -> None:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", nothing)
    assert cli.main(["plan", "flux1-dev-fp8"]) == 0
    assert "this plan is for RTX 4060" in capsys.readouterr().out
