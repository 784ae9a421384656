// The page: what happens becomes what is seen and said.

import "./composer.js";
import "./graph.js";
import { Connection } from "./connection.js";
import { checked, download, linkOf, pictureOf, recipeOf } from "./keep.js";
import { hasWebCodecs } from "./player.js";
import { notice, phase, say, status, veil } from "./signs.js";
import "./timeline.js";
import { clock, ENDS, ordinal, span } from "./words.js";

const $ = (id) => document.getElementById(id);
const player = document.querySelector("live-player");
const timeline = document.querySelector("cue-timeline");
const box = document.querySelector("prompt-box");
const graph = $("time");
const glow = document.querySelector(".glow").getContext("2d");
const connection = new Connection();

let model = null;
let current = null; // of the session: video.start
let isPaused = false;
let offer = null; // a recipe that a link brought
let live = null; // the cue on screen
let lastEnd = null;
let awaited = false; // the first picture
let viewers = 1;

// ---- the session --------------------------------------------------------------------------------

const format = () => (hasWebCodecs() ? "h264" : "jpeg");

function begin(prompt, more = {}) {
  phase("waiting");
  awaited = true;
  veil("Preparing the first pictures", true);
  status("Starting", "wait");
  notice("");
  const access = sessionStorage.getItem("access") ?? undefined;
  connection.open({ prompt, format: format(), access, ...more });
}

function beginRecipe(recipe) {
  const [first, ...later] = recipe.prompts;
  offer = null;
  history.replaceState(null, "", location.pathname);
  begin(first.prompt, { seed: recipe.seed, switch: recipe.switch, timeline: later });
}

connection.addEventListener("started", ({ detail: { message, wasBack } }) => {
  const isSame = current?.session === message.session;
  current = message;
  sessionStorage.setItem("session", JSON.stringify({ session: message.session, token: message.token }));
  player.begin(message);
  offerDecoders(message.decoders);
  setDecoder(message.decoder);
  player.pause(isPaused && message.paused);
  timeline.begin(message);
  phase("live");
  setPaused(message.paused && !goOnAfterHiding());
  status("Live", "live");
  if (wasBack) notice(isSame ? "Back again; nothing was lost." : "Back again: the video goes on from its saved state.", { tone: "good", forMs: 4000 });
  if (message.format === "jpeg")
    notice("This browser cannot decode the video's own form here, so single pictures are sent instead. Over https or localhost it can.", { forMs: 8000 });
  box.focus();
});

connection.addEventListener("picture", ({ detail }) => player.take(detail));

const handlers = {
  "session.queued"({ position, waiting, estimate_s: estimate }) {
    phase("waiting");
    const time = estimate ? `, about ${span(estimate)}` : "";
    status(`${ordinal(position)} in the queue`, "wait");
    veil(position === 1 ? `You are next${time}` : `${ordinal(position)} of ${waiting} in the queue${time}`, true);
    say(`All places are taken. You are ${ordinal(position)} in the queue.`);
  },
  "session.interaction.queued"({ cue, takes_effect: effect, speculated, prompt }) {
    timeline.expect(cue, effect.in_ms);
    const wait = span(effect.in_ms / 1000);
    say(`Sent. Takes effect in ${wait}, at ${clock(effect.frame / current.fps)}.${speculated ? " It is made already." : ""}`);
    box.draftState = "none";
    document.title = `${prompt.slice(0, 60)} – LongLive`;
  },
  "video.cut"(message) {
    player.cut(message);
    if (message.frame === 0) graph.clear();
  },
  timeline({ cues }) {
    timeline.cues = cues;
    if (player.shown >= 0) nowShowing(player.shown);
  },
  stats(message) {
    viewers = message.viewers;
    graph.add(message, connection.roundTrip);
    box.draftState = message.speculation;
    hearDecoder(message.decoder);
    if (!isPaused && player.shown >= 0) {
      const slow = message.lead_ms < 120 && message.fps < current.fps;
      status("Live", "live", slow ? `${message.fps.toFixed(0)} of ${current.fps} frames/s` : `${current.fps} frames/s`);
    }
  },
  "session.moving"({ message }) {
    notice(message);
  },
  "session.moved"({ message }) {
    notice(message, { tone: "good", forMs: 6000 });
  },
  "session.notice"({ message }) {
    notice(message, { forMs: 8000 });
  },
  "session.done"(message) {
    lastEnd = message;
  },
  error({ code, message }) {
    if (code === "not_found" || code === "unauthorized") return;
    if (code === "session_ended") return;
    notice(message, { tone: "bad", forMs: 8000 });
    if (document.body.dataset.phase === "waiting" && !current) {
      phase("empty");
      veil("");
      status("Ready", "quiet");
    }
  },
};

