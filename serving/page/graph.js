// <time-graph>: where the time of each block went, against the time it lasts on screen.

import { bytes, span } from "./words.js";

const STAGES = [
  ["text", "text"],
  ["recache", "re-cache"],
  ["block", "block"],
  ["decode", "decode"],
  ["encode", "encode"],
  ["network", "network"],
];
const BARS = 36;
const SVG = "http://www.w3.org/2000/svg";

export class TimeGraph extends HTMLElement {
  #history = [];
  #values = {};
  #bars;
  #legend;

  connectedCallback() {
    const list = document.createElement("dl");
    for (const [key, name] of [["fps", "frames/s"], ["lead", "lead"], ["memory", "memory"], ["network", "network"]]) {
      const term = Object.assign(document.createElement("dt"), { textContent: name });
      this.#values[key] = Object.assign(document.createElement("dd"), { textContent: "–" });
      const group = document.createElement("div");
      group.append(term, this.#values[key]);
      list.append(group);
    }
    this.#bars = document.createElementNS(SVG, "svg");
    this.#bars.setAttribute("class", "bars");
    this.#bars.setAttribute("preserveAspectRatio", "none");
    this.#bars.setAttribute("viewBox", "0 0 360 100");
    this.#bars.setAttribute("role", "img");
    this.#legend = document.createElement("ul");
    this.append(list, this.#bars, this.#legend);
  }

  clear() {
    this.#history = [];
  }

  add(stats, networkMs) {
    const stages = { ...stats.stages_ms, network: networkMs ?? 0 };
    this.#history.push(stages);
    if (this.#history.length > BARS) this.#history.shift();
    if (this.hidden) return;
    this.#values.fps.textContent = stats.fps.toFixed(0);
    this.#values.lead.textContent = span(stats.lead_ms / 1000);
    this.#values.memory.textContent = bytes(stats.memory_bytes);
    this.#values.network.textContent = networkMs === null ? "–" : `${networkMs.toFixed(0)} ms`;
    this.#draw(stats.block_ms, stages);
  }

  #draw(blockMs, latest) {
    const sums = this.#history.map((stages) => STAGES.reduce((sum, [key]) => sum + (stages[key] ?? 0), 0));
    const top = Math.max(blockMs * 1.15, ...sums);
    const pieces = [];
    this.#history.forEach((stages, index) => {
      let base = 100;
      const x = (index + BARS - this.#history.length) * 10;
      for (const [key] of STAGES) {
        const height = ((stages[key] ?? 0) / top) * 100;
        if (height < 0.2) continue;
        base -= height;
        const rect = document.createElementNS(SVG, "rect");
        for (const [name, value] of Object.entries({ x, y: base, width: 8, height, class: `s-${key}` }))
          rect.setAttribute(name, String(value));
        pieces.push(rect);
      }
    });
    const line = document.createElementNS(SVG, "line");
    const y = String(100 - (blockMs / top) * 100);
    for (const [name, value] of Object.entries({ x1: "0", x2: "360", y1: y, y2: y, class: "limit", "vector-effect": "non-scaling-stroke" }))
      line.setAttribute(name, value);
    this.#bars.replaceChildren(...pieces, line);
    const total = sums.at(-1) ?? 0;
    this.#bars.setAttribute(
      "aria-label",
      `A block took ${Math.round(total)} ms; it lasts ${Math.round(blockMs)} ms on screen, the dashed line.`,
    );
    this.#legend.replaceChildren(
      ...STAGES.map(([key, name]) => {
        const item = document.createElement("li");
        const dot = document.createElement("i");
        dot.className = `s-${key}`;
        item.append(dot, `${name} ${Math.round(latest[key] ?? 0)}`);
        return item;
      }),
    );
  }
}

customElements.define("time-graph", TimeGraph);
