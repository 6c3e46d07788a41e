"""The messages of a worker: they change the server's record of it, and go on to the clients."""

from __future__ import annotations

from ..workers.protocol import Message
from .announcements import Announcements
from .clients import Clients
from .members import Member

_PREVIEWS = ("auto", "latent2rgb", "taesd")  # as clients ask for them; "default" and "none" do not


def pass_on(member: Member, message: Message, payload: bytes, clients: Clients, announcements: Announcements) -> None:
    """Pass an event or a preview on to the client of the job; our own events go to all, with its name.

    Clients take an event of a job for the job that they show: one of another page would end its progress. As in
    ComfyUI, `execution_interrupted` goes to all if no client has queued the job.
    """
    client_id = None if member.running is None else member.running.request["client_id"]
    if "preview" in message:
        if member.running is not None and client_id is not None:
            asked = member.running.request["extra_data"].get("preview_method") in _PREVIEWS
            clients.send_preview(message["preview"], message["image_type"], payload, client_id, asked)
        return
    if "tell" in message:
        clients.send_for_pack(message["tell"], message.get("data"), payload, message["client_id"])
        return
    event, data = message["event"], message["data"]
    if event == "sluice.fetching":
        member.fetching = data["text"]
        announcements.workers_changed()
        return
    if event == "executing":
        member.node, member.fetching = data["node"], None
    elif event == "progress_state":
        member.progress = data
    elif event == "execution_start":  # goes to the page of the job only; the Memory tab of every page needs it
        _to_all(member, "sluice.started", {"prompt_id": data["prompt_id"]}, clients)
    if event.startswith("sluice."):
        _to_all(member, event, data, clients)
    elif client_id is not None or event == "execution_interrupted":
        clients.send(event, data, client_id)
    if event == "sluice.step" and client_id is not None:
        clients.send_node_text(data["prompt_id"], data["node_id"], data["text"], client_id)


def _to_all(member: Member, event: str, data: Message, clients: Clients) -> None:
    """Store one of our events for pages that open later, and send it to all pages, with the worker's name."""
    member.note(event, data)
    clients.send(event, {**data, "worker": member.name})