connection.addEventListener("message", ({ detail }) => handlers[detail.type]?.(detail));

connection.addEventListener("locked", () => askToken());

connection.addEventListener("gone", () => {
  sessionStorage.removeItem("session");
  if (current || !awaited) {
    notice("That video is over. Send a prompt to begin another one.");
    ended();
  }
});

connection.addEventListener("ended", ({ detail }) => {
  sessionStorage.removeItem("session");
  const words = detail.reason === "failed" ? detail.message : ENDS[detail.reason];
  const isGood = detail.reason === "finished" || detail.reason === "stopped";
  if (detail.state)
    notice(words, { action: "Go on with it", onAction: () => begin("", { prompt: null, resume: detail.state }) });
  else notice(`${words} Send a prompt to begin another one.`, { tone: isGood ? "quiet" : "bad" });
  ended();
});

connection.addEventListener("lost", ({ detail: { wait, isRestart } }) => {
  status("Connection lost", "bad");
  const why = isRestart ? "The server is starting anew" : "The connection was lost";
  notice(`${why}. Trying again in ${span(wait)}.`, { tone: "bad", action: "Now", onAction: () => connection.hurry() });
});

addEventListener("online", () => connection.hurry());

function ended() {
  current = null;
  veil("");
  status("Ended", "quiet");
  player.pause(true);
  phase("ended");
}

// ---- pictures -----------------------------------------------------------------------------------

let glowAt = 0;
player.addEventListener("shown", ({ detail: { frame } }) => {
  if (awaited) {
    awaited = false;
    veil("");
    status("Live", "live");
  }
  nowShowing(frame);
  const now = performance.now();
  if (now - glowAt > 250) {
    glowAt = now;
    glow.filter = "blur(3px) saturate(1.5)";
    glow.drawImage(player.canvas, -2, -2, 36, 24);
  }
});

player.addEventListener("report", ({ detail }) => connection.send({ type: "playback.shown", ...detail }));

player.addEventListener("broken", ({ detail }) => {
  notice(`A picture could not be decoded (${detail.message}). The next block begins anew.`, { tone: "bad", forMs: 5000 });
});

function nowShowing(frame) {
  timeline.position = frame / current.fps;
  const cue = timeline.cues.findLast((one) => one.frame <= frame);
  if (!cue || cue.id === live) return;
  live = cue.id;
  const words = cue.prompt || "no prompt";
  player.canvas.setAttribute("aria-label", `Video: ${words}`);
  say(`Now: ${words}`);
}

function setPaused(value) {
  isPaused = value;
  player.pause(value);
  document.body.dataset.paused = String(value);
  const button = $("pause");
  button.setAttribute("aria-pressed", String(value));
  button.setAttribute("aria-label", value ? "Go on" : "Pause");
  button.title = `${value ? "Go on" : "Pause"} (Space)`;
  button.querySelector("use").setAttribute("href", `icons.svg#${value ? "play" : "pause"}`);
  if (!awaited) veil(value ? "Paused" : "");
  if (current) status(value ? "Paused" : "Live", value ? "quiet" : "live");
}

function togglePause() {
  if (!current) return;
  setPaused(!isPaused);
  connection.send({ type: isPaused ? "session.pause" : "session.resume" });
  say(isPaused ? "Paused." : "Going on.");
}

