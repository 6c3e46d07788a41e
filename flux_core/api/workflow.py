"""A workflow file as a Python function: its text, its seeds and any other input are the arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..commands import overrides, workflows
from ..errors import PromptError
from ..graph.canvas_edit import canvas_saying
from ..graph.prompt import JsonPrompt, is_link, name_of
from ..graph.templates import unfilled, with_defaults
from ..runtime.settings import Settings
from .program import OnStep, PathLike, Program

if TYPE_CHECKING:
    from PIL import Image

CONDITIONED = ("positive", "conditioning")  # inputs of samplers and guiders that the prompt's encoding reaches
TEXTS = ("text", "t5xxl", "clip_l", "prompt", "string", "value")


def workflow(
    file: PathLike,
    *,
    vram: str = "auto",
    ram: str = "auto",
    device: str | None = None,
    dtype: str = "auto",
    cache: str = "off",
    models: Sequence[PathLike] = (),
    input: PathLike | None = None,
) -> Workflow:
    """A workflow inside an image, or a JSON file, as a function. The budgets and folders are those of `sluice.load`;
    input: the folder of LoadImage. Raises MissingFileError, WorkflowError, InputError."""
    program = Program(Settings.parse(device, dtype, vram, ram, cache), models, input)
    return Workflow(program, workflows.read(Path(file), program.classes))


class Workflow:
    """A workflow that has been read: call it to run it. Made by `workflow`."""

    def __init__(self, program: Program, read: workflows.WorkflowFile) -> None:
        self._program, self._read = program, read

    def __call__(
        self,
        prompt: str | None = None,
        *,
        seed: int | None = None,
        set: Mapping[str, Any] | None = None,
        values: Sequence[str] = (),
        on_step: OnStep | None = None,
        progress: bool = True,
        **inputs: Any,
    ) -> list[Image.Image]:
        """The images of its output nodes, each with the changed workflow in `image.info`.

        prompt: the text that leads to the sampler's positive input. seed: for every seed of the workflow. set: values
        by "NODE.INPUT", the node being a number, a title or a class. Other keywords are inputs that only one node
        has (`steps=8`); values: the same as texts, "NODE.INPUT=VALUE", as on the command line. Raises PromptError with
        everything that does not fit, and Interrupted after `cancel`.
        """
        named = {**(set or {}), **inputs}
        settings = [*values, *(f"{name}={_word(value)}" for name, value in named.items())]
        before = self._read.prompt
        with_text = before if prompt is None else _with_text(before, prompt)
        fixed = None if seed is None else lambda old: seed
        after = overrides.apply(with_text, self._program.classes, settings, fixed, self._program.titles, option="")
        after, _ = with_defaults(after, self._program.classes)
        if left := unfilled(after):
            raise PromptError([f"{self._read.path.name} is a template:", *left])
        checked, outputs = self._program.checked(after, self._read.path.name)
        canvas = self._read.embedded.workflow
        if canvas:
            canvas = canvas_saying(canvas, before, after, self._program.classes, self._read.canvas)
        return self._program.run(checked, outputs, canvas, on_step, progress)

    @property
    def prompt(self) -> JsonPrompt:
        """The workflow in ComfyUI's API form: node id -> {"class_type", "inputs"}."""
        return self._read.prompt

    def cancel(self) -> None:
        """Stop the running call within one block of the model; may be called from any thread."""
        self._program.cancel()


def _word(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _with_text(prompt: dict[str, Any], text: str) -> dict[str, Any]:
    """The prompt with another positive text. Raises PromptError unless exactly one node holds that text."""
    places = dict.fromkeys(_positive_texts(prompt))
    nodes = dict.fromkeys(node_id for node_id, _ in places)
    if len(nodes) != 1:
        there = "; ".join(name_of(node_id, prompt[node_id]) for node_id in nodes)
        reason = f"several nodes may hold it: {there}" if nodes else "no text leads to a sampler"
        raise PromptError([f"prompt: {reason}. Name the input instead: set={{'NODE.INPUT': ...}}."])
    (node_id,) = nodes
    changed = {name: text for node, name in places if node == node_id}
    node = prompt[node_id]
    return {**prompt, node_id: {**node, "inputs": {**node["inputs"], **changed}}}


def _positive_texts(prompt: JsonPrompt) -> Iterator[tuple[str, str]]:
    """(node, input) of every text on the way to a positive prompt."""
    starts = [
        node["inputs"][name] for node in prompt.values() for name in CONDITIONED if is_link(node["inputs"].get(name))
    ]
    waiting, seen = [str(link[0]) for link in starts], set[str]()
    while waiting:
        node_id = waiting.pop()
        if node_id in seen or node_id not in prompt:
            continue
        seen.add(node_id)
        inputs = prompt[node_id]["inputs"]
        yield from ((node_id, name) for name in TEXTS if isinstance(inputs.get(name), str))
        waiting += [str(value[0]) for name, value in inputs.items() if is_link(value) and name != "negative"]
