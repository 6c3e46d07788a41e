"""The client of krita-ai-diffusion itself, without Krita: it connects to a server, generates, refines and inpaints.

    python tests/clients/krita_plugin.py PLUGIN ADDRESS

PLUGIN is a folder that holds ai_diffusion/ (with its websockets); PyQt5 is needed, and no screen. ADDRESS is that of a
running `sluice serve`, whose models folder has the FLUX.1 files that the plugin looks for by name: a transformer,
clip_l, t5xxl and ae. What it asks for beyond FLUX.1 it only notes. Prints a line for each piece of work.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import Any

SIZE = 512
STEPS = 4


async def work(plugin: Any, address: str) -> None:
    """Everything a person does first."""
    client = plugin.ComfyClient(address)
    await client.connect()
    plugin.settings.check_server_resources = False  # it requests files of other models too; missing ones are noted
    async for status in client.discover_models(refresh=False):
        print(f"looked into {status.folder}: {status.current} of {status.total}")
    missing = client._supported_archs.get(plugin.Arch.flux, [])
    print("misses for FLUX.1:", ", ".join(one.string for one in missing) or "nothing")
    checkpoint = next(name for name, info in client.models.checkpoints.items() if info.arch is plugin.Arch.flux)
    print("connected; FLUX.1 model:", checkpoint)
    listener = client.listen()
    async for message in listener:
        if message.event is plugin.ClientEvent.connected:
            break
    for name, asked in _pieces(plugin, client, checkpoint):
        job = await client.enqueue(asked)
        images = await asyncio.wait_for(_images(plugin, listener, job), 120)
        print(f"{name}: {len(images)} image(s) of {images[0].extent.width}x{images[0].extent.height}")
    await client.disconnect()


async def _images(plugin: Any, listener: Any, job: str) -> Any:
    async for message in listener:
        if message.event is plugin.ClientEvent.error:
            raise RuntimeError(f"the server said: {message.error}")
        if message.event is plugin.ClientEvent.finished and message.job_id == job:
            return message.images
    raise RuntimeError("the connection ended")


def _pieces(plugin: Any, client: Any, checkpoint: str) -> list[tuple[str, Any]]:
    """The request of the plugin, prepared by its own code."""
    style = plugin.Style(Path("default.json"))
    style.checkpoints, style.style_prompt, style.cfg_scale = [checkpoint], "", 3.5
    style.sampler, style.sampler_steps = "Flux - Euler simple", STEPS
    extent = plugin.Extent(SIZE, SIZE)
    picture = plugin.Image.create(extent, fill=0xFF2080FF)
    inside = plugin.Bounds(SIZE // 4, SIZE // 4, SIZE // 2, SIZE // 2)
    mask = plugin.Mask.rectangle(inside, plugin.Bounds(0, 0, SIZE, SIZE))
    condition = plugin.ConditioningInput("a red circle on the left")
    repaint = plugin.detect_inpaint(plugin.InpaintMode.fill, inside, plugin.Arch.flux, condition, 1.0)
    repaint.use_inpaint_model = False  # a ControlNet or LaMa, which the small models do not have

    def prepared(kind: Any, canvas: Any, **more: Any) -> Any:
        perf = plugin.PerformanceSettings(batch_size=1)
        given = {
            "cond": condition,
            "style": style,
            "seed": 7,
            "models": client.models,
            "files": plugin.files,
            "perf": perf,
        }
        return plugin.prepare(kind, canvas, **given, **more)

    kinds = plugin.WorkflowKind
    return [
        ("generate", prepared(kinds.generate, extent)),
        ("refine", prepared(kinds.refine, picture, strength=0.5)),
        ("inpaint", prepared(kinds.inpaint, picture, mask=mask, inpaint=repaint)),
        ("refine a region", prepared(kinds.refine_region, picture, mask=mask, inpaint=repaint, strength=0.5)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plugin", type=Path)
    parser.add_argument("address")
    args = parser.parse_args()
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    sys.path.insert(0, str(args.plugin))
    from PyQt5.QtCore import QCoreApplication, QTimer

    application = QCoreApplication([])
    plugin = _plugin()
    plugin.eventloop.setup()
    task = plugin.eventloop._loop.create_task(work(plugin, args.address))
    timer = QTimer()
    timer.timeout.connect(lambda: task.done() and application.quit())
    timer.start(50)
    application.exec_()
    task.result()


def _plugin() -> Any:
    """The names of the plugin that are used here, in one place."""
    from types import SimpleNamespace

    from ai_diffusion import eventloop
    from ai_diffusion.backend import api, client, comfy_client, resources, workflow
    from ai_diffusion.files import FileCollection, FileLibrary
    from ai_diffusion.image import Bounds, Extent, Image, Mask
    from ai_diffusion.settings import settings
    from ai_diffusion.style import Style

    found = {**vars(workflow), **vars(api), **vars(client), **vars(comfy_client), **vars(resources)}
    shapes = {"Bounds": Bounds, "Extent": Extent, "Image": Image, "Mask": Mask}
    files = FileLibrary(FileCollection(), FileCollection())
    more = {"eventloop": eventloop, "settings": settings, "Style": Style, "files": files}
    return SimpleNamespace(**found | shapes | more)


if __name__ == "__main__":
    main()
