// Blind votes: requests a pair from the server, shows it without names, sends the choice. The page has no names of settings.

const at = (id) => document.getElementById(id);
const EXAMPLE = 'sluice compare "exact: dev.png" "fast: dev.png --cache fast"';
let pair = null;

async function ask(address, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(address, options), told = await response.json().catch(() => null);
  if (!response.ok) throw new Error(told?.error?.message ?? told?.error ?? `The server answered ${response.status}.`);
  return told;
}

const chosen = () => encodeURIComponent(at("comparison").value);

async function next() {
  pair = await ask("/sluice/comparisons/draw", { comparison: at("comparison").value, voter: at("voter").value });
  at("voting").hidden = pair.pair === undefined;
  at("told").textContent = pair.pair === undefined ? `All pairs are judged: ${pair.judged} by you. Thank you.` : `${pair.judged} judged so far`;
  if (pair.pair === undefined) return;
  at("prompt").textContent = pair.prompt;
  at("left").src = pair.left;
  at("right").src = pair.right;
}

async function choose(choice) {
  if (pair?.pair === undefined) return;
  const { pair: number } = pair;
  pair = null; // a second press before the next pair is shown is ignored
  await told(async () => {
    await ask("/sluice/comparisons/vote", { pair: number, choice });
    await next();
  });
}

/** The comparisons that there are, with their votes up to now; the chosen one stays chosen. */
async function list() {
  const known = await ask("/sluice/comparisons"), { value } = at("comparison");
  at("comparison").replaceChildren(...known.map(({ name, settings, votes }) => new Option(`${settings.join(" · ")} (${votes} votes)`, name, false, name === value)));
  return known;
}

async function show() {
  await list();
  const { settings, voters } = await ask(`/sluice/comparisons/${chosen()}/votes`);
  const percent = (value) => (value === null ? "–" : `${value.toFixed(1)} %`);
  // From the counts: a stored rate such as 0.2875 is a little less than it says and would be rounded down.
  const preferred = ({ wins, ties, losses }) => (wins + ties + losses ? (100 * (wins + ties / 2)) / (wins + ties + losses) : null);
  const lines = [["setting", "preferred", "95 % interval", "wins", "ties", "losses"], ...settings.map((one) => [
    one.name, percent(preferred(one)), `${percent(one.low && 100 * one.low)} to ${percent(one.high && 100 * one.high)}`, one.wins, one.ties, one.losses,
  ])];
  at("table").replaceChildren(...lines.map((cells, number) => {
    const row = document.createElement("tr");
    row.append(...cells.map((text) => Object.assign(document.createElement(number ? "td" : "th"), { textContent: text })));
    return row;
  }));
  at("table").hidden = false;
  at("told").textContent = `Votes of ${voters.length} ${voters.length === 1 ? "person" : "people"}.`;
}

async function told(work) {
  try {
    await work();
  } catch (error) {
    at("told").textContent = error.message;
  }
}

at("begin").addEventListener("submit", (event) => {
  event.preventDefault();
  localStorage.setItem("sluice.voter", at("voter").value);
  at("results").hidden = false;
  at("table").hidden = true;
  at("page").href = `/sluice/comparisons/${chosen()}/files/index.html`;
  at("csv").href = `/sluice/comparisons/${chosen()}/votes.csv`;
  told(next);
});
at("show").addEventListener("click", () => told(show));
for (const button of document.querySelectorAll("[data-choice]")) button.addEventListener("click", () => choose(button.dataset.choice));
addEventListener("keydown", ({ key, target }) => {
  const choice = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "same" }[key];
  if (choice && !["INPUT", "SELECT"].includes(target.tagName)) choose(choice);
});

at("voter").value = localStorage.getItem("sluice.voter") ?? "";
told(async () => {
  const known = await list();
  if (known.length) return;
  at("begin").hidden = true;
  at("told").textContent = `There is no comparison yet. Make one in a terminal, then load this page again: ${EXAMPLE}. It is looked for in the folder compare of the server's folder for images.`;
});
