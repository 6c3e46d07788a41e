// Replaces ComfyUI's own nodes in a canvas by ours, and back: the same rules as in Python, by the same table,
// swap_nodes.json. Pure.

const PREFIX = "Sluice";
const KINDS = Object.fromEntries(["MODEL", "CLIP", "VAE", "CONTROL_NET", "CLIP_VISION", "STYLE_MODEL", "MODEL_PATCH"].map((kind) => [kind, `FLUX_${kind}`]));
const BACK = Object.fromEntries(Object.entries(KINDS).map(([core, ours]) => [ours, core]));
const EITHER = new Set(Object.entries(KINDS).flat());

/** {workflow, changed, left}: a new workflow, the number of changed nodes, a sentence for each part that did not change. */
export function swap(workflow, table, back = false) {
  const made = structuredClone(workflow);
  const names = new Names(table, back);
  const canvas = new Canvas(made, names);
  const left = [];
  let changed = 0;
  for (const group of canvas.groups.all()) {
    const nodes = group.filter((vertex) => canvas.types.has(vertex));
    const twins = nodes.filter((vertex) => names.twin(canvas.types.get(vertex)));
    const reasons = nodes.map((vertex) => canvas.reason(vertex)).filter(Boolean);
    if (twins.length && reasons.length) {
      const told = twins.map((vertex) => canvas.told(vertex)).join(", ");
      left.push(`Not changed: ${told}. ${reasons.join("; ")}.`);
    } else if (twins.length) {
      changed += twins.length;
      canvas.change(group);
    }
  }
  return { workflow: made, changed, left };
}

class Names {
  constructor(table, back) {
    [this.table, this.back] = [table, back];
  }

  plain(name) {
    return name.startsWith(PREFIX) ? name.slice(PREFIX.length) : name;
  }

  twin(name) {
    const plain = this.plain(name);
    if (!Object.hasOwn(this.table, plain) || (name !== plain) !== this.back) return null;
    return this.back ? plain : PREFIX + plain;
  }

  kind(kind) {
    return (this.back ? BACK : KINDS)[kind] ?? kind;
  }

  only(name) {
    const plain = this.plain(name);
    return Object.hasOwn(this.table, plain) ? this.table[plain].only : undefined;
  }
}

/** Connected parts, in the order of the canvas. */
class Groups {
  parents = new Map();

  top(vertex) {
    if (!this.parents.has(vertex)) this.parents.set(vertex, vertex);
    while (this.parents.get(vertex) !== vertex) vertex = this.parents.get(vertex);
    return vertex;
  }

  join(one, other) {
    const [above, below] = [this.top(one), this.top(other)];
    this.parents.set(below, above);
  }

  all() {
    const groups = new Map();
    for (const vertex of this.parents.keys()) {
      const top = this.top(vertex);
      if (!groups.has(top)) groups.set(top, []);
      groups.get(top).push(vertex);
    }
    return [...groups.values()];
  }
}

const isNode = (value) => value !== null && typeof value === "object" && ["number", "string"].includes(typeof value.id);
const slotAt = (slots, place) => (Number.isInteger(place) && place >= 0 ? slots?.[place] : undefined);

class Canvas {
  groups = new Groups();
  nodes = new Map(); // vertex -> node
  types = new Map(); // vertex -> id of its class; reroutes and subgraphs have none
  links = new Map(); // vertex -> links that leave it
  ends = new Map(); // vertex of a subgraph's slot -> {side, key, slot}

  constructor(workflow, names) {
    this.names = names;
    this.sheets = new Map([["", workflow]]);
    for (const sheet of workflow.definitions?.subgraphs ?? []) this.sheets.set(String(sheet.id), sheet);
    for (const [key, sheet] of this.sheets) {
      for (const node of (sheet.nodes ?? []).filter(isNode)) this.nodes.set(this.vertex(key, node.id), node);
    }
    for (const [vertex, node] of this.nodes) {
      this.groups.top(vertex);
      if (node.type !== "Reroute" && !this.sheets.has(String(node.type))) this.types.set(vertex, String(node.type));
    }
    for (const [key, sheet] of this.sheets) for (const link of sheet.links ?? []) this.read(key, link);
  }