/** A tab that is hidden pauses, and so does one that is loaded again: kept beyond the page. */
document.addEventListener("visibilitychange", () => {
  if (!current) return;
  if (document.hidden && !isPaused && viewers < 2) {
    sessionStorage.setItem("hidden", current.session);
    connection.send({ type: "session.pause" });
  } else if (goOnAfterHiding()) {
    setPaused(false);
  }
});

function goOnAfterHiding() {
  if (document.hidden || sessionStorage.getItem("hidden") !== current.session) return false;
  sessionStorage.removeItem("hidden");
  connection.send({ type: "session.resume" });
  return true;
}

// ---- prompts ------------------------------------------------------------------------------------

box.addEventListener("send", (event) => {
  const { prompt, delay, at } = event.detail;
  if (!current || !connection.isOpen) {
    if (document.body.dataset.phase === "waiting") {
      event.preventDefault();
      return;
    }
    begin(prompt);
    return;
  }
  const seconds = at ?? (delay ? timeline.position + delay : null);
  const frame = seconds === null ? undefined : Math.max(0, Math.round(seconds * current.fps));
  connection.send({ type: "session.interaction", prompt, frame });
  if (isPaused && seconds === null) togglePause();
});

box.addEventListener("draft", ({ detail }) => {
  if (current) connection.send({ type: "prompt.draft", prompt: detail.prompt });
});

timeline.addEventListener("move", ({ detail: { id, frame } }) => connection.send({ type: "timeline.edit", cue: id, frame }));
timeline.addEventListener("remove", ({ detail: { id } }) => connection.send({ type: "timeline.remove", cue: id }));
timeline.addEventListener("again", ({ detail: { prompt } }) => {
  box.value = prompt;
  box.focus();
});
timeline.addEventListener("pick", ({ detail: { seconds } }) => box.pick(seconds, `at ${clock(seconds)}`));
timeline.addEventListener("edit", ({ detail: { id, cue } }) => {
  const dialog = $("edit-dialog");
  $("edit-text").value = cue.prompt;
  $("edit-time").value = cue.seconds.toFixed(2);
  dialog.returnValue = "no";
  dialog.showModal();
  dialog.onclose = () => {
    if (dialog.returnValue === "remove") connection.send({ type: "timeline.remove", cue: id });
    if (dialog.returnValue === "yes")
      connection.send({
        type: "timeline.edit",
        cue: id,
        prompt: $("edit-text").value.trim(),
        frame: Math.round(Number($("edit-time").value) * current.fps),
      });
    box.focus();
  };
});

// ---- keys ---------------------------------------------------------------------------------------

addEventListener("keydown", (event) => {
  const target = event.target;
  const isTyping = target.matches?.("textarea, input");
  const isOpen = document.querySelector("dialog[open]");
  if (isOpen) return;
  if (event.altKey && /^Digit[1-9]$/.test(event.code)) {
    event.preventDefault();
    box.suggestion(Number(event.code.at(-1)) - 1);
  } else if (event.key === "?" && (!isTyping || box.isEmpty)) {
    event.preventDefault();
    $("help-dialog").showModal();
  } else if (event.key === " " && !isTyping && !target.matches?.("button")) {
    event.preventDefault();
    togglePause();
  } else if (!isTyping && event.key.length === 1 && !event.ctrlKey && !event.metaKey && !event.altKey && event.key !== " ") {
    // Typing goes to the prompt, wherever the focus was.
    box.focus();
  }
});

// ---- the bar ------------------------------------------------------------------------------------

