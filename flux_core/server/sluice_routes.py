"""Our own routes, for the panels in web/comfyui: memory, budgets, missing model files, node packs.

Independent of: how memory is managed; it passes on what the core said last.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import web

from ..errors import InputError, WorkflowError
from ..io import strict_json
from ..io.embedded import read_workflow_bytes
from ..io.saving import write_whole
from ..workers.process import with_budget
from .members import Member
from .services import Json, Route, Services, json_object, refuse, services

LONGEST_LEASE = 86400  # seconds


async def workers(request: web.Request) -> web.Response:
    """Each worker as in `sluice.workers`, with "events": the newest of each kind, for a page that opened later."""
    members = services(request).job_runner.members
    return web.json_response([{**member.account, "events": member.last_events} for member in members])


async def budget(request: web.Request) -> web.Response:
    """{"vram": "8GB", "ram": "16GB", "worker": name}, each optional: the budgets for the next step of this worker, or
    of all workers. Returns the budgets in force: {name: {"vram", "ram"}}.
    """
    body = await json_object(request)
    given = {key: body[key] for key in ("vram", "ram") if key in body}
    if not all(isinstance(value, (str, int, float)) and not isinstance(value, bool) for value in given.values()):
        return refuse(400, 'A budget is a number of bytes or a text like "8GB".')
    here = services(request)
    members = list(here.job_runner.members)
    chosen = [member for member in members if body.get("worker") in (None, member.name)]
    if not chosen:
        return refuse(404, f"There is no worker {str(body['worker'])[:100]!r}.")
    budgets = {}
    for member in chosen:
        try:
            budgets[member.name] = await member.worker.call("budget", **given)
        except InputError as error:
            return refuse(400, str(error) if len(members) == 1 else f"{member.name}: {error}")
        if given and budgets[member.name]:
            _set(here, member, budgets[member.name])
    return web.json_response(budgets)


def _set(here: Services, member: Member, allowed: dict[str, str]) -> None:
    """Store a worker's new budget for processes that replace it, and for the next server here."""
    member.worker.options.update(with_budget(member.worker.options, allowed))
    file = budget_file(here.folders.user)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, strict_json.dumps(_kept(here.folders.user) | {member.name: allowed}).encode())
    here.clients.send("sluice.budget", {**allowed, "worker": member.name})


def budget_file(user: Path) -> Path:
    """The file of budgets set in the page, for the next start: {name of the worker: {"vram", "ram"}}."""
    return user / "sluice" / "budget.json"


def kept_budget(user: Path, name: str) -> dict[str, str]:
    """The budgets set in the page for a worker of the last server here: {"vram", "ram"}, or {}."""
    kept = _kept(user).get(name)
    return {key: kept[key] for key in ("vram", "ram") if isinstance(kept, dict) and isinstance(kept.get(key), str)}


def _kept(user: Path) -> Json:
    try:
        kept = strict_json.loads(budget_file(user).read_bytes(), "the budgets")
    except (OSError, WorkflowError):
        return {}
    return kept if isinstance(kept, dict) else {}


async def missing(request: web.Request) -> web.Response:
    """A workflow (canvas or prompt) -> the missing model files that it names, with where to get and put them."""
    body = await json_object(request)
    return web.json_response(await services(request).job_runner.worker.call("missing", workflow=body))


async def used_files(request: web.Request) -> web.Response:
    """An image -> the files it was made with, each compared with the one here: [{"category", "name", "state", "text"}].

    state: same, other, missing or unknown. [] for an image that names none, or that is no image.
    """
    data = await request.read()
    try:
        embedded = await asyncio.to_thread(read_workflow_bytes, data, "The image")
    except WorkflowError:
        return web.json_response([])
    if not embedded.files:
        return web.json_response([])
    return web.json_response(await services(request).job_runner.worker.call("used_files", recorded=embedded.files))


async def packs(request: web.Request) -> web.Response:
    """Node packs: name, nodes, and the reason if one could not be loaded."""
    here = services(request)
    here.packs = await here.job_runner.worker.call("packs")
    return web.json_response(here.packs)


async def paused(request: web.Request) -> web.Response:
    """The paused jobs: [{"prompt_id", "number", "created", "stopping"}]."""
    return web.json_response(services(request).job_runner.announcements.paused)


async def pause(request: web.Request) -> web.Response:
    """{"prompt_id": id} of a waiting or running job, or nothing for all running ones. Returns {"paused": [ids]}."""
    return web.json_response({"paused": services(request).job_runner.pause(await _one_job(request))})


async def resume(request: web.Request) -> web.Response:
    """{"prompt_id": id}, or nothing for all paused jobs. Returns {"resumed": [ids]}; a job that is still stopping stays
    paused.
    """
    return web.json_response({"resumed": services(request).job_runner.unpause(await _one_job(request))})


async def lend(request: web.Request) -> web.Response:
    """{"by": name of the program, "seconds": for how long}: it gets the memory of this machine's workers.

    Running jobs wait in their places and go on afterwards with the same result. Answers {"lease": id, "by", "seconds",
    "free"} when the memory is free. With {"lease": id, "seconds"} a lease lasts so many seconds from now; 404 if it
    has ended.
    """
    body = await json_object(request, {})
    seconds, by, renewed = body.get("seconds", 60), body.get("by", "another program"), body.get("lease")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 1 <= seconds <= LONGEST_LEASE:
        return refuse(400, f"A lease lasts from 1 to {LONGEST_LEASE} seconds; renew it for more.")
    if not isinstance(by, str) or not by.isprintable() or not 0 < len(by) <= 100:
        return refuse(400, 'The name of a program ("by") is a printable text of at most 100 characters.')
    try:
        lease, free = await services(request).job_runner.lending.lend(by, float(seconds), renewed)
    except (KeyError, TypeError):
        return refuse(404, "There is no such lease; it may have ended. Ask for a new one.")
    return web.json_response({"lease": lease.id, "by": lease.by, "seconds": seconds, "free": free})


async def leases(request: web.Request) -> web.Response:
    """The programs that have the card: [{"by", "seconds": left}]."""
    return web.json_response(services(request).job_runner.lending.account)


async def give_back(request: web.Request) -> web.Response:
    """Ends a lease. Answers {"ended": whether there was one}."""
    return web.json_response({"ended": services(request).job_runner.lending.give_back(request.match_info["lease"])})


async def _one_job(request: web.Request) -> str | None:
    prompt_id = (await json_object(request, {})).get("prompt_id")
    return prompt_id if isinstance(prompt_id, str) else None


async def doctor(request: web.Request) -> web.Response:
    """The findings of `sluice doctor` for this machine: [{"subject", "text", "advice", "needed", "good"}]."""
    return web.json_response(await services(request).job_runner.worker.call("doctor"))


ROUTES: tuple[Route, ...] = (
    ("GET", "/sluice/workers", workers),
    ("POST", "/sluice/budget", budget),
    ("POST", "/sluice/missing", missing),
    ("POST", "/sluice/used_files", used_files),
    ("GET", "/sluice/packs", packs),
    ("GET", "/sluice/doctor", doctor),
    ("GET", "/sluice/paused", paused),
    ("POST", "/sluice/pause", pause),
    ("POST", "/sluice/resume", resume),
    ("GET", "/sluice/yield", leases),
    ("POST", "/sluice/yield", lend),
    ("DELETE", "/sluice/yield/{lease}", give_back),
)
