"""Our nodes and ComfyUI's own, in one process, on the same values: their results must be equal.

    python tests/comfyui/beside.py /path/to/ComfyUI

Samplers with options and shifts denoise with a small FLUX of random weights, ours and ComfyUI's; schedules, texts,
batches and files are compared value by value. Prints the largest difference of each, of the largest number.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(Path(__file__).parent)]

import conftest  # noqa: E402, F401  # this checkout as `sluice`, before ComfyUI is there: so it stands alone
from doubles.sampler_options import SAMPLERS  # noqa: E402
from inside import enter  # noqa: E402
from samplers import core_model, save  # noqa: E402  # now: ComfyUI has modules of these names
from sluice.nodes import NODE_CLASSES  # noqa: E402
from sluice.nodes.binding import bound_to  # noqa: E402
from sluice.nodes.host import Host, pack_host  # noqa: E402

OURS = bound_to(pack_host(), NODE_CLASSES)
Outcome = tuple[str, float]

SCHEDULES: dict[str, list[dict[str, Any]]] = {
    "PolyexponentialScheduler": [
        {"steps": s, "sigma_max": 14.6, "sigma_min": 0.03, "rho": r} for s, r in ((7, 1), (20, 2.5))
    ],
    "LaplaceScheduler": [{"steps": 9, "sigma_max": 14.6, "sigma_min": 0.03, "mu": 0.2, "beta": 0.5}],
    "VPScheduler": [{"steps": 11, "beta_d": 19.9, "beta_min": 0.1, "eps_s": 0.001}],
    "AlignYourStepsScheduler": [
        {"model_type": kind, "steps": steps, "denoise": denoise}
        for kind in ("SD1", "SDXL", "SVD")
        for steps, denoise in ((10, 1.0), (7, 1.0), (25, 0.5), (4, 0.0))
    ],
    "OptimalStepsScheduler": [
        {"model_type": kind, "steps": steps, "denoise": denoise}
        for kind in ("FLUX", "Wan", "Chroma")
        for steps, denoise in ((10, 1.0), (20, 0.7), (33, 1.0))
    ],
}

TEXTS: dict[str, list[dict[str, Any]]] = {
    "StringConcatenate": [{"string_a": "a", "string_b": "b", "delimiter": ", "}],
    "StringSubstring": [{"string": "abcdef", "start": -3, "end": 5}],
    "StringLength": [{"string": "äöü"}],
    "CaseConverter": [
        {"string": "a cAt’s hat", "mode": mode} for mode in ("UPPERCASE", "lowercase", "Capitalize", "Title Case")
    ],
    "StringTrim": [{"string": " \n a ", "mode": mode} for mode in ("Both", "Left", "Right")],
    "StringReplace": [{"string": "a cat", "find": "a", "replace": "o"}],
    "StringContains": [{"string": "A Cat", "substring": "cat", "case_sensitive": case} for case in (True, False)],
    "StringCompare": [
        {"string_a": "A Cat", "string_b": text, "mode": mode, "case_sensitive": case}
        for text, mode, case in itertools.product(
            ("a", "cat", "A Cat"), ("Starts With", "Ends With", "Equal"), (True, False)
        )
    ],
    "RegexMatch": [
        {"string": "A\ncat", "regex_pattern": pattern, "case_insensitive": i, "multiline": m, "dotall": d}
        for pattern, i, m, d in itertools.product(("^CAT$", "a.c", "("), (True, False), (True, False), (True, False))
    ],
    "RegexExtract": [
        {"string": "a1 b22 c", "regex_pattern": pattern, "mode": mode, "case_insensitive": True, "multiline": False,
         "dotall": False, "group_index": group}
        for pattern, mode, group in itertools.product(
            (r"[a-z]\d*", r"([a-z])(\d+)", r"(\d)", "nothing", "("),
            ("First Match", "All Matches", "First Group", "All Groups"), (0, 1, 2, 3)
        )
    ],
    "RegexReplace": [
        {"string": "a1 b2", "regex_pattern": r"([a-z])(\d)", "replace": r"\2\1", "count": count} for count in (0, 1)
    ],
}  # fmt: skip


def theirs(name: str) -> Any:
    import nodes

    return nodes.NODE_CLASS_MAPPINGS[name]


def their_result(name: str, **values: Any) -> tuple[Any, ...]:
    """What ComfyUI's node returns, of either generation."""
    node_class = theirs(name)
    if hasattr(node_class, "execute"):
        return tuple(node_class.execute(**values).result)
    return tuple(getattr(node_class(), node_class.FUNCTION)(**values))


