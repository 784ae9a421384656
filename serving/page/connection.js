// The socket: comes back by itself, and says what happened.

const WAITS = [0.5, 1, 2, 4, 8, 15];
const ENDED = new Set(["finished", "stopped", "idle", "left", "failed"]);

export class Connection extends EventTarget {
  #socket = null;
  #start = null;
  #own = null;
  #tries = 0;
  #timer = 0;
  #done = null;
  #pings = 0;
  #isRestart = false; // the server said that it would go down
  roundTrip = null;

  /** `start` is the first message; `own` is the session to come back to, if there is one. */
  open(start, own = null) {
    this.close();
    this.#start = start;
    this.#own = own;
    this.#tries = 0;
    this.#connect();
  }

  get isOpen() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  send(message) {
    if (!this.isOpen) return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  close() {
    clearTimeout(this.#timer);
    clearInterval(this.#pings);
    const socket = this.#socket;
    this.#socket = null;
    socket?.close(1000);
  }

  /** Try now, not at the end of the wait. */
  hurry() {
    if (this.#socket || !this.#start) return;
    clearTimeout(this.#timer);
    this.#connect();
  }

  #connect() {
    const address = new URL("v1/realtime/video", document.baseURI);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#done = null;
    socket.onopen = () => {
      const back = this.#own ? { ...this.#start, session: this.#own.session, token: this.#own.token } : this.#start;
      this.send({ type: "session.start", ...back });
      this.#pings = setInterval(() => this.send({ type: "session.ping", sent_ms: performance.now() }), 2000);
      this.#emit("opened");
    };
    socket.onmessage = ({ data }) => {
      if (socket !== this.#socket) return;
      if (typeof data !== "string") {
        this.#emit("picture", data);
        return;
      }
      const message = JSON.parse(data);
      if (message.type === "video.start") this.#started(message);
      if (message.type === "session.pong") this.roundTrip = performance.now() - message.sent_ms;
      if (message.type === "session.done") this.#done = message;
      if (message.type === "error") this.#failed(message);
      this.#emit("message", message);
    };
    socket.onclose = (event) => {
      if (socket !== this.#socket) return;
      clearInterval(this.#pings);
      this.#socket = null;
      this.#closed(event);
    };
  }

  #started(message) {
    const wasBack = this.#tries > 0;
    this.#own = { session: message.session, token: message.token };
    // What comes back after this has its prompt already.
    this.#start = { ...this.#start, timeline: [] };
    this.#tries = 0;
    this.#isRestart = false;
    this.#emit("started", { message, wasBack });
  }

  #failed(message) {
    if (message.code === "not_found" || message.code === "session_ended") {
      // The session is over: the next try begins another one.
      this.#own = null;
      this.#emit("gone", message);
    }
    if (message.code === "unauthorized") {
      this.#start = null;
      this.#emit("locked", message);
    }
  }

  #closed(event) {
    const done = this.#done;
    if (done && ENDED.has(done.reason)) {
      this.#start = null;
      this.#emit("ended", done);
      return;
    }
    if (!this.#start) return;
    if (done?.state) {
      this.#own = null;
      this.#start = { ...this.#start, prompt: null, resume: done.state };
    }
    const wait = WAITS[Math.min(this.#tries, WAITS.length - 1)] * (0.8 + 0.4 * Math.random());
    this.#tries += 1;
    this.#isRestart ||= event.code === 1012;
    this.#emit("lost", { wait, tries: this.#tries, isRestart: this.#isRestart });
    this.#timer = setTimeout(() => this.#connect(), wait * 1000);
  }

  #emit(type, detail = null) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
