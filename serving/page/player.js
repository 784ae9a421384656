// <live-player>: encoded pictures in, pictures on the screen at the video's rate.

import { bytesOf, unpack } from "./wire.js";

const AHEAD = 8; // decoded pictures at hand: decoders own few of them
const REPORT_MS = 250;
const KEPT_TIMINGS = 600;

export const hasWebCodecs = () => typeof VideoDecoder === "function" && typeof EncodedVideoChunk === "function";

export class LivePlayer extends HTMLElement {
  #canvas;
  #context;
  #start = null;
  #encoded = []; // waiting to be decoded
  #decoding = new Map(); // timestamp -> what it is
  #decoded = []; // waiting for their turn
  #decoder = null;
  #serial = 0;
  #epoch = 0;
  #clock = null; // { frame, at }
  #reported = 0;
  #needsKey = true;
  #needsReport = false;
  #jpegs = 0;
  shown = -1;
  newest = -1;
  isPaused = false;
  timings = [];
  stalls = 0;

  connectedCallback() {
    this.#canvas = this.querySelector("canvas");
    this.#context = this.#canvas.getContext("2d", { alpha: false, desynchronized: true });
    requestAnimationFrame((now) => this.#tick(now));
  }

  get canvas() {
    return this.#canvas;
  }

  /** The newest picture of which anything is known to be on its way. */
  get lead() {
    return Math.max(0, this.newest - this.shown);
  }

  begin(start) {
    this.reset();
    this.#start = start;
    this.#epoch = start.epoch;
    this.shown = start.frame - 1;
    this.newest = this.shown;
    this.#canvas.width = start.width;
    this.#canvas.height = start.height;
    this.style.setProperty("--ratio", `${start.width} / ${start.height}`);
    this.style.setProperty("--ratio-number", String(start.width / start.height));
    if (start.format === "h264") this.#configure();
  }

  reset() {
    this.#encoded = [];
    this.#decoding.clear();
    for (const entry of this.#decoded) entry.image.close();
    this.#decoded = [];
    this.#clock = null;
    this.#needsKey = true;
    if (this.#decoder && this.#decoder.state !== "closed") this.#decoder.close();
    this.#decoder = null;
  }

  /** Pictures from `frame` on were taken back. */
  cut({ epoch, frame }) {
    this.#epoch = epoch;
    this.#encoded = this.#encoded.filter((picture) => picture.frame < frame);
    this.#decoded = this.#decoded.filter((entry) => {
      if (entry.frame < frame) return true;
      entry.image.close();
      return false;
    });
    for (const [serial, entry] of this.#decoding) if (entry.frame >= frame) this.#decoding.set(serial, null);
    this.newest = Math.min(this.newest, frame - 1);
    if (this.shown >= frame) {
      this.shown = frame - 1;
      this.#clock = null;
    }
    this.#needsReport = true;
  }

  take(buffer) {
    const picture = unpack(buffer);
    if (!picture || !this.#start || picture.epoch < this.#epoch) return;
    if (this.#needsKey && !picture.isKey) return;
    this.#needsKey = false;
    if (picture.isKey && picture.frame > this.newest + 1) {
      // The server skipped what this viewer was too slow for.
      this.#encoded = [];
      this.#clock = null;
    }
    picture.received = performance.now();
    this.newest = Math.max(this.newest, picture.frame);
    this.#encoded.push(picture);
    this.#feed();
  }

  pause(isPaused) {
    this.isPaused = isPaused;
    this.#clock = null;
  }

  async picture() {
    return new Promise((resolve) => this.#canvas.toBlob(resolve, "image/png"));
  }

  #configure() {
    const { codec, description, width, height } = this.#start;
    this.#decoder = new VideoDecoder({
      output: (image) => this.#arrived(image.timestamp, image),
      error: (error) => this.#broke(error),
    });
    this.#decoder.configure({
      codec,
      description: bytesOf(description),
      codedWidth: width,
      codedHeight: height,
      optimizeForLatency: true,
    });
    this.#needsKey = true;
  }

