"""Reads the server's messages and answers its calls, beside the thread that runs jobs (worker.py)."""

from __future__ import annotations

import hashlib
import json
import math
import queue
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from ..errors import InputError, SluiceError
from ..graph.canvas import pack_names
from ..graph.editor_only import without_editor_nodes
from ..graph.flatten import canvas_to_prompt, to_prompt
from ..graph.object_info import object_info
from ..io.embedded import read_workflow_bytes
from ..io.file_hashes import hashes_of
from ..io.folders import confined
from ..io.published_files import published, size_text, told_forms
from ..memory.budget import Allowed
from ..workers.process_tree import end_own
from ..workers.protocol import Message
from . import forms
from .prompt_check import check_prompt, missing_files
from .required_tokenizers import Lacking
from .used_files import compared, states
from .worker import NO_DEVICE, Worker

ROUTES_AT_ONCE = 8  # requests to packs' routes that are answered at the same time


class Calls:
    """The calls of the server to one worker. Each `on_NAME` answers the call of that name."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.pending: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.route_threads = ThreadPoolExecutor(ROUTES_AT_ONCE, "pack route")

    def read(self) -> None:
        """Read messages and queue them, until the server closes the connection."""
        try:
            while True:
                message, payload = self.worker.channel.receive()
                if message["op"] == "route":
                    self.route_threads.submit(self._answer_page, message, payload)
                elif message["op"] in ("run", "free"):
                    self.worker.jobs.put(message)
                elif message["op"] == "interrupt":
                    self.worker.executor.cancel(message.get("prompt_id"))
                elif message["op"] == "pause":
                    self.worker.pause(message["prompt_id"])
                elif message["op"] == "step_aside":
                    self.worker.stepping_aside.add(message["prompt_id"])
                else:
                    self.pending.put(message)
        except (EOFError, OSError):
            end_own()  # the server has stored all results on disk

    def answer(self) -> None:
        """Answer calls without end."""
        while True:
            message = self.pending.get()
            try:
                result = getattr(self, f"on_{message['op']}")(message)
                self.worker.channel.send({"reply": message["call"], "result": result})
            except (BrokenPipeError, EOFError):
                return
            except Exception as error:
                if not isinstance(error, SluiceError):
                    traceback.print_exc()
                text = str(error) if isinstance(error, SluiceError) else f"{type(error).__name__}: {error}"
                self.worker.channel.send({"reply": message["call"], "error": text, "type": type(error).__name__})

    def _answer_page(self, message: Message, payload: bytes) -> None:
        """Answer a request to a pack's route."""
        try:
            assert self.worker.packs is not None
            answer = self.worker.packs.answer(message["method"], message["path"], message["headers"], payload)
            reply: Message = {"result": {"status": answer.status, "headers": answer.headers}}
        except Exception as error:
            reply, answer = {"error": str(error), "type": type(error).__name__}, None
        self.worker.channel.send({"reply": message["call"], **reply}, answer.body if answer else b"")

    def on_object_info(self, message: Message) -> Any:
        """{"names"?}: descriptions of node classes for the editor."""
        names = message.get("names")
        from .registry import second_ids

        classes = self.worker.classes
        chosen = classes if names is None else {name: classes[name] for name in names if name in classes}
        return object_info(chosen, self.worker.titles, second_ids(classes))

    def on_identity(self, message: Message) -> Any:
        """{"version", "nodes"}: equal for two workers that give the same results for all prompts; and the names of
        their "packs".
        """
        from ... import __version__

        nodes = sorted(f"{name} {getattr(cls, 'RETURN_TYPES', ())}" for name, cls in self.worker.classes.items())
        packs = sorted(pack["name"] for pack in (self.worker.packs.packs if self.worker.packs else ()) if pack["nodes"])
        digest = hashlib.sha256("\n".join(nodes).encode()).hexdigest()[:16]
        return {"version": __version__, "nodes": digest, "packs": packs}

    def on_packs(self, message: Message) -> Any:
        """The results of importing the node packs."""
        return self.worker.packs.packs if self.worker.packs else []

    def on_pack_routes(self, message: Message) -> Any:
        """{"routes": [{"method", "pattern"}], "on_prompt": whether packs change prompts before they are queued}."""
        return self.worker.routes

    def on_alter_prompt(self, message: Message) -> Any:
        """{"request"}: a request to run a prompt, as packs change it."""
        return self.worker.packs.alter_prompt(message["request"]) if self.worker.packs else message["request"]

    def on_validate(self, message: Message) -> Any:
        """{"prompt", "targets"}: which outputs can run, and the problems of the others."""
        classes = self.worker.classes
        prompt, packs = without_editor_nodes(message["prompt"], classes), pack_names(message.get("workflow"))
        checked = check_prompt(prompt, classes, self.worker.folders, message.get("targets"), packs)
        return {**asdict(checked.found), "problems": checked.found.sentences, "models": checked.models}

    def on_flatten(self, message: Message) -> Any:
        """{"workflow"}: the prompt that the editor would send for a canvas."""
        return canvas_to_prompt(message["workflow"], self.worker.classes)

    def on_model_info(self, message: Message) -> Any:
        """{"kind", "names"}: the base model of each of these files."""
        from .model_info import model_info

        return model_info(self.worker.folders, message["kind"], message["names"])

    def on_loras(self, message: Message) -> Any:
        """{"category"?, "model"?}: the LoRA files that are here, and whether each fits this model."""
        from .lora_info import lora_list

        return lora_list(self.worker.folders, message.get("category"), message.get("model"))

    def on_form(self, message: Message) -> Any:
        """{"workflow"}: a canvas or prompt as a form, see forms.py."""
        return forms.form(message["workflow"], self.worker.classes)

    def on_filled(self, message: Message) -> Any:
        """{"workflow", "values": [[node, input, value]], "loras": [[name, strength]]}: what is to be queued."""
        return forms.filled(message["workflow"], message["values"], message["loras"], self.worker.classes)

    def on_used_files(self, message: Message) -> Any:
        """{"recorded"}: [{"category", "name", "state", "text"}] of the files an image names, compared to ours."""
        folders = self.worker.folders
        return states(compared(message["recorded"], folders, hashes_of(folders.user)))

    def on_missing(self, message: Message) -> Any:
        """{"workflow"}: the model files that it names and that were not found, and missing tokenizers."""
        embedded = read_workflow_bytes(json.dumps(message["workflow"]).encode(), "the workflow")
        prompt = to_prompt(embedded, self.worker.classes, choose=lambda options: options[0])
        models, tokenizers = missing_files(prompt, self.worker.classes, self.worker.folders)
        files = [self._lacking(wanted.name, wanted.category, wanted.node_id, wanted.input) for wanted in models]
        return files + [_tokenizer(one) for one in tokenizers]

    def _lacking(self, name: str, category: str, node_id: str, input_name: str) -> dict[str, Any]:
        repository, folder = published(name), self.worker.folders.place_for(category)
        return {
            "name": name, "category": category, "folder": str(folder or ""), "node_id": node_id, "input": input_name,
            "source": repository and f"https://huggingface.co/{repository}",
            "size": size_text(name), "smaller": told_forms(name),
            "message": self.worker.folders.explain_missing(category, name),
        }  # fmt: skip

    def on_budget(self, message: Message) -> Any:
        """{"vram"?, "ram"?}: set budgets, as on the command line or in bytes. Returns those in force."""
        if not self._can_compute():
            return {}
        from ..runtime.device_notice import budget_problem

        runtime = self.worker.host.runtime
        given = {key: str(message[key]) for key in ("vram", "ram") if key in message}
        if given:
            allowed = Allowed.parse(**(runtime.budget.words | given))
            problem = budget_problem(runtime, allowed)
            if problem:
                raise InputError(problem)
            runtime.budget = allowed
            self.worker.jobs.put({"op": "fit"})
        return runtime.budget.words

    def on_nearest(self, message: Message) -> Any:
        """{"image", "others"}, files in the output folder -> {"index", "psnr", "ssim"} of the other that is most alike.

        psnr in dB: None for an image of another size, and for an equal one, whose ssim is 1.
        """
        from ..images.similarity import nearest

        output = self.worker.folders.output
        index, decibels, alike = nearest(
            confined(output, message["image"]), [confined(output, name) for name in message["others"]]
        )
        return {"index": index, "psnr": None if decibels == math.inf else decibels, "ssim": alike}

    def on_doctor(self, message: Message) -> Any:
        """Whether this machine is ready, line by line. Takes a second or two, because a disk is measured."""
        from ..doctor.examine import examine

        return [finding.record() for finding in examine(self.worker.folders, port=None)]

    def _can_compute(self) -> bool:
        return (
            self.worker.prepared.is_set() and not self.worker.trouble and self.worker.options.get("device") != NO_DEVICE
        )

    def on_system(self, message: Message) -> Any:
        """The devices; {} while torch is being imported, because the page calls this then."""
        if not self._can_compute():
            return {}
        import torch

        return {"torch": torch.__version__, "devices": self.worker.host.runtime.device_report()}


def _tokenizer(lacking: Lacking) -> dict[str, Any]:
    published = lacking.published
    return {
        "name": f"{published.title} tokenizer ({published.files})", "category": "tokenizers",
        "folder": str(lacking.folder or ""), "node_id": lacking.node_id, "input": lacking.input,
        "source": published.address, "message": lacking.text,
    }  # fmt: skip
