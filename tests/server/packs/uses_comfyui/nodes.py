"""The nodes, in a file called as a module of ComfyUI is."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import comfy.ldm.modules.attention
import execution
import folder_paths
from aiohttp import web
from comfy.cli_args import args
from comfy.comfy_types import IO, ComfyNodeABC, InputTypeDict
from comfy.ldm.flux.model import Flux
from comfy_execution.graph import ExecutionBlocker, get_input_info
from comfy_execution.graph_utils import GraphBuilder, add_graph_prefix, is_link
from comfy_execution.utils import get_executing_context
from server import PromptServer  # type: ignore[attr-defined]  # ComfyUI, not the folder of tests

import nodes

HERE_NAME = __name__
HERE = os.path.dirname(__file__)
folder_paths.add_model_folder_path("uses_comfyui", os.path.join(folder_paths.models_dir, "uses_comfyui"))
folder_paths.folder_names_and_paths["pictures_of_mine"] = ([folder_paths.get_input_directory()], {".png"})


class Mine(Flux):  # type: ignore[misc]  # ComfyUI has no types
    """Built on what is not there."""


comfy.ldm.modules.attention.attention_pytorch = len  # a patch of ComfyUI's own program


class Facts(ComfyNodeABC):  # type: ignore[misc]  # ComfyUI has no types
    """Everything this pack can find out, as text."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "tell", (IO.STRING,)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypeDict:
        return {"required": {"what": (IO.STRING, {})}}

    def tell(self, what: str) -> tuple[Any]:
        return (repr(getattr(self, what)()),)

    def paths(self) -> dict[str, Any]:
        with open(folder_paths.get_annotated_filepath("there.txt"), "w") as file:
            file.write("x")
        return {
            "kinds": sorted({"vae", "unet", "upscale_models"} & {*folder_paths.folder_names_and_paths, "unet"}),
            "own": folder_paths.get_folder_paths("uses_comfyui")
            == [os.path.join(folder_paths.models_dir, "uses_comfyui")],
            "legacy": folder_paths.get_folder_paths("unet") == folder_paths.get_folder_paths("diffusion_models"),
            "tiny": "sluice-tiny-ae.safetensors" in folder_paths.get_filename_list("vae"),
            "full": os.path.isfile(folder_paths.get_full_path("vae", folder_paths.get_filename_list("vae")[0])),
            "nowhere": folder_paths.get_full_path("vae", "nowhere.safetensors"),
            "outside": folder_paths.get_full_path("vae", "../../secret"),
            "by_type": folder_paths.get_directory_by_type("temp") == folder_paths.get_temp_directory(),
            "value": folder_paths.output_directory == folder_paths.get_output_directory(),
            "user": os.path.basename(folder_paths.get_user_directory()),
            "exists": folder_paths.exists_annotated_filepath("there.txt [input]"),
            "annotated": folder_paths.annotated_filepath("a.png [output]")[0],
            "types": folder_paths.filter_files_content_types(["a.png", "b.mp4", "c.webp"], ["image"]),
            "save": folder_paths.get_save_image_path("a/b", folder_paths.get_output_directory(), 64, 32)[1:],
            "subfolders": folder_paths.get_input_subfolders(),
        }

    def missing(self) -> str:
        try:
            folder_paths.get_full_path_or_raise("vae", "nowhere.safetensors")
        except FileNotFoundError as error:
            return str(error)
        return "found"

    def probes(self) -> list[Any]:
        """hasattr and getattr show what is offered; modules of other versions do not exist."""
        found = []
        try:
            from comfy.nothing_of_the_kind import anything  # noqa: F401
        except ImportError:
            found.append("no such module")
        return [
            *found,
            hasattr(nodes, "MAX_RESOLUTION"),
            hasattr(nodes, "something_new"),
            hasattr(comfy.ldm.modules.attention, "attention_xformers"),
            getattr(Flux, "forward_orig", None),
            isinstance(self, Flux),
            nodes.MAX_RESOLUTION,
            args.disable_metadata,
            "KSampler" in nodes.NODE_CLASS_MAPPINGS and "Facts" in nodes.NODE_CLASS_MAPPINGS,
            nodes.NODE_CLASS_MAPPINGS["VAEDecode"].FUNCTION,
            nodes.CLIPTextEncode.__name__,
            get_input_info(nodes.EmptyLatentImage, "width")[:2],
            IO.ANY != IO.IMAGE,
            execution.ExecutionBlocker is ExecutionBlocker,
            sys.modules["folder_paths"] is importlib.import_module("folder_paths") is importlib.reload(folder_paths),
            self.clears(),
            "comfy.nothing" in sys.modules or "os" not in sys.modules or sys.modules.get("no.such.module"),
        ]

    def clears(self) -> bool:
        """Only modules of packs go when a pack takes modules away."""
        before = sys.modules.copy()
        for name in ("json", HERE_NAME):
            del sys.modules[name]
        gone = [name for name in ("json", HERE_NAME) if name not in sys.modules]
        sys.modules[HERE_NAME] = before[HERE_NAME]
        return gone == [HERE_NAME]

    def absent(self) -> list[str]:
        """A function that is not offered raises an error that names it."""
        said = []
        for call in (Flux, Mine, comfy.ldm.modules.attention.attention_xformers, Flux.forward):
            try:
                call()
            except AttributeError as error:
                said.append(str(error))
        return said

    def context(self) -> list[Any]:
        running = get_executing_context()
        server = PromptServer.instance
        same = running.prompt_id == server.last_prompt_id and running.node_id == server.last_node_id
        return [same, running.list_index, server.client_id, server.prompt_queue.get_tasks_remaining()]


