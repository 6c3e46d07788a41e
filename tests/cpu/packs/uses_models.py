"""A pack that works on models, latents and pictures through ComfyUI's modules, as packs do."""

from __future__ import annotations

import os
from typing import Any

import comfy.model_management as mm
import comfy.model_sampling
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.utils
import execution
import folder_paths
import latent_preview
import node_helpers
import server
import torch
from comfy.model_base import SDXL, BaseModel
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui
from comfy_extras.nodes_custom_sampler import Guider_Basic, Noise_RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from comfy_extras.nodes_mask import GrowMask, composite
from comfy_extras.nodes_post_processing import Blur

import nodes

TABLE = {"mine": 1, **dict(comfy.utils.UNET_MAP_BASIC)}  # for models that do not exist here


class Wrapper(BaseModel, SDXL):  # type: ignore[misc]  # ComfyUI has no types
    """Built on what is there and on what is not."""

    def run(self, function: BaseModel.apply_model) -> None:
        """Only named, as a type."""


def replaced(module: Any, name: str) -> Any:
    """A function of ComfyUI's that a pack replaces, if it exists."""
    return getattr(module, name) if not hasattr(module, "never") else None


class Base:
    CATEGORY, FUNCTION = "test", "run"
    TAKES: dict[str, str] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {name: (kind, {}) for name, kind in cls.TAKES.items()}}


class Encode(Base):
    TAKES, RETURN_TYPES = {"clip": "CLIP", "text": "STRING"}, ("CONDITIONING",)

    def run(self, clip: Any, text: str) -> tuple[Any]:
        tokens = clip.clone().tokenize(text, return_word_ids=True)
        assert set(tokens) == {"l", "t5xxl"} and len(tokens["t5xxl"][0][0]) == 3
        cond, pooled = clip.encode_from_tokens(tokens, return_pooled=True)
        assert torch.equal(clip.encode_from_tokens(tokens, return_dict=True)["pooled_output"], pooled)
        assert torch.equal(clip.encode(text), cond)
        ((same, values),) = clip.encode_from_tokens_scheduled(tokens, add_dict={"guidance": 1.0})
        assert torch.equal(same, cond) and values["guidance"] == 1.0
        changed = node_helpers.conditioning_set_values([[cond, {"pooled_output": pooled}]], {"guidance": 3.5})
        return (changed,)


