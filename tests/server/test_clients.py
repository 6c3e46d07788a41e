"""Requests and answers of real clients: the Krita plugin, and scripts that follow ComfyUI's examples."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.client import Server
from PIL import Image
from sluice.flux_core.io.embedded import read_workflow

SHIPPED = Path(__file__).parents[2] / "workflows" / "text_to_image.png"
# What krita-ai-diffusion looks for before it connects.
WANTED_BY_KRITA = (
    *("InpaintPreprocessor", "DepthAnythingV2Preprocessor", "IPAdapterModelLoader", "IPAdapter"),
    *("ETN_LoadImageCache", "ETN_SaveImageCache", "ETN_Translate", "INPAINT_LoadFooocusInpaint"),
    *("INPAINT_ShrinkMask", "INPAINT_StabilizeMask", "INPAINT_ColorMatch"),
)
Prompt = dict[str, Any]


@pytest.fixture(scope="module")
def server(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(command, tmp_path_factory.mktemp("base"), "--dtype", "fp32", packs=None, device="cpu")
    yield server
    server.stop()


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def png(mode: str = "RGB", size: tuple[int, int] = (128, 128), colour: Any = "red") -> bytes:
    data = io.BytesIO()
    Image.new(mode, size, colour).save(data, "PNG")
    return data.getvalue()


def models() -> Prompt:
    clips = {"clip_name1": "sluice-tiny-clip_l.safetensors", "clip_name2": "sluice-tiny-t5xxl.safetensors"}
    return {
        "1": node("UNETLoader", unet_name="sluice-tiny.safetensors", weight_dtype="default"),
        "2": node("DualCLIPLoader", **clips, type="flux"),
        "3": node("VAELoader", vae_name="sluice-tiny-ae.safetensors"),
        "4": node("CLIPTextEncode", clip=["2", 0], text="a red circle on the left"),
    }


def sampled(latent: list[Any], denoise: float = 1.0) -> Prompt:
    """As Krita samples: a guider, noise, levels, one sampler."""
    return {
        **models(),
        "10": node("FluxGuidance", conditioning=["4", 0], guidance=3.5),
        "11": node("BasicGuider", model=["1", 0], conditioning=["10", 0]),
        "12": node("RandomNoise", noise_seed=3),
        "13": node("KSamplerSelect", sampler_name="euler"),
        "14": node("BasicScheduler", model=["1", 0], scheduler="simple", steps=2, denoise=denoise),
        "15": node(
            "SamplerCustomAdvanced",
            **dict(
                zip(("noise", "guider", "sampler", "sigmas"), (["12", 0], ["11", 0], ["13", 0], ["14", 0]), strict=True)
            ),
            latent_image=latent,
        ),
        "16": node("VAEDecode", samples=["15", 0], vae=["3", 0]),
        "17": node("ETN_SaveImageCache", images=["16", 0], format="PNG"),
    }


class TestKrita:
    def run(self, server: Server, prompt: Prompt) -> Image.Image:
        """The image of a job, fetched as the plugin fetches it: by the id in `executed`, before the history."""
        listener = server.listen()
        prompt_id = server.queue(prompt, listener.client_id, prompt_id=f"krita-{len(server.get('/history').json)}")
        listener.end_of(prompt_id)
        told = listener.until("executed", lambda data: data["node"] == "17")["output"]["images"][0]
        listener.close()
        assert told["source"] == "http"
        answer = server.get(f"/api/etn/image/{told['id']}")
        assert answer.status == 200 and answer.headers["Content-Type"] == "image/png"
        return Image.open(io.BytesIO(answer.body)).convert("RGB")

    def put(self, server: Server, name: str, data: bytes) -> str:
        assert server.ask("PUT", f"/api/etn/image/{name}", data=data).status == 201
        assert server.ask("PUT", f"/api/etn/image/{name}", data=data).json == {"status": "cached"}
        return name

    def test_it_finds_what_it_looks_for(self, server: Server) -> None:
        known = server.get("/object_info").json
        assert set(WANTED_BY_KRITA) <= set(known)
        for name, key in (("UpscaleModelLoader", "model_name"), ("IPAdapterModelLoader", "ipadapter_file")):
            assert isinstance(known[name]["input"]["required"][key][0], list) if name in known else True
        assert server.get("/api/etn/languages").json == []
        assert server.get("/api/etn/translate/de/ein%20Haus").json == "ein Haus"
        assert server.post("/api/etn/workflow/subscribe", {"client_id": "x"}).status == 200
        assert {"system", "devices"} <= set(server.get("/system_stats").json)

    def test_it_learns_which_models_are_flux(self, server: Server) -> None:
        found = server.get("/api/etn/model_info/diffusion_models?offset=0&limit=8").json
        assert found["_meta"] == {"offset": 0, "count": 1, "total": 1}
        assert found["sluice-tiny.safetensors"] == {"base_model": "flux", "is_inpaint": False}
        assert "_meta" not in server.get("/api/etn/model_info/checkpoints").json
        assert server.get("/api/etn/model_info/unet_gguf?offset=0&limit=8").json["_meta"]["total"] == 0
        assert server.get("/api/etn/model_info/nothing").status == 400

    def test_it_generates(self, server: Server) -> None:
        prompt = sampled(["5", 0])
        prompt["5"] = node("EmptySD3LatentImage", width=128, height=128, batch_size=1)
        assert self.run(server, prompt).size == (128, 128)

    def test_it_refines_and_inpaints(self, server: Server) -> None:
        image = self.put(server, "picture", png())
        mask = self.put(server, "mask", png("L", colour=255))
        prompt = sampled(["9", 0], denoise=0.5)
        prompt |= {
            "5": node("ETN_LoadImageCache", id=image),
            "6": node("ETN_LoadImageCache", id=mask),
            "7": node("INPAINT_ExpandMask", mask=["6", 1], grow=8, blur=5, blur_type="gaussian"),
            "20": node("INPAINT_MaskedFill", image=["5", 0], mask=["6", 1], fill="neutral", falloff=0),
            "21": node("VAEEncode", pixels=["20", 0], vae=["3", 0]),
            "9": node("SetLatentNoiseMask", samples=["21", 0], mask=["22", 0]),
            "22": node("INPAINT_StabilizeMask", mask=["7", 0], epsilon=0.01),
        }
        assert self.run(server, prompt).size == (128, 128)

    def test_an_image_cut_into_tiles_comes_back_whole(self, server: Server) -> None:
        values = np.random.default_rng(0).integers(0, 255, (96, 160, 3), dtype=np.uint8)
        data = io.BytesIO()
        Image.fromarray(values).save(data, "PNG")
        prompt = {
            "5": node("ETN_LoadImageCache", id=self.put(server, "tiles", data.getvalue())),
            "6": node("ETN_TileLayout", image=["5", 0], min_tile_size=64, padding=16, blending=8, multiple=8),
            "30": node("EmptyImage", width=160, height=96, batch_size=1, color=0),
        }
        last = ["30", 0]
        for n in range(15):
            prompt[f"t{n}"] = node("ETN_ExtractImageTile", image=["5", 0], layout=["6", 0], index=n)
            prompt[f"m{n}"] = node("ETN_MergeImageTile", image=last, layout=["6", 0], index=n, tile=[f"t{n}", 0])
            last = [f"m{n}", 0]
        prompt["17"] = node("ETN_SaveImageCache", images=last, format="PNG")
        made = np.asarray(self.run(server, prompt)).astype(int)
        near = abs(made - values).max(-1) <= 1
        assert near[:8, :8].all() and near.mean() > 0.6  # where neighbours fade into each other, black shines through

    def test_what_is_for_other_models_refuses_before_it_runs(self, server: Server) -> None:
        prompt = {
            "1": node("INPAINT_LoadFooocusInpaint", head="x", patch="y"),
            "2": node("PreviewAny", source=["1", 0]),
        }
        answer = server.post("/prompt", {"prompt": prompt})
        assert answer.status == 400 and "Stable Diffusion XL" in " ".join(answer.json["problems"])

    @pytest.mark.parametrize("name", ["../x", "a/b", "%2e%2e%2fx", "a.b"])
    def test_ids_lead_nowhere(self, server: Server, name: str) -> None:
        assert server.ask("PUT", f"/api/etn/image/{name}", data=png()).status in (400, 403, 404, 405)
        assert server.get(f"/api/etn/image/{name}").status in (400, 403, 404)

    def test_only_images_are_kept_and_only_loras_uploaded(self, server: Server) -> None:
        assert server.ask("PUT", "/api/etn/image/html", data=b"<html>").status == 415
        assert server.get("/api/etn/image/unknown").status == 404
        sent = server.ask("PUT", "/api/etn/upload/loras/my lora.safetensors".replace(" ", "%20"), data=b"12345678")
        assert (
            sent.status == 201
            and (server.base / "models" / "loras" / "my lora.safetensors").read_bytes() == b"12345678"
        )
        assert server.ask("PUT", "/api/etn/upload/vae/x.safetensors", data=b"1").status == 400
        assert server.ask("PUT", "/api/etn/upload/loras/..x.py", data=b"1").status == 400


class TestScripts:
    def test_a_canvas_is_run_as_the_editor_would_send_it(self, server: Server) -> None:
        canvas = read_workflow(SHIPPED).workflow
        listener = server.listen()
        answer = server.post("/prompt", {"prompt": canvas, "client_id": listener.client_id})
        assert answer.status == 200, answer.body
        entry = listener.end_of(answer.json["prompt_id"])
        assert entry["status"]["completed"] and entry["prompt"][3]["extra_pnginfo"]["workflow"] == canvas
        assert isinstance(answer.json["number"], int) and isinstance(entry["prompt"][0], int)

    def test_a_script_that_knows_no_previews_gets_results_alone(self, server: Server) -> None:
        prompt = sampled(["5", 0])
        prompt["5"] = node("EmptySD3LatentImage", width=128, height=128, batch_size=1)
        prompt["12"]["inputs"]["noise_seed"] = 11
        prompt["17"] = node("SaveImageWebsocket", images=["16", 0])
        listener = server.listen()
        listener.end_of(server.queue(prompt, listener.client_id))
        assert [frame[:8] for frame in listener.bytes] == [b"\0\0\0\1\0\0\0\2"]

    def test_nodes_of_the_editor_alone_are_dropped_and_packs_are_named(self, server: Server) -> None:
        prompt = {
            "1": node("EmptyImage", width=16, height=16, batch_size=1, color=0),
            "2": node("PreviewImage", images=["1", 0]),
            "3": node("Fast Groups Muter (rgthree)"),
        }
        assert server.post("/prompt", {"prompt": prompt}).status == 200
        box = {"id": 3, "type": "Alien", "mode": 0, "properties": {"cnr_id": "pack-of-aliens"}}
        extra = {"extra_pnginfo": {"workflow": {"nodes": [box], "links": []}}}
        prompt["3"] = node("Alien")
        answer = server.post("/prompt", {"prompt": prompt, "extra_data": extra})
        assert answer.status == 400 and "pack-of-aliens" in " ".join(answer.json["problems"])

    def test_every_kind_of_model_folder_answers(self, server: Server) -> None:
        for kind in ("configs", "hypernetworks", "upscale_models", "audio_encoders", "custom_nodes", "loras", "clip"):
            assert isinstance(server.get(f"/models/{kind}").json, list)
        assert server.get("/models/nothing").status == 404

    def test_names_of_files_come_in_both_forms(self, server: Server) -> None:
        (server.base / "output").mkdir(exist_ok=True)
        (server.base / "output" / 'größe "x".png').write_bytes(png())
        told = server.get("/view?filename=gr%C3%B6%C3%9Fe%20%22x%22.png").headers["Content-Disposition"]
        assert 'filename="gr__e _x_.png"' in told and "filename*=UTF-8''gr%C3%B6%C3%9Fe" in told

    def test_users_and_their_files_are_listed(self, server: Server) -> None:
        assert server.post("/users", {"username": "somebody"}).json == "default"
        assert server.post("/userdata/workflows%2Fa.json", {"nodes": []}).status == 200
        (folder,) = [one for one in server.get("/v2/userdata").json if one["name"] == "workflows"]
        assert folder == {"name": "workflows", "path": "workflows", "type": "directory"}
        (file,) = server.get("/v2/userdata?path=workflows").json
        assert file["path"] == "workflows/a.json" and file["size"] == len(json.dumps({"nodes": []}))
        assert server.get("/v2/userdata?path=..%2F..").status in (400, 403, 404)

    def test_a_backslash_in_a_prefix_makes_a_folder_and_every_image_is_shown(self, server: Server) -> None:
        shown = []
        for prefix, colour in (("FLUX\\img", 255), ("FLUX/img", 65280)):
            prompt = {
                "1": node("EmptyImage", width=16, height=16, batch_size=1, color=colour),
                "2": node("SaveImage", images=["1", 0], filename_prefix=prefix),
            }
            (told,) = server.made(prompt)[0]["outputs"]["2"]["images"]
            place = server.base / "output" / told["subfolder"] / told["filename"]
            answer = server.get(f"/view?filename={told['filename']}&subfolder={told['subfolder']}&type={told['type']}")
            assert told["subfolder"] == "FLUX" and answer.body == place.read_bytes()
            shown.append(place)
        assert shown[0] != shown[1] and shown[0].read_bytes() != shown[1].read_bytes()
