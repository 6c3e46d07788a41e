"""Routes of our own, for the panels in web/comfyui: memory, budgets, missing model files, node packs.

Does not know: how memory is managed; it passes on what the core said last.
"""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from ..errors import InputError, WorkflowError
from ..io import strict_json
from ..io.saving import write_whole
from .services import Route, json_object, refuse, services


async def memory(request: web.Request) -> web.Response:
    """The newest event of each kind, {name: data}, for a page that opened after they were sent."""
    return web.json_response(services(request).job_runner.last_events)


async def budget(request: web.Request) -> web.Response:
    """{"vram": "8GB", "ram": "16GB"}, either may be left out: what the next step may use. Answers what holds now."""
    body = await json_object(request)
    given = {key: body[key] for key in ("vram", "ram") if key in body}
    if not all(isinstance(value, (str, int, float)) and not isinstance(value, bool) for value in given.values()):
        return refuse(400, 'A budget is a number of bytes or a text like "8GB".')
    here = services(request)
    worker = here.job_runner.worker
    try:
        allowed = await worker.call("budget", **given)
    except InputError as error:
        return refuse(400, str(error))
    if given and allowed:
        worker.options.update(allowed)  # a worker that takes this one's place keeps to it
        _keep(budget_file(here.folders.user), allowed)
        here.clients.send("sluice.budget", allowed)
    return web.json_response(allowed)


def budget_file(user: Path) -> Path:
    """Where budgets set in the page are kept for the next start."""
    return user / "sluice" / "budget.json"


def kept_budget(user: Path) -> dict[str, str]:
    """What was set in the page when a server ran here last: {"vram", "ram"}, or nothing."""
    try:
        kept = strict_json.loads(budget_file(user).read_bytes(), "the budget")
    except (OSError, WorkflowError):
        return {}
    return {key: kept[key] for key in ("vram", "ram") if isinstance(kept, dict) and isinstance(kept.get(key), str)}


def _keep(file: Path, allowed: dict[str, str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, strict_json.dumps(allowed).encode())


async def missing(request: web.Request) -> web.Response:
    """A workflow (canvas or prompt) -> the model files it names that are not here, and where to get and put them."""
    body = await json_object(request)
    return web.json_response(await services(request).job_runner.worker.call("missing", workflow=body))


async def packs(request: web.Request) -> web.Response:
    """Node packs: name, nodes, and for those that could not be loaded the reason."""
    here = services(request)
    here.packs = await here.job_runner.worker.call("packs")
    return web.json_response(here.packs)


ROUTES: tuple[Route, ...] = (
    ("GET", "/sluice/memory", memory),
    ("POST", "/sluice/budget", budget),
    ("POST", "/sluice/missing", missing),
    ("GET", "/sluice/packs", packs),
)
