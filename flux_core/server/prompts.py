"""POST /prompt: the worker checks a graph; it is stored in the queue before the request is answered.

Independent of: how graphs are checked or run.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from aiohttp import web

from ..errors import WorkflowError
from ..io.embedded import clean_prompt
from ..workers.process import WorkerDied
from .job import plain_number
from .services import Json, Route, Services, json_object, refuse, services, texts

log = logging.getLogger(__name__)

ATTEMPTS = 3  # of one call
LONGEST_ID = 200
_SECRETS = ("auth_token_comfy_org", "api_key_comfy_org")  # the frontend sends them for paid services; never stored


async def get_prompt(request: web.Request) -> web.Response:
    """The number of jobs left."""
    return web.json_response(services(request).job_runner.announcements.status)


async def post_prompt(request: web.Request) -> web.Response:
    """Check a prompt and queue it. Refused prompts use a number too, as in ComfyUI."""
    return await queued(services(request), await json_object(request))


async def queued(here: Services, body: Json) -> web.Response:
    """The answer to a request to run `body["prompt"]`: its job's id and number, or why it was refused."""
    if here.packs_see_prompts:
        body = await answered(here, "alter_prompt", request=body)
    number = _number(body, here)
    prompt_id = body.get("prompt_id") or uuid.uuid4().hex
    if not isinstance(prompt_id, str) or not prompt_id.isprintable() or len(prompt_id) > LONGEST_ID:
        return refuse(400, f"A prompt_id is a printable text of at most {LONGEST_ID} characters.", "invalid_prompt_id")
    if "prompt" not in body:
        return refuse(400, "No prompt provided", "no_prompt")
    if _is_canvas(body["prompt"]):
        body = await _converted(here, body)
    found = await _validated(here, clean_prompt(body["prompt"]), body)
    if found["error"]:
        _tell_refusal(here, body, found["problems"])
        refusal = {"error": found["error"], "node_errors": found["node_errors"], "problems": found["problems"]}
        return web.json_response(refusal, status=400)
    try:
        job = here.job_runner.add(prompt_id, number, _request(body, found))
    except KeyError:
        return refuse(409, f"There is a job with the id {prompt_id} already.", "prompt_id_taken")
    node_errors = found["node_errors"]
    return web.json_response({"prompt_id": job.prompt_id, "number": plain_number(number), "node_errors": node_errors})


def _is_canvas(prompt: Any) -> bool:
    """Whether it is what the editor saves instead of what it sends."""
    return isinstance(prompt, dict) and isinstance(prompt.get("nodes"), list)


def _dict(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


async def _converted(here: Services, body: Json) -> Json:
    """The request with its canvas converted to the prompt that the editor would send; the canvas is kept for the
    images.
    """
    canvas = body["prompt"]
    prompt = await answered(here, "flatten", workflow=canvas)
    extra = _dict(body.get("extra_data"))
    info = _dict(extra.get("extra_pnginfo"))
    return {**body, "prompt": prompt, "extra_data": {**extra, "extra_pnginfo": {"workflow": canvas, **info}}}


def _tell_refusal(here: Services, body: Json, problems: Sequence[str]) -> None:
    """Send the sentences to the page, which shows only the problems' kinds from the response, and to the log."""
    log.error("A workflow was not queued: %s", " ".join(problems))
    client_id = body.get("client_id")
    if isinstance(client_id, str):
        here.clients.send("sluice.refused", {"problems": list(problems)}, client_id)


async def _validated(here: Services, prompt: Json, body: Json) -> Json:
    targets = body.get("partial_execution_targets")
    canvas = _dict(_dict(body.get("extra_data")).get("extra_pnginfo")).get(
        "workflow"
    )  # tells where its nodes come from
    arguments = {"prompt": prompt, "targets": None if targets is None else texts(targets), "workflow": canvas}
    found: Json = await answered(here, "validate", **arguments)
    return found


async def answered(here: Services, question: str, **arguments: Any) -> Any:
    """The worker's reply to a call. The call is repeated if the worker dies because of a job."""
    for _ in range(ATTEMPTS - 1):
        with suppress(WorkerDied):
            return await here.job_runner.worker.call(question, **arguments)
    return await here.job_runner.worker.call(question, **arguments)


def _request(body: Json, found: Json) -> Json:
    """The stored part of a request: enough to run it at any time."""
    client_id = body.get("client_id")
    client_id = client_id if isinstance(client_id, str) else None
    extra = body.get("extra_data")
    extra = dict(extra) if isinstance(extra, dict) else {}
    for secret in _SECRETS:
        extra.pop(secret, None)
    if not isinstance(extra.get("extra_pnginfo", {}), dict):
        raise WorkflowError("extra_pnginfo should be an object.")
    if client_id is not None:
        extra["client_id"] = client_id
    return {
        "prompt": found["prompt"], "extra_data": extra, "outputs": list(found["outputs"]), "client_id": client_id,
        "models": found["models"],
    }  # fmt: skip


def _number(body: Json, here: Services) -> float:
    """The position in the queue: as requested, at the front, or at the end."""
    own = here.store.next_number()
    asked = body.get("number")
    if isinstance(asked, (int, float)) and not isinstance(asked, bool) and abs(asked) < 1e15:
        return float(asked)
    return -own if body.get("front") else own


ROUTES: tuple[Route, ...] = (("GET", "/prompt", get_prompt), ("POST", "/prompt", post_prompt))