$("pause").onclick = togglePause;
const DECODERS = {
  light: "The light decoder makes the pictures, from the next block on: sooner, a little softer.",
  full: "The full decoder makes the pictures, from the next block on.",
};
function offerDecoders(names) {
  $("light").hidden = $("by-full").hidden = !(names.includes("full") && names.includes("light"));
}
let asked = null;
// Figures that were sent before the server heard of a choice still name the other decoder.
function hearDecoder(name) {
  if (asked && asked.name !== name && performance.now() < asked.until) return;
  asked = null;
  setDecoder(name);
}
function setDecoder(name) {
  $("light").setAttribute("aria-pressed", String(name === "light"));
}
$("light").onclick = () => {
  if (!current) return;
  const decoder = $("light").getAttribute("aria-pressed") === "true" ? "full" : "light";
  connection.send({ type: "session.decoder", decoder });
  asked = { name: decoder, until: performance.now() + 5000 };
  setDecoder(decoder);
  notice(DECODERS[decoder], { tone: "good", forMs: 4000 });
  say(DECODERS[decoder]);
};
$("help").onclick = () => $("help-dialog").showModal();
$("figures").onclick = () => {
  graph.hidden = !graph.hidden;
  $("figures").setAttribute("aria-pressed", String(!graph.hidden));
};

const THEMES = ["", "light", "dark"];
function setTheme(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  localStorage.setItem("theme", name);
}
setTheme(localStorage.getItem("theme") ?? "");
$("theme").onclick = () => {
  const next = THEMES[(THEMES.indexOf(localStorage.getItem("theme") ?? "") + 1) % THEMES.length];
  setTheme(next);
  say(next ? `Colors: ${next}.` : "Colors: as the system has them.");
};

const randomSeed = () => String(crypto.getRandomValues(new Uint32Array(1))[0]);
$("restart").onclick = () => {
  const dialog = $("restart-dialog");
  $("seed").value = current?.seed ?? "0";
  dialog.returnValue = "no";
  dialog.showModal();
  dialog.onclose = () => {
    if (dialog.returnValue !== "yes" || !current) return;
    current.seed = $("seed").value;
    connection.send({ type: "session.restart", seed: current.seed });
    say("From the beginning.");
    box.focus();
  };
};
$("dice").onclick = () => ($("seed").value = randomSeed());
$("save").onclick = () => $("save-dialog").showModal();

for (const dialog of document.querySelectorAll("dialog"))
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close("no");
  });

// ---- keeping ------------------------------------------------------------------------------------

async function ask(path, options = {}) {
  const own = JSON.parse(sessionStorage.getItem("session") ?? "null");
  if (!own) throw new Error("There is no video to keep.");
  const answer = await fetch(new URL(`v1/sessions/${own.session}/${path}`, document.baseURI), {
    ...options,
    headers: { authorization: `Bearer ${own.token}` },
  });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  const { message, seconds } = body?.error ?? {};
  throw Object.assign(new Error(message ?? `The server answered ${answer.status}.`), { seconds });
}

const keeping = {
  async video() {
    download(await (await ask("recording.mp4")).blob(), "longlive.mp4");
  },
  async full() {
    notice("The full decoder makes your video; the download begins once it is there.");
    const make = (more = "") => ask(`recording.mp4?decoder=full${more}`);
    let words = "The video by the full decoder is there.";
    const answer = await make().catch((error) => {
      if (!error.seconds) throw error;
      words = `The last ${span(error.seconds)} by the full decoder are there; of what was before, too little is kept.`;
      return make(`&seconds=${error.seconds}`);
    });
    download(await answer.blob(), "longlive-full.mp4");
    return words;
  },
  async last() {
    download(await (await ask("recording.mp4?seconds=10")).blob(), "longlive-last-10-s.mp4");
  },
  async picture() {
    download(await player.picture(), `longlive-${clock(timeline.position).replace(":", "m")}s.png`);
  },
  async link() {
    const prompts = timeline.cues.map(({ frame, prompt }) => ({ frame, prompt }));
    const link = linkOf({ seed: current.seed, switch: current.switch, prompts });
    history.replaceState(null, "", link);
    await navigator.clipboard?.writeText(link).catch(() => null);
    return "The link is copied, and in the address above.";
  },
  async recipe() {
    download(await (await ask("recipe")).blob(), "recipe.json");
  },
  async load() {
    $("recipe-file").click();
  },
  async state() {
    const { state_id: id } = await (await ask("state", { method: "POST" })).json();
    localStorage.setItem("state", id);
    return "Saved. The next time this page opens here, it offers to go on from this moment.";
  },
};

