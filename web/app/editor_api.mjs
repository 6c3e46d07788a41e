// The part of the editor's scripts/api.js that our panels use, for a page without the editor: requests, and the server's
// messages as events. An import map replaces the editor's file by this one.

const KEY = "sluice.client"; // a reloaded page receives the events of the job that it queued before
const PREVIEW = 1, PNG = 2; // kinds of binary messages and of images in them
const FIRST_WAIT = 500, LONGEST_WAIT = 8000; // ms before connecting again

class Api extends EventTarget {
  clientId = (sessionStorage[KEY] ||= Array.from({ length: 4 }, () => Math.random().toString(16).slice(2, 10)).join(""));

  constructor() {
    super();
    this.connect(FIRST_WAIT);
  }

  apiURL(route) {
    return `/api${route}`;
  }

  fetchApi(route, options) {
    return fetch(this.apiURL(route), options);
  }

  connect(wait, again = false) {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/ws?clientId=${this.clientId}`);
    socket.binaryType = "arraybuffer";
    let opened = false;
    socket.onopen = () => {
      opened = true;
      if (again) this.tell("reconnected", null);
    };
    socket.onmessage = ({ data }) => this.hear(data);
    socket.onclose = () => {
      const next = opened ? FIRST_WAIT : Math.min(2 * wait, LONGEST_WAIT);
      setTimeout(() => this.connect(next, true), next);
    };
  }

  hear(message) {
    if (typeof message === "string") {
      const { type, data } = JSON.parse(message);
      this.tell(type, data);
      return;
    }
    const view = new DataView(message);
    if (view.getUint32(0) !== PREVIEW) return;
    const type = view.getUint32(4) === PNG ? "image/png" : "image/jpeg";
    this.tell("b_preview", new Blob([message.slice(8)], { type }));
  }

  tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

export const api = new Api();