class Files(Base):
    """Everything from files, as loaders of packs read them."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")

    def run(self) -> tuple[Any, Any, Any]:
        def path(kind: str, part: str) -> Any:
            names = [name for name in folder_paths.get_filename_list(kind) if part in name]
            return folder_paths.get_full_path_or_raise(kind, names[0])

        model = comfy.sd.load_diffusion_model(path("diffusion_models", "tiny"), model_options={})
        clips = [path("text_encoders", "clip_l"), path("text_encoders", "t5xxl")]
        clip = comfy.sd.load_clip(ckpt_paths=clips, clip_type=comfy.sd.CLIPType.FLUX)
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(path("vae", "tiny")))
        return model, clip, vae


class Shift(Base):
    """The levels of ModelSamplingFlux, set as packs set them."""

    TAKES, RETURN_TYPES = {"model": "MODEL", "mu": "FLOAT"}, ("MODEL",)

    def run(self, model: Any, mu: float) -> tuple[Any]:
        class Levels(comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.CONST):  # type: ignore[misc]  # untyped
            pass

        assert isinstance(model, ModelPatcher) and model.model.latent_format.latent_channels == 16
        kinds = comfy.supported_models
        assert isinstance(model.model.model_config, (kinds.Flux, kinds.FluxSchnell))
        assert not isinstance(model.model.model_config, kinds.SD3)
        twin = model.clone()
        levels = Levels(model.model.model_config)
        levels.set_parameters(shift=mu)
        twin.add_object_patch("model_sampling", levels)
        assert (
            twin.get_model_object("model_sampling") is levels and model.get_model_object("model_sampling") is not levels
        )
        assert twin.is_clone(model) and twin.model_size() > 0 and not hasattr(twin, "something_else")
        soft = DifferentialDiffusion().apply(twin)[0]
        assert soft.handle().mask_function is not None and twin.handle().mask_function is None
        twin.model_options["transformer_options"]["mine"] = 1
        assert "mine" not in model.model_options["transformer_options"]
        return (twin,)


def at(told: dict[str, Any], scale: float) -> Any:
    return told["uncond_denoised"] + (told["cond_denoised"] - told["uncond_denoised"]) * scale


def half_at_last(apply_model: Any, told: dict[str, Any]) -> Any:
    """Halves the image of the last step."""
    image = apply_model(told["input"], told["timestep"], **told["c"])
    assert told["cond_or_uncond"] in ([0], [1])
    return image / 2 if float(told["timestep"][0]) < 0.7 else image


class Patch(Base):
    """Guidance by 2.5 in place of 4 in five ways, and one setting that our engine cannot honour."""

    TAKES, RETURN_TYPES = {"model": "MODEL", "how": "STRING"}, ("MODEL",)

    def run(self, model: Any, how: str) -> tuple[Any]:
        twin = model.clone()
        if how == "attn1":
            twin.set_model_attn1_replace(lambda *args: args[0], "dit", 1)
        elif how == "wrapper":
            twin.set_model_unet_function_wrapper(half_at_last)
        elif how == "cfg":
            twin.set_model_sampler_cfg_function(lambda told: told["input"] - at(told, 2.5))
        elif how == "post_cfg":
            twin.set_model_sampler_post_cfg_function(lambda told: at(told, 2.5))
        elif how == "pre_cfg":  # U + 4 (C' - U) = U + 2.5 (C - U)
            twin.set_model_sampler_pre_cfg_function(
                lambda told: [torch.lerp(told["conds_out"][1], told["conds_out"][0], 2.5 / 4), told["conds_out"][1]]
            )
        else:
            twin.set_model_sampler_calc_cond_batch_function(self.batch)
        return (twin,)

    def batch(self, told: dict[str, Any]) -> Any:
        C, U = comfy.samplers.calc_cond_batch(told["model"], told["conds"], told["input"], told["sigma"], {})
        return [torch.lerp(U, C, 2.5 / 4), U]


class Guider(comfy.samplers.CFGGuider):  # type: ignore[misc]  # ComfyUI has no types
    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.fractions: list[float] = []

    def predict_noise(self, x: Any, timestep: Any, model_options: Any = None, seed: Any = None) -> Any:
        positive, negative = self.conds.get("positive"), self.conds.get("negative")
        C, U = comfy.samplers.calc_cond_batch(self.inner_model, [positive, negative], x, timestep, model_options)
        self.fractions.append(float(timestep[0]) / float(self.inner_model.model_sampling.sigma_max))
        if len(self.fractions) == 1:
            return U + (C - U) * self.cfg
        return comfy.samplers.cfg_function(
            self.inner_model, C, U, self.cfg, x, timestep, model_options=model_options, cond=positive, uncond=negative
        )


class Sample(Base):
    TAKES = {"model": "MODEL", "positive": "CONDITIONING", "latent": "LATENT", "way": "STRING"}
    RETURN_TYPES = ("LATENT",)

    def run(self, model: Any, positive: Any, latent: Any, way: str) -> tuple[Any]:
        return (getattr(self, way)(model, positive, latent),)

    def common(self, model: Any, positive: Any, latent: Any) -> Any:
        return nodes.common_ksampler(model, 7, 3, 1.0, "euler", "simple", positive, positive, latent)[0]

    def node(self, model: Any, positive: Any, latent: Any) -> Any:
        node = nodes.NODE_CLASS_MAPPINGS["KSampler"]()
        return getattr(node, node.FUNCTION)(model, 7, 3, 1.0, "euler", "simple", positive, positive, latent)[0]

    def guider(self, model: Any, positive: Any, latent: Any) -> Any:
        guider = Guider_Basic(model)
        guider.set_conds(positive)
        noise, sampler = Noise_RandomNoise(7), comfy.samplers.sampler_object("euler")
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 3)
        return SamplerCustomAdvanced().sample(noise, guider, sampler, sigmas, latent)[0]

    def own_guider(self, model: Any, positive: Any, latent: Any) -> Any:
        """A guider that combines predictions itself, once by hand and once by the function."""
        guider = Guider(model)
        guider.set_conds(positive, positive)
        guider.set_cfg(2.0)  # of the same prompt twice
        noise, sampler = Noise_RandomNoise(7), comfy.samplers.sampler_object("euler")
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 3)
        done = SamplerCustomAdvanced().sample(noise, guider, sampler, sigmas, latent)[0]
        assert len(guider.fractions) == 3 and guider.fractions[0] == 1.0
        return done

    def direct(self, model: Any, positive: Any, latent: Any) -> dict[str, Any]:
        noise = comfy.sample.prepare_noise(latent["samples"], 7)
        seen: dict[str, Any] = {}
        callback = latent_preview.prepare_callback(model, 3, seen)
        sampler = comfy.samplers.KSampler(model, 3, mm.get_torch_device(), "euler", "simple")
        positive = comfy.sampler_helpers.convert_cond(positive)
        assert positive[0]["cross_attn"].ndim == 3
        done = comfy.sample.sample_custom(
            model, noise, 1.0, comfy.samplers.KSAMPLER(by_hand, {"twice": False}), sampler.sigmas, positive, positive,
            latent["samples"], callback=callback, seed=7,
        )  # fmt: skip
        assert seen["x0"].shape == done.shape
        return {"samples": done}

    def wrapped(self, model: Any, positive: Any, latent: Any) -> Any:
        """A sampler around one of ours, that looks at every picture on its way."""
        inner, looked = comfy.samplers.ksampler("euler"), []

        def around(
            model: Any, x: Any, sigmas: Any, extra_args: Any, callback: Any = None, disable: Any = None, **options: Any
        ) -> Any:
            def look(x: Any, sigma: Any, **more: Any) -> Any:
                looked.append(float(model.inner_model.inner_model.model_sampling.sigma_max))
                return model(x, sigma, **more)

            vars(look)["inner_model"] = model.inner_model
            return inner.sampler_function(
                look, x, sigmas, extra_args=extra_args, callback=callback, **inner.extra_options
            )

        noise, sigmas = nodes.RandomNoise().get_noise(7)[0], comfy.samplers.KSampler(model, 3).sigmas
        guider = nodes.BasicGuider().get_guider(model, positive)[0]
        done = SamplerCustomAdvanced().sample(noise, guider, comfy.samplers.KSAMPLER(around), sigmas, latent)[0]
        assert len(looked) == 3
        return done


def by_hand(
    model: Any,
    x: Any,
    sigmas: Any,
    extra_args: Any = None,
    callback: Any = None,
    disable: Any = None,
    twice: Any = True,
) -> Any:
    """Euler's steps."""
    assert not twice
    inner = model.inner_model.inner_model
    assert inner.device == x.device and not hasattr(inner.diffusion_model, "double_blocks")
    assert torch.allclose(inner.process_latent_out(inner.process_latent_in(x)), x, atol=1e-5)
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones([x.shape[0]]), **extra_args)
        callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


