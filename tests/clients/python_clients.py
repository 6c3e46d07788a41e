"""Clients that other people publish for Python, each through a whole job of a running `sluice serve`.

    python tests/clients/python_clients.py ADDRESS [NAME]...
    python tests/clients/python_clients.py --checkpoint models/checkpoints     writes what sd-backend-client needs

Those that are installed run: comfy-api-simplified, comfyui-utils, comfy-catapult, comfy-api-client, comfy-cli,
comfy-script[client], sd-backend-client, and Open WebUI's engine for images (pip install them into an environment of
their own; none is a dependency). The shipped small model makes an image for each. Prints a line for each client, and
ends with 1 if one of them failed.

Of Open WebUI one file suffices, since the whole of it is large: pip download --no-deps open-webui, and name the folder
into which it was unzipped in the variable OPEN_WEBUI.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PNG = b"\x89PNG"
CHECKPOINT = "sluice-tiny-all-in-one.safetensors"


def prompt() -> dict[str, Any]:
    """The API prompt of an image of the small model, with a new seed."""

    def node(class_type: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": class_type, "inputs": inputs, "_meta": {"title": class_type}}

    files = {"clip_name1": "sluice-tiny-clip_l.safetensors", "clip_name2": "sluice-tiny-t5xxl.safetensors"}
    links = {"model": ["1", 0], "positive": ["4", 0], "negative": ["4", 0], "latent_image": ["5", 0]}
    settings = {"steps": 4, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    return {
        "1": node("UNETLoader", unet_name="sluice-tiny.safetensors", weight_dtype="default"),
        "2": node("DualCLIPLoader", **files, type="flux"),
        "3": node("VAELoader", vae_name="sluice-tiny-ae.safetensors"),
        "4": node("CLIPTextEncode", clip=["2", 0], text="a red circle"),
        "5": node("EmptySD3LatentImage", width=128, height=128, batch_size=1),
        "6": node("KSampler", seed=random.randrange(2**32), **settings, **links),
        "7": node("VAEDecode", samples=["6", 0], vae=["3", 0]),
        "8": node("SaveImage", images=["7", 0], filename_prefix="client"),
    }


def simplified(address: str) -> bytes:
    from comfy_api_simplified import ComfyApiWrapper, ComfyWorkflowWrapper

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "w.json"
        file.write_text(json.dumps(prompt()))
        workflow = ComfyWorkflowWrapper(str(file))
    images = ComfyApiWrapper(address + "/").queue_and_wait_images(workflow, "SaveImage")
    return bytes(next(iter(images.values())))


def utils(address: str) -> bytes:
    from comfyui_utils import comfy

    class Callbacks(comfy.Callbacks):  # type: ignore[misc]
        image: Any = None

        async def queue_position(self, position: Any) -> None: ...

        async def in_progress(self, node_id: Any, progress: Any, total: Any) -> None: ...

        async def completed(self, outputs: Any, cached: Any) -> None:
            self.image = outputs["images"][0]

    async def job() -> bytes:
        made: list[bytes] = []
        api, callbacks = comfy.ComfyAPI(urlsplit(address).netloc), Callbacks()
        await api.submit(prompt(), callbacks)

        async def read(stream: Any) -> None:
            made.append(stream.read())

        await api.fetch(callbacks.image, read)
        return made[0]

    return asyncio.run(job())


def catapult(address: str) -> bytes:
    from comfy_catapult.api_client import ComfyAPIClient

    async def job() -> bytes:
        async with ComfyAPIClient(comfy_api_url=address) as client:
            await client.GetSystemStats()
            await client.GetQueue()
            answer = await client.PostPrompt(prompt_workflow=prompt(), number=None, client_id=None, extra_data=None)
            for _ in range(200):
                history = await client.GetHistoryRaw(prompt_id=answer.prompt_id)
                if answer.prompt_id in history:
                    break
                await asyncio.sleep(0.1)
            (image,) = history[answer.prompt_id]["outputs"]["8"]["images"]
            place = {"folder_type": image["type"], "subfolder": image["subfolder"], "filename": image["filename"]}
            return bytes(await client.GetView(**place))

    return asyncio.run(job())


def api_client(address: str) -> bytes:
    from io import BytesIO

    import comfy_api_client

    async def job() -> bytes:
        async with comfy_api_client.create_client(address, start_state_tracker=None) as client:
            asked = await client.submit_workflow(prompt(), return_future=False)
            for _ in range(200):
                if asked.prompt_id in await client.get_history(prompt_id=asked.prompt_id):
                    break
                await asyncio.sleep(0.1)
            (image,) = (await client.fetch_results(asked.prompt_id)).output_images
            assert image.filename.startswith("client_"), image.filename
            data = BytesIO()
            image.image.save(data, "PNG")
            return data.getvalue()

    return asyncio.run(job())


def cli(address: str) -> bytes:
    """comfy-cli, which waits for the job and prints where its image is."""
    place = urlsplit(address)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "w.json"
        file.write_text(json.dumps(prompt()))
        said = subprocess.run(
            [
                *(str(Path(sys.executable).with_name("comfy")), "--skip-prompt", "--no-enable-telemetry", "run"),
                *("--workflow", str(file), "--wait", "--host", str(place.hostname), "--port", str(place.port)),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
    assert "client_" in said.stdout, said.stdout
    return PNG


def script(address: str) -> bytes:
    """ComfyScript, which makes functions from the server's descriptions of nodes."""
    import comfy_script.runtime as runtime

    runtime.load(address + "/", watch=False, save_script_source=False)
    from comfy_script.runtime import nodes

    runtime.queue.start_watch(display_node=False, display_task=False)
    with runtime.Workflow(wait=True, cancel_all=False):
        model = nodes.UNETLoader("sluice-tiny.safetensors", "default")
        clip = nodes.DualCLIPLoader("sluice-tiny-clip_l.safetensors", "sluice-tiny-t5xxl.safetensors", "flux")
        text = nodes.CLIPTextEncode("a red circle", clip)
        latent = nodes.EmptySD3LatentImage(128, 128, 1)
        seed = random.randrange(2**32)
        latent = nodes.KSampler(model, seed, 4, 1.0, "euler", "simple", text, text, latent, 1.0)
        image = nodes.VAEDecode(latent, nodes.VAELoader("sluice-tiny-ae.safetensors"))
        saved = nodes.SaveImage(image, "client")
    (made,) = saved.wait()
    return _png(made)