$("save-dialog").addEventListener("click", async (event) => {
  const what = event.target.closest("[data-keep]")?.dataset.keep;
  if (!what) return;
  $("save-dialog").close();
  try {
    const words = await keeping[what]();
    if (words) notice(words, { tone: "good", forMs: 6000 });
  } catch (error) {
    notice(error.message, { tone: "bad", forMs: 8000 });
  }
  box.focus();
});

$("recipe-file").onchange = async (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  if (!file) return;
  // A seed may be larger than JavaScript's numbers: it is read as it is written.
  const text = (await file.text()).replace(/("seed"\s*:\s*)([0-9]+)/, '$1"$2"');
  let recipe = null;
  try {
    recipe = checked(JSON.parse(text));
  } catch {
    recipe = null;
  }
  if (!recipe) {
    notice("That file is no recipe: it should hold a seed and prompts with frames.", { tone: "bad", forMs: 8000 });
    return;
  }
  const factor = model?.temporal_factor ?? 4;
  recipe.prompts = recipe.prompts.map(({ frame, prompt }) => ({ frame: pictureOf(frame, factor), prompt }));
  connection.send({ type: "session.stop" });
  beginRecipe(recipe);
};

// ---- the beginning ------------------------------------------------------------------------------

function askToken() {
  const dialog = $("token-dialog");
  dialog.showModal();
  // Kept before the dialog closes: whoever types on at once is let in.
  dialog.querySelector("form").onsubmit = () => {
    sessionStorage.setItem("access", $("token").value);
    $("token").value = "";
  };
  dialog.onclose = () => {
    phase("empty");
    veil("");
    status("Ready", "quiet");
    notice("");
    box.focus();
  };
}

function offerWhatThereIs() {
  offer = recipeOf(location.hash);
  const kept = localStorage.getItem("state");
  if (offer) {
    const count = offer.prompts.length;
    notice(`This link holds a video: seed ${offer.seed}, ${count} prompt${count === 1 ? "" : "s"}, beginning with “${offer.prompts[0].prompt.slice(0, 60)}”.`, {
      action: "Play",
      onAction: () => beginRecipe(offer),
    });
  } else if (kept) {
    notice("A video of yours was saved here.", {
      action: "Go on with it",
      onAction: () => {
        localStorage.removeItem("state");
        begin("", { prompt: null, resume: kept });
      },
    });
  }
}

async function waitForServer() {
  for (;;) {
    try {
      const answer = await fetch(new URL("ready", document.baseURI));
      const ready = await answer.json();
      if (ready.status === "ready") return;
      const words = { loading: "The model is being loaded", draining: "The server is going down", failed: ready.message };
      status(ready.status === "failed" ? "Not working" : "Loading", ready.status === "failed" ? "bad" : "wait");
      notice(`${words[ready.status] ?? "The server is not ready"}${ready.status === "failed" ? "" : "; this page goes on by itself."}`, {
        tone: ready.status === "failed" ? "bad" : "quiet",
      });
    } catch {
      status("No server", "bad");
      notice("The server does not answer. This page tries again by itself.", { tone: "bad" });
    }
    await new Promise((resolve) => setTimeout(resolve, 1500));
  }
}

async function main() {
  box.focus();
  await waitForServer();
  notice("");
  const answer = await fetch(new URL("v1/models", document.baseURI));
  [model] = (await answer.json()).data;
  box.suggestions = model.suggestions;
  player.style.setProperty("--ratio", `${model.width} / ${model.height}`);
  player.style.setProperty("--ratio-number", String(model.width / model.height));
  status("Ready", "quiet");
  const own = JSON.parse(sessionStorage.getItem("session") ?? "null");
  if (own && !recipeOf(location.hash)) {
    phase("waiting");
    veil("Coming back", true);
    connection.open({ prompt: "", format: format() }, own);
    return;
  }
  if (model.needs_token && !sessionStorage.getItem("access")) askToken();
  offerWhatThereIs();
}

addEventListener("hashchange", offerWhatThereIs);
main();