def add_names() -> None:
    """A sampler and a schedule under names of this pack, as packs add them. The module outlives one load of a pack."""

    def sample_pack_euler(
        model: Any, x: Any, sigmas: Any, extra_args: Any = None, callback: Any = None, **_: Any
    ) -> Any:
        return by_hand(model, x, sigmas, extra_args, callback, twice=False)

    if "pack_euler" not in comfy.samplers.KSampler.SAMPLERS:
        comfy.samplers.KSampler.SAMPLERS.append("pack_euler")
    comfy.samplers.k_diffusion_sampling.sample_pack_euler = sample_pack_euler
    if "pack_simple" not in comfy.samplers.SCHEDULER_HANDLERS:
        handler = comfy.samplers.SchedulerHandler(comfy.samplers.simple_scheduler)
        comfy.samplers.SCHEDULER_HANDLERS["pack_simple"] = handler
        comfy.samplers.SCHEDULER_NAMES.append("pack_simple")


add_names()


class Picture(Base):
    TAKES, RETURN_TYPES = {"vae": "VAE", "latent": "LATENT"}, ("IMAGE",)

    def run(self, vae: Any, latent: Any) -> tuple[Any]:
        picture = vae.decode(latent["samples"])
        assert torch.equal(nodes.VAEDecode().decode(vae, latent)[0], picture)
        cropped = vae.vae_encode_crop_pixels(torch.zeros(1, 35, 42, 4))
        assert cropped.shape == (1, 32, 40, 3) and vae.encode(cropped).shape == (1, 16, 4, 5)
        assert vae.decode_tiled(latent["samples"], tile_x=8, tile_y=8, overlap=2).shape == picture.shape
        assert vae.encode_tiled(picture, tile_x=64, tile_y=64, overlap=16).shape == latent["samples"].shape
        assert (
            vae.spacial_compression_encode() == 8
            and vae.latent_channels == 16
            and not hasattr(vae, "first_stage_model")
        )
        return (picture,)