def backend(address: str) -> bytes:
    """sd-backend-client, which builds its own graph around a checkpoint: the server must have CHECKPOINT."""
    from sd_backend_client import DiffusionParams, connect_to_backend

    found = connect_to_backend(address)
    assert type(found).__name__ == "ComfyUiWebservice", found
    sizes = {"steps": 4, "width": 128, "height": 128, "cfg_scale": 1.0, "seed": random.randrange(2**32)}
    names = {"sampler": "euler", "scheduler": "simple", "sd_model_name": CHECKPOINT}
    done = found.submit_txt2img(DiffusionParams(prompt="a red circle", **sizes, **names)).wait(timeout=120)
    return _png(done.images[0])


def write_checkpoint(folder: Path) -> None:
    """CHECKPOINT in this folder: the shipped small model as one file, in ComfyUI's names."""
    from safetensors.torch import load_file, save_file

    shipped = Path(__file__).parents[2] / "flux_core" / "tiny" / "models"
    parts = {
        "model.diffusion_model.": "diffusion_models/sluice-tiny.safetensors",
        "text_encoders.clip_l.transformer.": "text_encoders/sluice-tiny-clip_l.safetensors",
        "text_encoders.t5xxl.transformer.": "text_encoders/sluice-tiny-t5xxl.safetensors",
        "vae.": "vae/sluice-tiny-ae.safetensors",
    }
    whole = {prefix + key: value for prefix, file in parts.items() for key, value in load_file(shipped / file).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(whole, folder / CHECKPOINT)


def open_webui(address: str) -> bytes:
    """Open WebUI's engine for images. Of the rest of that program it needs a session and JSON, supplied here."""
    from types import ModuleType
    from urllib.request import urlopen

    import aiohttp

    async def job() -> str:
        async with aiohttp.ClientSession() as session:

            async def get_session() -> aiohttp.ClientSession:
                return session

            parts: dict[str, dict[str, Any]] = {
                "open_webui.env": {"AIOHTTP_CLIENT_SESSION_SSL": True},
                "open_webui.utils.json_codec": {"JSONCodec": json},
                "open_webui.utils.session_pool": {"get_session": get_session},
            }
            for name, values in parts.items():
                sys.modules[name] = ModuleType(name)
                vars(sys.modules[name]).update(values)
            file = Path(os.environ["OPEN_WEBUI"]) / "open_webui" / "utils" / "images" / "comfyui.py"
            spec = importlib.util.spec_from_file_location("open_webui_comfyui", file)
            assert spec and spec.loader
            engine = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(engine)
            kinds = {"prompt": ["4"], "width": ["5"], "height": ["5"], "n": ["5"], "steps": ["6"], "seed": ["6"]}
            keys = {"n": "batch_size", "prompt": "text"}
            inputs = [{"type": kind, "node_ids": ids, "key": keys.get(kind, kind)} for kind, ids in kinds.items()]
            asked = {"workflow": json.dumps(prompt()), "nodes": inputs}
            sizes = {"width": 128, "height": 128, "n": 1, "steps": 4, "seed": random.randrange(2**32)}
            form = engine.ComfyUICreateImageForm(workflow=asked, prompt="a red circle", **sizes)
            made = await engine.comfyui_create_image("", form, "open-webui", address, "")
            return str(made["data"][0]["url"])

    with urlopen(asyncio.run(job())) as answer:
        return bytes(answer.read())


def _png(image: Any) -> bytes:
    from io import BytesIO

    data = BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


CLIENTS: dict[str, tuple[str, Callable[[str], bytes]]] = {
    "comfy-api-simplified": ("comfy_api_simplified", simplified),
    "comfyui-utils": ("comfyui_utils", utils),
    "comfy-catapult": ("comfy_catapult", catapult),
    "comfy-api-client": ("comfy_api_client", api_client),
    "comfy-cli": ("comfy_cli", cli),
    "ComfyScript": ("comfy_script", script),
    "sd-backend-client": ("sd_backend_client", backend),
    "Open WebUI": ("open_webui", open_webui),
}


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__)
        return 2
    if sys.argv[1] == "--checkpoint":
        write_checkpoint(Path(sys.argv[2]))
        return 0
    address, failed = sys.argv[1].rstrip("/"), 0
    for name, (module, job) in CLIENTS.items():
        if sys.argv[2:] and name not in sys.argv[2:]:
            continue
        if importlib.util.find_spec(module) is None and not (module == "open_webui" and "OPEN_WEBUI" in os.environ):
            print(f"{name}: not installed")
            continue
        try:
            data = job(address)
            print(f"{name}: {'an image' if data.startswith(PNG) else 'no image'}")
            failed += not data.startswith(PNG)
        except Exception as error:  # any exception of a client is its result
            failed += 1
            print(f"{name}: {type(error).__name__}: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
