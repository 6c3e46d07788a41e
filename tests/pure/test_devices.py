"""--devices: lists of devices and budgets, each refused with one sentence when they do not fit."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest
import yaml
from sluice.flux_core.commands import work
from sluice.flux_core.commands.devices import budgets, device_names, workers_of
from sluice.flux_core.errors import InputError
from sluice.flux_core.workers.process import with_budget


def given(**options: str | None) -> argparse.Namespace:
    usual: dict[str, str | None] = {"split": "auto", "mesh": None, "shares": None, "vram": "auto", "ram": "auto"}
    return argparse.Namespace(**({"devices": None, "device": None} | usual | options))


def test_devices_are_counted_or_named() -> None:
    assert device_names("auto", lambda: 2) == ("cuda:0", "cuda:1") and device_names("auto", lambda: 0) == ("cpu",)
    assert device_names("cuda:1, cpu:0", lambda: 0) == ("cuda:1", "cpu:0")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cpu:0,cpu:0", "cpu:0 is named twice"),
        ("cuda,cuda:0", "cuda:0 is named twice"),
        ("cpu+cpu:0", "cpu:0 is named twice"),
        ("cuda:0+cuda:1,cuda:1", "cuda:1 is named twice"),
        ("cpu:0+", "is no device"),
        ("cuda:0,,cuda:1", "is no device"),
        ("the fast one", "is no device"),
    ],
)
def test_lists_that_do_not_fit_are_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        device_names(text)


def test_each_device_has_its_budget_and_ram_is_divided() -> None:
    assert budgets(("a", "b"), "6G,8G", "auto") == {
        "a": {"vram": "6G", "ram": "auto"},
        "b": {"vram": "8G", "ram": "auto"},
    }
    assert budgets(("a", "b"), "6G", "16G") == {name: {"vram": "6G", "ram": "8G"} for name in "ab"}
    assert budgets(("a", "b"), "off", "auto")["b"]["vram"] == "off"
    assert budgets(("a", "b"), "auto", "2G,3G")["b"]["ram"] == "3G"
    with pytest.raises(InputError, match=r"--vram 1G,2G,3G gives 3 sizes for 2 devices \(a, b\)"):
        budgets(("a", "b"), "1G,2G,3G", "auto")
    with pytest.raises(InputError, match="'Much' is not a size"):  # as it was typed
        budgets(("a", "b"), "1G,Much", "auto")


def test_devices_that_are_joined_are_one_worker_with_a_process_for_each() -> None:
    options = workers_of(given(devices="cpu:0+cpu:1", ram="4G", split="sp-ring"), {"dtype": "fp32"})
    assert list(options) == ["cpu:0+cpu:1"]
    one = options["cpu:0+cpu:1"]
    assert one["device"] == "cpu" and one["ram"] == "2G" and one["team"]["names"] == ["cpu:0", "cpu:1"]
    (member,) = one["team"]["members"]
    assert (member["device"], member["dtype"], member["ram"], member["threads"]) == (
        "cpu",
        "fp32",
        "2G",
        one["threads"],
    )
    assert one["team"]["split"] == {"sp": 2, "tp": 1, "attention": "ring", "cfg": 1} and one["team"]["shares"] == 2
    mixed = workers_of(given(devices="cuda:0+cuda:1,cuda:2", vram="6G,8G", split="tp", shares=None), {})
    assert mixed["cuda:2"]["vram"] == "8G" and "team" not in mixed["cuda:2"]
    assert [member["device"] for member in mixed["cuda:0+cuda:1"]["team"]["members"]] == ["cuda:1"]
    unequal = workers_of(given(devices="cuda:0+cuda:1", vram="20G,10G", ram="8G"), {})["cuda:0+cuda:1"]
    (second,) = unequal["team"]["members"]
    assert (unequal["vram"], second["vram"], unequal["ram"], second["ram"]) == ("20G", "10G", "4G", "4G")
    (second,) = workers_of(given(devices="cpu:0+cpu:1", ram="1G,2G"), {})["cpu:0+cpu:1"]["team"]["members"]
    assert second["ram"] == "2G"
    changed = with_budget(unequal, {"vram": "6G", "ram": "2G"})
    assert [(each["vram"], each["ram"]) for each in (changed, *changed["team"]["members"])] == [("6G", "2G")] * 2
    assert unequal["team"]["members"][0]["vram"] == "10G" and "team" not in with_budget(
        {"device": "cpu"}, {"ram": "2G"}
    )
    two = workers_of(given(devices="cpu:0+cpu:1,cpu:2", ram="4G,3G"), {})
    assert (two["cpu:0+cpu:1"]["ram"], two["cpu:2"]["ram"]) == ("2G", "3G")
    for wrong, said in (
        ({"devices": "cuda:0,cuda:1", "split": "tp"}, "--split says how devices joined by"),
        ({"shares": "2,1"}, "--shares says how devices joined by"),
        ({"devices": "cuda:0+cuda:1", "split": "tp", "shares": "2,1"}, "with --split tp2 none do"),
        ({"devices": "cpu:0+cpu:1", "ram": "1G,2G,3G"}, "3 sizes for 2 devices"),
    ):
        with pytest.raises(InputError, match=said):
            workers_of(given(**wrong), {})
    with pytest.raises(InputError, match="for 4 devices, and 2 are given"):
        workers_of(given(devices="cpu:0+cpu:1", split="sp2tp2"), {})


def test_workers_have_devices_and_processors_share_threads() -> None:
    assert workers_of(given(), {"base": "x"}) == {"auto": {"base": "x", "vram": "auto", "ram": "auto"}}
    two = workers_of(given(devices="cpu:0,cpu:1", ram="2G,3G"), {})
    assert [one["device"] for one in two.values()] == ["cpu", "cpu"] and two["cpu:1"]["ram"] == "3G"
    assert two["cpu:0"]["threads"] == two["cpu:1"]["threads"] >= 1
    mixed = workers_of(given(devices="cuda:1,cpu:0"), {})
    assert mixed["cuda:1"]["device"] == "cuda:1" and "threads" not in mixed["cpu:0"]
    with pytest.raises(InputError, match="give one of the two"):
        workers_of(given(devices="cpu:0", device="cpu"), {})


def test_the_examples_for_clusters_call_sluice_work_as_it_is() -> None:
    folder = Path(__file__).parents[2] / "examples"
    (deployment,) = yaml.safe_load_all((folder / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    slurm = (folder / "slurm.sh").read_text().replace("\\\n", " ")
    called = re.search(r"exec srun (sluice work .*)", slurm)
    assert called is not None
    for command in (container["command"] + container["args"], shlex.split(called[1])):
        parser = argparse.ArgumentParser()
        work.add_arguments(parser)
        assert command[:2] == ["sluice", "work"]
        args = parser.parse_args(command[2:])
        assert args.token and args.name and args.grace < pod["terminationGracePeriodSeconds"]
