"""Clients that other people publish for Python, each through a whole job of a running `sluice serve`.

    python tests/clients/python_clients.py ADDRESS [NAME]...

Those that are installed run: comfy-api-simplified, comfyui-utils, comfy-catapult, comfy-api-client, comfy-cli
(pip install them into an environment of their own; none is a dependency). The shipped small model makes an image for
each. Prints a line for each client, and ends with 1 if one of them failed.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PNG = b"\x89PNG"


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


CLIENTS: dict[str, tuple[str, Callable[[str], bytes]]] = {
    "comfy-api-simplified": ("comfy_api_simplified", simplified),
    "comfyui-utils": ("comfyui_utils", utils),
    "comfy-catapult": ("comfy_catapult", catapult),
    "comfy-api-client": ("comfy_api_client", api_client),
    "comfy-cli": ("comfy_cli", cli),
}


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__)
        return 2
    address, failed = sys.argv[1].rstrip("/"), 0
    for name, (module, job) in CLIENTS.items():
        if sys.argv[2:] and name not in sys.argv[2:]:
            continue
        if importlib.util.find_spec(module) is None:
            print(f"{name}: not installed")
            continue
        try:
            data = job(address)
            print(f"{name}: {'an image' if data.startswith(PNG) else 'no image'}")
            failed += not data.startswith(PNG)
        except Exception as error:  # whatever a client raises is its result
            failed += 1
            print(f"{name}: {type(error).__name__}: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