def our_result(name: str, **values: Any) -> tuple[Any, ...]:
    node_class = OURS["Sluice" + name]
    return tuple(getattr(node_class(), node_class.FUNCTION)(**values))


def difference(ours: Any, others: Any) -> float:
    """Of two tensors, latents or lists of such: of the largest number. Of other values: 0 if equal."""
    import torch

    if isinstance(ours, dict):
        assert ours.keys() == others.keys(), (ours.keys(), others.keys())
        return max(difference(ours[key], others[key]) for key in ours)
    if isinstance(ours, (list, tuple)) and ours and isinstance(ours[0], (dict, torch.Tensor)):
        assert len(ours) == len(others)
        return max(map(difference, ours, others))
    if not isinstance(ours, torch.Tensor):
        assert ours == others, (ours, others)
        return 0.0
    assert ours.shape == others.shape, (ours.shape, others.shape)
    return float((ours - others).abs().max() / others.abs().max().clamp(min=1e-9)) if ours.numel() else 0.0


class Models:
    """The same small FLUX twice, and what is denoised with it."""

    def __init__(self, folder: Path) -> None:
        import torch
        from sluice.flux_core.runtime import handles
        from sluice.flux_core.runtime.runtime import Runtime
        from sluice.flux_core.runtime.settings import Settings

        self.core = core_model()
        save(self.core, folder / "small.safetensors")
        self.ours = handles.load_flux(Runtime(Settings("cpu", "fp32")), folder / "small.safetensors")
        generator = torch.Generator().manual_seed(6)
        values = {"pooled_output": torch.randn(1, 24, generator=generator), "guidance": 3.0}
        self.positive = [[torch.randn(1, 16, 48, generator=generator), values]]
        self.picture = {"samples": torch.randn(1, 16, 16, 12, generator=generator)}

    def run(self, whose: str, model: Any, sampler: Any, sigmas: Any) -> Any:
        """The denoised latent."""
        result = our_result if whose == "ours" else their_result
        (guider,) = result("BasicGuider", model=model, conditioning=self.positive)
        (noise,) = result("RandomNoise", noise_seed=7)
        parts = {"guider": guider, "sampler": sampler, "sigmas": sigmas, "latent_image": dict(self.picture)}
        return result("SamplerCustomAdvanced", noise=noise, **parts)[0]["samples"]


def sampling(models: Models) -> Iterator[Outcome]:
    (sigmas,) = their_result("BasicScheduler", model=models.core, scheduler="simple", steps=8, denoise=1.0)
    for name, cases in SAMPLERS.items():
        for values in cases:
            model = {"model": models.ours} if name == "SamplerSASolver" else {}
            (sampler,) = our_result(name, **values, **model)
            ours = models.run("ours", models.ours, sampler, sigmas)
            (sampler,) = their_result(name, **values, **({"model": models.core} if model else {}))
            yield f"{name} {values}", difference(ours, models.run("theirs", models.core, sampler, sigmas))


def shifts(models: Models) -> Iterator[Outcome]:
    (mine,), (other,) = (result("KSamplerSelect", sampler_name="euler") for result in (our_result, their_result))
    for name, shift in (("ModelSamplingSD3", 3.0), ("ModelSamplingAuraFlow", 1.73), ("ModelSamplingAuraFlow", 1.0)):
        (ours,) = our_result(name, model=models.ours, shift=shift)
        (core,) = their_result(name, model=models.core, shift=shift)
        for scheduler in ("simple", "normal", "beta"):
            given = {"scheduler": scheduler, "steps": 6, "denoise": 1.0}
            (a,) = our_result("BasicScheduler", model=ours, **given)
            (b,) = their_result("BasicScheduler", model=core, **given)
            yield f"{name} {shift} {scheduler}", difference(a, b)
            made = models.run("ours", ours, mine, b)
            yield f"{name} {shift} {scheduler} denoised", difference(made, models.run("theirs", core, other, b))


def values(table: dict[str, list[dict[str, Any]]]) -> Iterator[Outcome]:
    for name, cases in table.items():
        for case in cases:
            yield f"{name} {case}", max(map(difference, our_result(name, **case), their_result(name, **case)))