  vertex(key, id) {
    return JSON.stringify(["node", key, id]);
  }

  told(vertex) {
    return `${this.nodes.get(vertex).id} ${this.types.get(vertex)}`;
  }

  read(key, link) {
    if (!link || typeof link !== "object" || (Array.isArray(link) && link.length < 6)) return;
    const [origin, output, target, slot, kind] = Array.isArray(link)
      ? link.slice(1, 6)
      : [link.origin_id, link.origin_slot, link.target_id, link.target_slot, link.type];
    const kinds = [kind, this.kind(key, origin, "outputs", output), this.kind(key, target, "inputs", slot)];
    if (!kinds.some((one) => EITHER.has(one))) return;
    const source = this.end(key, origin, output, "output");
    this.groups.join(source, this.end(key, target, slot, "input"));
    if (!this.links.has(source)) this.links.set(source, []);
    this.links.get(source).push(link);
  }

  kind(key, id, side, place) {
    return slotAt(this.nodes.get(this.vertex(key, id))?.[side], place)?.type;
  }

  /** The end of a link: a node, or a subgraph's boundary, from inside or outside. */
  end(key, id, slot, side) {
    const sheet = this.sheets.get(key);
    if (key && id === sheet.inputNode?.id) return this.boundary("input", key, slot);
    if (key && id === sheet.outputNode?.id) return this.boundary("output", key, slot);
    const inner = String(this.nodes.get(this.vertex(key, id))?.type);
    return inner && this.sheets.has(inner) ? this.boundary(side, inner, slot) : this.vertex(key, id);
  }

  boundary(side, key, slot) {
    const vertex = JSON.stringify([side, key, slot]);
    this.ends.set(vertex, { side, key, slot });
    return vertex;
  }

  reason(vertex) {
    const name = this.types.get(vertex);
    if (this.names.twin(name) === null) return `${this.told(vertex)} has no twin`;
    const only = this.names.only(name);
    const values = this.nodes.get(vertex).widgets_values;
    const value = only && Array.isArray(values) ? values[only.position] : undefined;
    if (!only || value === only.value) return null;
    return `${this.told(vertex)} has the ${only.input} ${value ?? "None"}, not ${only.value}`;
  }

  change(group) {
    for (const vertex of group) {
      for (const link of this.links.get(vertex) ?? []) {
        const place = Array.isArray(link) ? 5 : "type";
        link[place] = this.names.kind(link[place]);
      }
      if (this.types.has(vertex)) this.changeNode(this.nodes.get(vertex));
      else if (this.nodes.has(vertex)) this.changeSlots(this.nodes.get(vertex));
      else if (this.ends.has(vertex)) this.changeBoundary(this.ends.get(vertex));
    }
  }

  changeNode(node) {
    const old = node.type;
    node.type = this.names.twin(old);
    const properties = node.properties ?? {};
    if (properties["Node name for S&R"] === old) properties["Node name for S&R"] = node.type;
    const [from, to] = this.names.back ? ["sluice", "comfy-core"] : ["comfy-core", "sluice"];
    if (properties.cnr_id === from) properties.cnr_id = to;
    this.changeSlots(node);
  }

  changeSlots(node) {
    for (const slot of [...(node.inputs ?? []), ...(node.outputs ?? [])]) {
      const kind = slot.type;
      if (!EITHER.has(kind)) continue;
      for (const key of ["type", "name", "localized_name"]) if (slot[key] === kind) slot[key] = this.names.kind(kind);
    }
  }

  /** A slot of a subgraph, in its definition and in all instances. */
  changeBoundary({ side, key, slot }) {
    const instances = [...this.nodes.values()].filter((node) => String(node.type) === key);
    for (const owner of [this.sheets.get(key), ...instances]) {
      const found = slotAt(owner[`${side}s`], slot);
      if (found) found.type = this.names.kind(found.type);
    }
  }
}