  #broke(error) {
    this.dispatchEvent(new CustomEvent("broken", { detail: error }));
    this.#decoding.clear();
    this.#encoded = this.#encoded.slice(Math.max(0, this.#encoded.findIndex((picture) => picture.isKey)));
    this.#needsKey = true;
    this.#configure();
  }

  #feed() {
    while (this.#encoded.length && this.#decoding.size + this.#decoded.length + this.#jpegs < AHEAD) {
      const picture = this.#encoded.shift();
      const serial = this.#serial++;
      picture.fed = performance.now();
      this.#decoding.set(serial, picture);
      if (picture.kind === "jpeg") this.#decodeJpeg(serial, picture);
      else
        this.#decoder.decode(
          new EncodedVideoChunk({ type: picture.isKey ? "key" : "delta", timestamp: serial, data: picture.payload }),
        );
    }
  }

  async #decodeJpeg(serial, picture) {
    try {
      this.#arrived(serial, await createImageBitmap(new Blob([picture.payload], { type: "image/jpeg" })));
    } catch (error) {
      this.#decoding.delete(serial);
      this.dispatchEvent(new CustomEvent("broken", { detail: error }));
    }
  }

  #arrived(serial, image) {
    const picture = this.#decoding.get(serial);
    this.#decoding.delete(serial);
    if (!picture || picture.epoch < this.#epoch) {
      // Taken back while it was decoded.
      image.close();
      this.#feed();
      return;
    }
    const { frame, epoch, received, fed } = picture;
    const entry = { frame, epoch, image, received, fed, ready: performance.now(), timing: null };
    entry.timing = this.#note(entry);
    this.#decoded.push(entry);
    this.#decoded.sort((a, b) => a.frame - b.frame);
  }

  /** When each of the last pictures came, was decoded and was shown; null where its turn was missed. */
  #note({ frame, epoch, received, fed, ready }) {
    const { timeOrigin } = performance;
    const timing = { frame, epoch, received: timeOrigin + received, decode: ready - fed, shown: null };
    this.timings.push(timing);
    if (this.timings.length > KEPT_TIMINGS) this.timings.shift();
    return timing;
  }

  #tick(now) {
    requestAnimationFrame((next) => this.#tick(next));
    if (!this.#start || this.isPaused || !this.#decoded.length) return;
    const due = this.#due(now);
    let chosen = null;
    while (this.#decoded.length && this.#decoded[0].frame <= due) {
      chosen?.image.close();
      chosen = this.#decoded.shift();
    }
    if (chosen) this.#show(chosen, now);
    this.#feed();
  }

  /** The picture whose turn it is. Where the next one came late, time begins anew with it. */
  #due(now) {
    const next = this.#decoded[0].frame;
    const rate = this.#start.fps / 1000;
    if (this.#clock) {
      const due = this.#clock.frame + (now - this.#clock.at) * rate + 1e-6;
      if (due < next + 2) return Math.floor(due);
      this.stalls += 1;
    }
    this.#clock = { frame: next, at: now };
    return next;
  }

  #show(entry, now) {
    this.#context.drawImage(entry.image, 0, 0, this.#canvas.width, this.#canvas.height);
    entry.image.close();
    const isFirst = this.shown < entry.frame && this.#needsReport;
    this.shown = entry.frame;
    entry.timing.shown = performance.timeOrigin + now;
    this.dispatchEvent(new CustomEvent("shown", { detail: entry }));
    if (isFirst || now - this.#reported > REPORT_MS) {
      this.#reported = now;
      this.#needsReport = false;
      this.dispatchEvent(new CustomEvent("report", { detail: { epoch: entry.epoch, frame: entry.frame } }));
    }
  }
}

customElements.define("live-player", LivePlayer);