def extended() -> Iterator[Outcome]:
    import torch

    name, sigmas = "ExtendIntermediateSigmas", torch.tensor([1.0, 0.7, 0.3, 0.0])
    for start, end, spacing in itertools.product((-1.0, 0.8), (12.0, 0.5, 0.0), ("linear", "cosine", "sine")):
        case = {"sigmas": sigmas, "steps": 3, "start_at_sigma": start, "end_at_sigma": end, "spacing": spacing}
        by = max(map(difference, our_result(name, **case), their_result(name, **case)))
        yield f"{name} {start} {end} {spacing}", by


def batches() -> Iterator[Outcome]:
    import torch

    images = [torch.rand(count, 8, 6, 3) for count in (2, 1, 4)]
    latents = [
        {"samples": torch.rand(2, 16, 4, 3)},
        {"samples": torch.rand(3, 16, 4, 3), "noise_mask": torch.rand(1, 1, 32, 24), "batch_index": [5, 6, 7]},
        {"samples": torch.rand(1, 16, 5, 3)},
    ]
    for size in (1, 2, 3, 10):
        for name, case in (("RebatchImages", {"images": images}), ("RebatchLatents", {"latents": latents})):
            asked: dict[str, Any] = {**case, "batch_size": [size]}
            yield f"{name} {size}", difference(our_result(name, **asked)[0], their_result(name, **asked)[0])


def files(folder: Path) -> Iterator[Outcome]:
    """A latent saved here is read there, and the other way round; so are animations."""
    import folder_paths
    import torch
    from PIL import Image
    from sluice.flux_core.io.folders import standard_folders

    OURS.update(bound_to(Host(standard_folders(folder)), NODE_CLASSES))
    for kind in ("input", "output"):
        (folder / kind).mkdir(exist_ok=True)
        getattr(folder_paths, f"set_{kind}_directory")(str(folder / kind))
    latent = {"samples": torch.rand(1, 16, 4, 3)}
    for saver, load in ((our_result, their_result), (their_result, our_result)):
        node_class = OURS["SluiceSaveLatent"] if saver is our_result else theirs("SaveLatent")
        node = node_class()
        shown = node.save(samples=latent, filename_prefix="x", prompt={}, extra_pnginfo={"workflow": {}})
        name = shown["ui"]["latents"][0]["filename"]
        yield f"SaveLatent {name}", difference(load("LoadLatent", latent=f"{name} [output]")[0], latent)
    images = torch.rand(3, 16, 16, 3)
    for name, options in (
        ("SaveAnimatedWEBP", {"fps": 6.0, "lossless": True, "quality": 80, "method": "fastest"}),
        ("SaveAnimatedPNG", {"fps": 6.0, "compress_level": 1}),
    ):
        metadata = {"prompt": {"1": {}}, "extra_pnginfo": {"workflow": {"a": 1}}}
        given = {"images": images, "filename_prefix": name, **metadata, **options}
        ours = OURS["Sluice" + name]().save(**given)["ui"]
        reference = theirs(name)()
        reference.output_dir = str(folder / "output")
        other = reference.save_images(**given)["ui"]
        assert list(ours["animated"]) == list(other["animated"])
        frames = []
        for told in (ours, other):
            with Image.open(folder / "output" / told["images"][0]["filename"]) as picture:
                found = []
                for number in range(picture.n_frames):
                    picture.seek(number)
                    found.append(torch.tensor(list(picture.convert("RGB").tobytes())))
                frames.append(torch.stack(found))
        yield name, difference(frames[0].float(), frames[1].float())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comfyui")
    enter(parser.parse_args().comfyui)
    import torch

    import nodes

    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    worst: dict[str, float] = {}
    with torch.inference_mode(), tempfile.TemporaryDirectory() as place:
        models = Models(Path(place))
        denoised = itertools.chain(sampling(models), shifts(models))
        computed = itertools.chain(values(SCHEDULES), extended(), values(TEXTS), batches(), files(Path(place)))
        for what, by in itertools.chain(denoised, computed):
            name = what.partition(" ")[0]
            worst[name] = max(worst.get(name, 0.0), by)
            if by > 1e-5:
                print(f"{what} differs by {by:.1e}")
    for name, by in worst.items():
        print(f"{name:32s} {by:.1e}")
    print(f"{sum(by <= 1e-5 for by in worst.values())} of {len(worst)} nodes agree to 1e-5")


if __name__ == "__main__":
    main()
