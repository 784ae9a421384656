// <cue-timeline>: prompts as segments that pass by a line that is now. Those to come can be moved.

import { clock, span } from "./words.js";

const NOW_AT = 0.38; // where the line stands, from left to right
const MOVE_S = 4; // a press that moves so little is a click

export class CueTimeline extends HTMLElement {
  #cues = [];
  #asked = new Map(); // cue id -> when its first picture is expected (ms of performance.now)
  #elements = new Map();
  #rulers = new Map();
  #position = 0;
  #fps = 16;
  #blockFrames = 12;
  #held = null;
  #reel;
  #now;
  #track;

  connectedCallback() {
    this.#track = document.createElement("div");
    this.#track.className = "track";
    this.#reel = document.createElement("div");
    this.#reel.className = "reel";
    this.#now = document.createElement("div");
    this.#now.className = "now";
    this.#track.append(this.#reel, this.#now);
    this.append(this.#track);
    this.#track.addEventListener("dblclick", (event) => this.#pick(event));
    new ResizeObserver(() => this.#draw()).observe(this);
    const still = matchMedia("(prefers-reduced-motion: reduce)");
    let last = 0;
    const tick = (at) => {
      requestAnimationFrame(tick);
      if (at - last < (still.matches ? 1000 : 33)) return;
      last = at;
      this.#draw();
    };
    requestAnimationFrame(tick);
  }

  begin({ fps, block_frames: blockFrames }) {
    this.#fps = fps;
    this.#blockFrames = blockFrames;
    this.#asked.clear();
  }

  set cues(cues) {
    this.#cues = cues;
    this.#draw();
  }

  get cues() {
    return this.#cues;
  }

  /** Seconds of the video on screen. */
  set position(seconds) {
    this.#position = seconds;
  }

  get position() {
    return this.#position;
  }

  expect(cue, inMs) {
    this.#asked.set(cue, performance.now() + inMs);
  }

  get #scale() {
    // Pixels a second: a phone shows about 14 seconds, a desktop about 40.
    return Math.max(22, Math.min(34, this.clientWidth / 34));
  }

  #draw() {
    const width = this.clientWidth;
    if (!width || this.hidden) return;
    const scale = this.#scale;
    const left = width * NOW_AT - this.#position * scale;
    this.#now.style.left = `${width * NOW_AT}px`;
    this.#now.dataset.time = clock(this.#position);
    this.#reel.style.transform = `translateX(${left}px)`;
    const from = this.#position - (width * NOW_AT) / scale;
    const to = from + width / scale;
    this.#drawRulers(from, to, scale);
    this.#drawCues(from, to, scale);
  }

