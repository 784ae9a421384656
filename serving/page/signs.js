// What the page says: to the eye, and to a screen reader.

const $ = (id) => document.getElementById(id);

export function say(text) {
  $("said").textContent = "";
  requestAnimationFrame(() => ($("said").textContent = text));
}

export function status(text, tone, more = "") {
  $("status").dataset.tone = tone;
  $("status").querySelector("span").textContent = text;
  $("status").querySelector("small").textContent = more;
}

let noticeTimer = 0;
export function notice(text, { tone = "quiet", action = null, onAction = null, forMs = 0 } = {}) {
  const element = $("notice");
  clearTimeout(noticeTimer);
  element.hidden = !text;
  if (!text) return;
  element.dataset.tone = tone;
  element.setAttribute("role", tone === "bad" ? "alert" : "status");
  element.querySelector("span").textContent = text;
  const button = element.querySelector("button");
  button.hidden = !action;
  button.textContent = action ?? "";
  button.onclick = onAction;
  if (forMs) noticeTimer = setTimeout(() => (element.hidden = true), forMs);
}

export function veil(text, isBusy = false) {
  $("veil").classList.toggle("is-on", Boolean(text));
  $("veil").classList.toggle("is-busy", isBusy);
  if (text) $("veil").firstElementChild.textContent = text;
}

export function phase(name) {
  document.body.dataset.phase = name;
}
