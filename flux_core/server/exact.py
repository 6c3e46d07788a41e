"""An image of the gallery beside the exact image of the same workflow: without step cache, integer products and
another library's attention.

POST /sluice/gallery/exact    {"filename", "subfolder", "client_id"?} -> {"prompt_id"}: a job makes the exact image
GET  /sluice/gallery/exact    ?filename&subfolder -> {"state", "prompt_id", "picture"}: what has become of it

The job has extra_data["sluice"]["exact_of"]; the worker computes such jobs exactly. An image is made exactly only once.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from ..errors import MissingFileError, WorkflowError
from ..io.embedded import read_workflow
from ..io.folders import confined
from .job import COMPLETED, PENDING, RUNNING, Summary
from .prompts import answered, queued
from .services import Json, Route, Services, json_object, services

NONE = "none"  # the state of an image that has not been made exactly
OPEN = (PENDING, RUNNING)


async def make(request: web.Request) -> web.Response:
    """Queue the job, unless one waits, runs or has made the image already."""
    here, body = services(request), await json_object(request)
    filename, subfolder = body.get("filename"), body.get("subfolder", "")
    if not isinstance(filename, str) or not isinstance(subfolder, str):
        raise WorkflowError('An image is named by {"filename", "subfolder"}.')
    known = _run(here, filename, subfolder)
    if known is not None:
        return web.json_response({"prompt_id": known.prompt_id})
    path = confined(here.folders.output, _below(filename, subfolder))
    if not path.is_file():
        raise MissingFileError(f"There is no image {filename!r} any more.")
    embedded = await asyncio.to_thread(read_workflow, path)
    prompt = embedded.prompt or await answered(here, "flatten", workflow=embedded.workflow)
    extra: Json = {"sluice": {"exact_of": {"filename": filename, "subfolder": subfolder}}}
    if embedded.workflow:
        extra["extra_pnginfo"] = {"workflow": embedded.workflow}
    return await queued(here, {"prompt": prompt, "extra_data": extra, "client_id": body.get("client_id")})


async def look(request: web.Request) -> web.Response:
    """ "picture", once the job is done: the exact image, {"filename", "subfolder", "type", "seconds", "psnr", "ssim"}.

    psnr is in dB, and null for an equal image, whose ssim is 1.
    """
    here = services(request)
    filename, subfolder = request.query.get("filename", ""), request.query.get("subfolder", "")
    job = _run(here, filename, subfolder)
    if job is None:
        return web.json_response({"state": NONE, "prompt_id": None, "picture": None})
    picture = await _compared(here, _below(filename, subfolder), job) if job.status == COMPLETED else None
    return web.json_response({"state": job.status, "prompt_id": job.prompt_id, "picture": picture})


def _below(filename: str, subfolder: str) -> str:
    return f"{subfolder}/{filename}".lstrip("/")


def _run(here: Services, filename: str, subfolder: str) -> Summary | None:
    """The newest job that makes this image exactly; none that failed, was cancelled, or whose images are gone."""
    for job in here.store.history.exact_runs(filename, subfolder):
        if job.status in OPEN or (job.status == COMPLETED and _images(here, job)):
            return job
    return None


def _images(here: Services, job: Summary) -> list[Json]:
    """The saved images of a job that still exist."""
    listed: list[Any] = []
    for output in job.outputs.values():
        listed += output.get("images", ()) if isinstance(output, dict) else ()
    saved = [image for image in listed if isinstance(image, dict) and image.get("type") == "output"]
    return [one for one in saved if confined(here.folders.output, _below(one["filename"], one["subfolder"])).is_file()]


async def _compared(here: Services, name: str, job: Summary) -> Json:
    """That image of the job that belongs to `name`, which may be one of a batch, with how alike the two are."""
    images = _images(here, job)
    others = [_below(image["filename"], image["subfolder"]) for image in images]
    found = await answered(here, "nearest", image=name, others=others)
    facts = {"seconds": job.facts.get("seconds"), "psnr": found["psnr"], "ssim": found["ssim"]}
    return {**images[found["index"]], **facts}


ROUTES: tuple[Route, ...] = (("POST", "/sluice/gallery/exact", make), ("GET", "/sluice/gallery/exact", look))