  #drawRulers(from, to, scale) {
    const step = 5;
    const wanted = new Set();
    for (let at = Math.max(0, Math.ceil(from / step) * step); at <= to; at += step) wanted.add(at);
    for (const [at, element] of this.#rulers)
      if (!wanted.has(at)) {
        element.remove();
        this.#rulers.delete(at);
      }
    for (const at of wanted) {
      if (!this.#rulers.has(at)) {
        const element = document.createElement("span");
        element.className = "ruler";
        element.textContent = clock(at);
        this.#reel.append(element);
        this.#rulers.set(at, element);
      }
      const element = this.#rulers.get(at);
      element.style.left = `${at * scale}px`;
      // The line's own label needs the place.
      element.style.visibility = Math.abs(at - this.#position) * scale < 40 ? "hidden" : "visible";
    }
  }

  #drawCues(from, to, scale) {
    const seen = new Set();
    this.#cues.forEach((cue, index) => {
      const start = this.#held?.id === cue.id ? this.#held.seconds : cue.frame / this.#fps;
      const next = this.#cues[index + 1];
      const end = next ? next.frame / this.#fps : Math.max(to + 2, start + 6);
      if (end < from || start > to) return;
      seen.add(cue.id);
      const element = this.#element(cue);
      const state = this.#state(cue, next, start);
      element.dataset.state = state;
      element.tabIndex = state === "coming" ? 0 : -1;
      element.style.left = `${start * scale + 1}px`;
      element.style.width = `${Math.max(26, (end - start) * scale - 3)}px`;
      const hidden = Math.max(0, (from - start) * scale + 44);
      element.style.setProperty("--inset", `${start < from + 1 ? hidden : 0}px`);
      const [name, small] = element.children;
      if (name.textContent !== cue.prompt) name.textContent = cue.prompt || "(no words)";
      const words = this.#words(cue, next, state, start);
      if (small.textContent !== words) {
        small.textContent = words;
        element.setAttribute("aria-label", `${cue.prompt}: ${words}`);
      }
    });
    for (const [id, element] of this.#elements)
      if (!seen.has(id)) {
        element.remove();
        this.#elements.delete(id);
      }
  }

  #state(cue, next, start) {
    if (start > this.#position + 1e-3) return "coming";
    return !next || next.frame / this.#fps > this.#position ? "live" : "past";
  }

  #words(cue, next, state, start) {
    if (state === "live") return `live since ${clock(start)}`;
    if (state === "past") return `${clock(start)} to ${clock(next.frame / this.#fps)}`;
    const expected = this.#asked.get(cue.id);
    const wait = Math.max(start - this.#position, expected ? (expected - performance.now()) / 1000 : 0);
    const word = cue.state === "made" ? "ready" : "sent";
    return `${word}, takes effect in ${span(wait)} at ${clock(start)}`;
  }

  #element(cue) {
    let element = this.#elements.get(cue.id);
    if (element) return element;
    element = document.createElement("button");
    element.type = "button";
    element.className = "cue is-new";
    element.append(document.createElement("b"), document.createElement("small"));
    element.addEventListener("pointerdown", (event) => this.#grab(event, cue.id));
    element.addEventListener("keydown", (event) => this.#press(event, cue.id));
    element.addEventListener("click", () => {
      if (!this.#held) this.#ask("edit", cue.id);
    });
    this.#reel.append(element);
    this.#elements.set(cue.id, element);
    return element;
  }

  #find(id) {
    return this.#cues.find((cue) => cue.id === id);
  }

  #isComing(id) {
    return this.#elements.get(id)?.dataset.state === "coming";
  }

  #grab(event, id) {
    if (!this.#isComing(id) || event.button !== 0) return;
    const element = this.#elements.get(id);
    const begin = event.clientX;
    const seconds = this.#find(id).frame / this.#fps;
    element.setPointerCapture(event.pointerId);
    const move = (moved) => {
      if (!this.#held && Math.abs(moved.clientX - begin) < MOVE_S) return;
      element.classList.add("is-held");
      const target = seconds + (moved.clientX - begin) / this.#scale;
      this.#held = { id, seconds: Math.max(this.#position + 0.2, target) };
    };
    const drop = () => {
      element.removeEventListener("pointermove", move);
      element.classList.remove("is-held");
      const held = this.#held;
      if (!held) return;
      this.#emit("move", { id, frame: Math.round(held.seconds * this.#fps) });
      // The click that ends a drag is no click.
      setTimeout(() => (this.#held = null), 0);
    };
    element.addEventListener("pointermove", move);
    element.addEventListener("pointerup", drop, { once: true });
    element.addEventListener("pointercancel", drop, { once: true });
  }

  #press(event, id) {
    if (!this.#isComing(id)) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) {
      event.preventDefault();
      const frame = this.#find(id).frame + step * this.#blockFrames;
      this.#emit("move", { id, frame: Math.max(0, frame) });
    } else if (event.key === "Delete" || event.key === "Backspace") {
      event.preventDefault();
      this.#emit("remove", { id });
    }
  }

  #ask(type, id) {
    if (this.#isComing(id)) this.#emit(type, { id, cue: this.#find(id) });
    else this.#emit("again", { prompt: this.#find(id).prompt });
  }

  #pick(event) {
    const width = this.clientWidth;
    const seconds = this.#position + (event.clientX - this.getBoundingClientRect().left - width * NOW_AT) / this.#scale;
    if (seconds > this.#position + 0.5) this.#emit("pick", { seconds });
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

customElements.define("cue-timeline", CueTimeline);
