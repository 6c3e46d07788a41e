"""Routes for the queue, the history and their jobs: list, cancel, delete. Both families of ComfyUI's routes.

Independent of: how jobs come in or are run.
"""

from __future__ import annotations

from aiohttp import web

from .job import ENDED, FAILED, PAUSED, PENDING, RUNNING, Summary, plain_number
from .services import Json, Route, json_object, refuse, services, texts, whole

MOST_JOBS = 1000  # in one answer
_ALL = (PENDING, RUNNING, *ENDED)  # statuses that ComfyUI's clients know; paused jobs are listed only on request
# What the frontend requires of an error; one that happened outside nodes does not have it.
_OUTSIDE_NODES: Json = {"node_id": "", "node_type": "", "traceback": []}
_SHOWN_KINDS = {"images": "images", "gifs": "video", "video": "video", "audio": "audio"}


async def get_queue(request: web.Request) -> web.Response:
    """Running and waiting jobs."""
    here = services(request)
    return _json(here.store.queue_json(here.job_runner.members.running_ids))


async def post_queue(request: web.Request) -> web.Response:
    """{"clear": true} or {"delete": [ids]}: remove jobs that have not started from the queue."""
    here, body = services(request), await json_object(request)
    if body.get("clear"):
        here.job_runner.clear()
    if "delete" in body:
        here.job_runner.clear(texts(body["delete"]))
    return web.Response()


async def get_history(request: web.Request) -> web.Response:
    """?max_items= the newest; with &offset= counted from the oldest."""
    max_items, offset = whole(request, "max_items"), whole(request, "offset", -1)
    if max_items is not None and max_items < 0:
        max_items = None
    return _json(services(request).store.history.as_json(max_items, -1 if offset is None else offset))


async def get_entry(request: web.Request) -> web.Response:
    """One entry of the history; {} for a job that has not ended."""
    return _json(services(request).store.history.entry_json(request.match_info["id"]))


async def post_history(request: web.Request) -> web.Response:
    """{"clear": true} or {"delete": [ids]}: delete entries; images stay."""
    here, body = services(request), await json_object(request)
    if body.get("clear"):
        here.store.history.delete()
    if "delete" in body:
        here.store.history.delete(texts(body["delete"]))
    return web.Response()


async def post_interrupt(request: web.Request) -> web.Response:
    """{"prompt_id": id} or {"client_id": id}, or nothing for all running jobs."""
    body = await json_object(request, {})
    prompt_id, client_id = (body[key] if isinstance(body.get(key), str) else None for key in ("prompt_id", "client_id"))
    services(request).job_runner.interrupt(prompt_id, client_id)
    return web.Response()


async def post_free(request: web.Request) -> web.Response:
    """{"unload_models": true, "free_memory": true}, done before the next job."""
    body = await json_object(request, {})
    wanted = {key: bool(body.get(key)) for key in ("unload_models", "free_memory")}
    for member in services(request).job_runner.members:
        member.worker.tell("free", **wanted)
    return web.Response()


# -- jobs --------------------------------------------------------------------------------------------------------------


async def get_jobs(request: web.Request) -> web.Response:
    """?status=a,b&limit=&offset=&sort_order=asc"""
    statuses = [one for one in request.query.get("status", "").split(",") if one] or list(_ALL)
    unknown = [one for one in statuses if one not in (*_ALL, PAUSED)]
    if unknown:
        return refuse(400, f"There is no status {unknown[0][:50]!r}; choose among {', '.join((*_ALL, PAUSED))}.")
    limit, offset = whole(request, "limit", MOST_JOBS) or MOST_JOBS, max(0, whole(request, "offset", 0) or 0)
    limit = min(max(limit, 1), MOST_JOBS)
    ascending = request.query.get("sort_order") == "asc"
    found, total = services(request).store.history.summaries(statuses, limit, offset, ascending)
    pagination = {"offset": offset, "limit": limit, "total": total, "has_more": offset + len(found) < total}
    return web.json_response({"jobs": [listed(one) for one in found], "pagination": pagination})


async def get_job(request: web.Request) -> web.Response:
    """One job with all details and its workflow."""
    here = services(request)
    job = here.store.get(request.match_info["id"])
    found = here.store.history.summary(request.match_info["id"])
    if job is None or found is None:
        return web.json_response({"error": "Job not found"}, status=404)
    result = job.result or {}
    status = result.get("status")
    detail = listed(found) | {"outputs": result.get("outputs", {})}
    detail["update_time"] = job.ended or job.started or job.created
    if status is not None:
        detail["execution_status"] = status
    extra = job.request["extra_data"]
    detail["workflow"] = {"prompt": job.request["prompt"], "extra_data": extra}
    return web.json_response(detail)


async def cancel_job(request: web.Request) -> web.Response:
    """A waiting job is removed from the queue, a running one stops at its next step."""
    return web.json_response({"cancelled": services(request).job_runner.cancel(request.match_info["id"])})


async def cancel_jobs(request: web.Request) -> web.Response:
    """{"job_ids": [ids]}"""
    ids = texts((await json_object(request)).get("job_ids"))
    return web.json_response({"cancelled": any([services(request).job_runner.cancel(one) for one in ids])})


def listed(job: Summary) -> Json:
    """A job in the form of the frontend's list. The frontend rejects the whole list if one entry is wrong."""
    shown = [(node, kind, item) for node, kind, item in _shown(job.outputs)]
    summary: Json = {
        "id": job.prompt_id,
        "status": job.status,
        "create_time": job.created,
        "priority": plain_number(job.number),
        "outputs_count": len(shown),
        "previewable_outputs_count": len(shown),
    }
    times = {"execution_start_time": job.started, "execution_end_time": job.ended}
    summary |= {key: time for key, time in times.items() if time is not None}
    if isinstance(job.workflow_id, str):
        summary["workflow_id"] = job.workflow_id
    if shown:
        node, kind, item = next((one for one in shown if one[2].get("type") == "output"), shown[0])
        summary["preview_output"] = {**item, "nodeId": node, "mediaType": kind}
    if job.status == FAILED and job.last_message and job.last_message[0] == "execution_error":
        summary["execution_error"] = _OUTSIDE_NODES | job.last_message[1]
    return summary


def _shown(outputs: Json) -> list[tuple[str, str, Json]]:
    """(node, kind, file) of all files that nodes have returned."""
    return [
        (node, _SHOWN_KINDS[kind], item)
        for node, output in outputs.items()
        for kind, items in (output.items() if isinstance(output, dict) else ())
        if kind in _SHOWN_KINDS and isinstance(items, list)
        for item in items
        if isinstance(item, dict) and isinstance(item.get("filename"), str)
    ]


def _json(text: str) -> web.Response:
    return web.Response(text=text, content_type="application/json")


ROUTES: tuple[Route, ...] = (
    ("GET", "/queue", get_queue),
    ("POST", "/queue", post_queue),
    ("GET", "/history", get_history),
    ("GET", "/history/{id}", get_entry),
    ("POST", "/history", post_history),
    ("POST", "/interrupt", post_interrupt),
    ("POST", "/free", post_free),
    ("GET", "/jobs", get_jobs),
    ("POST", "/jobs/cancel", cancel_jobs),
    ("GET", "/jobs/{id}", get_job),
    ("POST", "/jobs/{id}/cancel", cancel_job),
)