class Grow:
    """Becomes the sum of its numbers, as a graph of nodes."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "grow", ("INT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"first": ("INT", {"forceInput": True}), "times": ("INT", {"default": 3})}}

    def grow(self, first: Any, times: int) -> dict[str, Any]:
        graph = GraphBuilder()
        total = graph.node("Number", value=0).out(0)
        for _ in range(times):
            step = graph.node("Add", a=total)
            step.set_input("b", first)
            total = step.out(0)
        other, (renamed,) = add_graph_prefix(GraphBuilder(prefix="").finalize(), [["1", 0]], "x.")
        assert other == {} and renamed == ["x.1", 0] and is_link(total)
        return {"result": (total,), "expand": graph.finalize()}


class Some:
    """A list, one item of which forbids what it is given to."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_IS_LIST = "test", "give", ("INT",), (True,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"message": ("STRING", {"default": ""})}}

    def give(self, message: str) -> tuple[Any]:
        return ([1, ExecutionBlocker(message or None), 3],)


class Tell:
    """Sends a message to the client that queued the prompt, and one to all clients."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "test", "tell", (), True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"text": ("STRING", {})}, "hidden": {"unique_id": "UNIQUE_ID"}}

    def tell(self, text: str, unique_id: str) -> tuple[()]:
        server = PromptServer.instance
        server.send_sync("uses_comfyui.mine", {"text": text, "number": float("nan")}, server.client_id)
        server.send_sync("uses_comfyui.all", {"text": text})
        server.send_progress_text(text, unique_id, server.client_id)
        return ()


@PromptServer.instance.routes.get("/uses_comfyui/{name}")  # type: ignore[untyped-decorator]  # ComfyUI's
async def greet(request: web.Request) -> Any:
    if request.match_info["name"] == "fails":
        raise RuntimeError("on purpose")
    return web.json_response({"name": request.match_info["name"], "twice": request.query.getall("q", [])})


@PromptServer.instance.routes.post("/uses_comfyui/echo")  # type: ignore[untyped-decorator]  # ComfyUI's
async def echo(request: web.Request) -> Any:
    return web.Response(body=await request.read(), status=201, headers={"X-Length": str(request.content_length)})


PromptServer.instance.app.router.add_static("/uses_comfyui_files/", HERE)


def halve(request: dict[str, Any]) -> dict[str, Any]:
    """Prompts pass here before they are checked."""
    for node in request["prompt"].values():
        if node.get("inputs", {}).get("value") == 98:
            node["inputs"]["value"] = 49
    return request


PromptServer.instance.add_on_prompt_handler(halve)

NODE_CLASS_MAPPINGS = {"Facts": Facts, "Grow": Grow, "Some": Some, "Tell": Tell}
NODE_DISPLAY_NAME_MAPPINGS = {"Facts": "Facts about everything"}