class Save(nodes.SaveImage, Base):  # type: ignore[misc]  # ComfyUI has no types
    """Derived from ours."""

    TAKES, RETURN_TYPES, OUTPUT_NODE, FUNCTION = {"images": "IMAGE"}, (), True, "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE", {})}}

    def run(self, images: Any) -> Any:
        assert self.type == "output" and self.output_dir == folder_paths.get_output_directory()
        return self.save_images(images, "derived/name")


class Tools(Base):
    """What needs no model: sizes, tiles, state dicts, devices, progress."""

    RETURN_TYPES, OUTPUT_NODE = (), True

    def run(self) -> dict[str, Any]:
        picture = torch.rand(2, 3, 24, 36)
        assert torch.equal(composite(picture, picture, 0, 0), picture)
        assert GrowMask().expand_mask(torch.zeros(1, 8, 8), 2, True)[0].shape == (1, 8, 8)
        for method in nodes.ImageScale.upscale_methods:
            assert comfy.utils.common_upscale(picture, 18, 18, method, "center").shape == (2, 3, 18, 18)
        assert comfy.utils.lanczos(picture, 9, 9).shape == (2, 3, 9, 9)
        assert comfy.utils.bislerp(picture, 9, 9).shape == (2, 3, 9, 9)
        bar = comfy.utils.ProgressBar(comfy.utils.get_tiled_scale_steps(36, 24, 16, 16, 4) * 2)

        def double(x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.interpolate(x, scale_factor=2)

        big = comfy.utils.tiled_scale(picture, double, 16, 16, 4, upscale_amount=2, pbar=bar)
        assert torch.allclose(big, double(picture), atol=1e-5) and bar.current == bar.total
        assert comfy.utils.repeat_to_batch_size(picture, 5).shape[0] == 5
        assert comfy.utils.resize_to_batch_size(torch.arange(3.0), 6).tolist() == [0, 0, 1, 1, 2, 2]
        assert comfy.utils.reshape_mask(torch.ones(4, 4), (2, 3, 8, 8)).shape == (2, 3, 8, 8)
        state = {"a.x": torch.ones(3), "b.y": torch.ones(2, dtype=torch.float16)}
        assert comfy.utils.calculate_parameters(state) == 5 and comfy.utils.weight_dtype(state) is torch.float32
        assert set(comfy.utils.state_dict_prefix_replace(dict(state), {"a.": "c."})) == {"c.x", "b.y"}
        assert set(comfy.utils.state_dict_prefix_replace(dict(state), {"a.": "c."}, filter_keys=True)) == {"c.x"}
        layer = torch.nn.Sequential(torch.nn.Linear(2, 2))
        comfy.utils.set_attr(layer, "0.bias", None)
        assert comfy.utils.get_attr(layer, "0.bias") is None and mm.module_size(layer) == 16
        comfy.utils.PROGRESS_BAR_ENABLED = False
        path = folder_paths.get_temp_directory() + "/state.safetensors"
        comfy.utils.save_torch_file(state, path, metadata={"who": "me"})
        read, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
        assert set(read) == set(state) and metadata == {"who": "me"}
        assert mm.get_torch_device().type == mm.text_encoder_device().type == "cpu" and mm.is_device_cpu(
            torch.device("cpu")
        )
        assert (
            mm.get_free_memory() > 0
            and mm.total_ram > 0
            and not mm.xformers_enabled()
            and not mm.processing_interrupted()
        )
        own = ModelPatcher(layer, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device())
        elsewhere = ModelPatcher(torch.nn.Linear(2, 2), load_device="meta")
        mm.load_models_gpu([own, elsewhere], memory_required=1 << 20)
        assert elsewhere.current_loaded_device().type == "meta" and own.current_loaded_device().type == "cpu"
        assert mm.free_memory(1e30, mm.get_torch_device()) == []
        mm.soft_empty_cache()
        assert own.model_dtype() is torch.float32
        self.words_and_names()
        return {"ui": {"done": [True]}}

    def words_and_names(self) -> None:
        escaped = comfy.sd1_clip.escape_important("a \\(b\\) (c:1.5)")
        parts = [(comfy.sd1_clip.unescape_important(text), w) for text, w in comfy.sd1_clip.token_weights(escaped, 2.0)]
        assert parts == [("a (b) ", 2.0), ("c", 1.5)]
        assert comfy.sampler_helpers.prepare_mask(torch.ones(4, 4), (1, 16, 8, 8), "cpu").shape == (1, 16, 8, 8)
        assert execution.full_type_name(str) == "str" and execution.full_type_name(Tools).endswith(".Tools")
        assert Blur is nodes.NODE_CLASS_MAPPINGS["ImageBlur"] and execution.nodes is nodes
        assert callable(server.web.json_response)  # type: ignore[attr-defined]  # ComfyUI, not the folder of tests
        assert os.path.dirname(__file__) in folder_paths.get_folder_paths("custom_nodes")
        assert os.path.isdir(folder_paths.get_input_directory())
        assert TABLE == {"mine": 1} and not hasattr(BaseModel, "apply_model")
        mm.raise_non_oom(mm.OOM_EXCEPTION("CUDA out of memory."))
        for call, told in (
            (lambda: mm.raise_non_oom(KeyError("mine")), "mine"),
            (lambda: replaced(comfy.samplers, "get_area_and_mult")(), "comfy.samplers.get_area_and_mult is a part"),
            (lambda: BaseModel.apply_model(None), "comfy.model_base.BaseModel.apply_model is a part"),
            (lambda: len(comfy.utils.UNET_MAP_BASIC), "comfy.utils.UNET_MAP_BASIC is a part"),
        ):
            try:
                call()
            except Exception as error:
                assert told in str(error), error
            else:
                raise AssertionError(told)


class Invert(io.ComfyNode):  # type: ignore[misc]  # ComfyUI has no types
    """With a schema."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="SchemaInvert", inputs=[io.Image.Input("image")], outputs=[io.Image.Output()], is_output_node=True
        )

    @classmethod
    def execute(cls, image: Any) -> Any:
        return io.NodeOutput(1 - image, ui=ui.PreviewImage(1 - image, cls=cls))


NODE_CLASS_MAPPINGS = {
    "PackEncode": Encode, "PackFiles": Files, "PackShift": Shift, "PackPatch": Patch, "PackSample": Sample,
    "PackPicture": Picture, "PackSave": Save, "PackTools": Tools, "SchemaInvert": Invert,
}  # fmt: skip
