// An image beside the exact image of the same workflow: queues the job that makes it, waits for it, and shows both.

import * as server from "./api.mjs";
import { compare } from "./compare.mjs";
import { factsLine, likeness } from "./facts.mjs";

const ENDS = ["execution_success", "execution_error", "execution_interrupted"];

/** Show `picture` beside its exact image; `say(text)` shows the progress. Raises Refused. */
export async function showExact(picture, say) {
  const { prompt_id } = await server.makeExact(picture);
  say("The exact image is being made. It appears here when it is ready.");
  const made = await ended(picture, prompt_id);
  if (made.state !== "completed") return say("The exact image was not made: its job failed or was cancelled.");
  say("");
  const exact = made.picture;
  compare(
    { url: server.pictureUrl(picture), title: "As made", facts: factsLine(picture) },
    { url: server.pictureUrl(exact), title: "Exact", facts: factsLine({ ...picture, ...exact }), },
    likeness(exact),
  );
}

/** The result of the exact image's job. */
function ended(picture, prompt_id) {
  return new Promise((resolve, reject) => {
    const look = async () => {
      try {
        const found = await server.exactOf(picture);
        const waits = found.prompt_id === prompt_id && ["pending", "in_progress"].includes(found.state);
        if (!waits) stop(), resolve(found);
      } catch (error) {
        stop(), reject(error);
      }
    };
    const stop = server.listen([...ENDS, "status", "reconnected"], look);
    look();
  });
}
