// <prompt-box>: always ready. Sends prompts, and tells what is being typed.

const DRAFT_MS = 300;
const KEPT = 50;

export class PromptBox extends HTMLElement {
  #form;
  #text;
  #when;
  #menu;
  #history = [];
  #recalled = 0;
  #typed = "";
  #timer = 0;
  #lastDraft = null;
  #lastSent = 0;
  #delay = 0;
  #at = null;

  connectedCallback() {
    this.#form = this.querySelector("form");
    this.#text = this.querySelector("textarea");
    this.#when = this.querySelector(".when");
    this.#menu = document.getElementById("when-menu");
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.#text.addEventListener("keydown", (event) => this.#press(event));
    this.#text.addEventListener("input", () => this.#changed());
    this.#when.addEventListener("click", () => this.#openMenu());
    this.#menu.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      this.#menu.hidePopover();
      this.#setDelay(Number(button.dataset.in));
      this.focus();
    });
    this.#menu.addEventListener("toggle", (event) => this.#when.setAttribute("aria-expanded", String(event.newState === "open")));
    this.#menu.addEventListener("keydown", (event) => this.#walkMenu(event));
    this.#changed();
  }

  focus() {
    this.#text.focus({ preventScroll: true });
  }

  get isEmpty() {
    return !this.#text.value.trim();
  }

  get value() {
    return this.#text.value;
  }

  set value(text) {
    this.#text.value = text;
    this.#changed();
  }

  set suggestions(texts) {
    const list = this.querySelector(".suggestions");
    list.replaceChildren(
      ...texts.slice(0, 9).map((text, index) => {
        const button = document.createElement("button");
        button.type = "button";
        const key = document.createElement("span");
        key.textContent = String(index + 1);
        key.setAttribute("aria-hidden", "true");
        button.append(key, text);
        button.title = `Alt+${index + 1}`;
        button.addEventListener("click", () => this.#send(text));
        const item = document.createElement("li");
        item.append(button);
        return item;
      }),
    );
  }

  suggestion(index) {
    this.querySelectorAll(".suggestions button")[index]?.click();
  }

  /** What the server has done with the draft: typing, encoded, ready. */
  set draftState(state) {
    this.#form.dataset.draft = this.isEmpty ? "none" : state;
  }

  /** The next prompt is for a second of the video. */
  pick(seconds, label) {
    this.#at = seconds;
    this.#delay = 0;
    this.#label(label);
    this.focus();
  }

  submit() {
    if (!this.isEmpty) this.#send(this.#text.value.trim());
  }

  #send(prompt) {
    const detail = { prompt, delay: this.#delay, at: this.#at };
    if (!this.dispatchEvent(new CustomEvent("send", { detail, cancelable: true }))) return;
    if (this.#history.at(-1) !== prompt) this.#history.push(prompt);
    if (this.#history.length > KEPT) this.#history.shift();
    clearTimeout(this.#timer);
    this.#lastDraft = null;
    this.#text.value = "";
    this.#recalled = 0;
    this.#setDelay(0);
    this.#changed(true);
  }

  #press(event) {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      this.submit();
    } else if (event.key === "Escape") {
      event.preventDefault();
      this.#text.value = "";
      this.#recalled = 0;
      this.#setDelay(0);
      this.#changed();
    } else if (event.key === "ArrowUp" && this.#text.selectionStart === 0 && this.#text.selectionEnd === this.#text.selectionStart) {
      this.#recall(1, event);
    } else if (event.key === "ArrowDown" && this.#recalled > 0 && this.#text.selectionStart === this.#text.value.length) {
      this.#recall(-1, event);
    }
  }

  #recall(step, event) {
    const wanted = this.#recalled + step;
    if (wanted > this.#history.length) return;
    event.preventDefault();
    if (this.#recalled === 0) this.#typed = this.#text.value;
    this.#recalled = wanted;
    this.#text.value = wanted === 0 ? this.#typed : this.#history.at(-wanted);
    this.#text.setSelectionRange(step > 0 ? 0 : this.#text.value.length, step > 0 ? 0 : this.#text.value.length);
    this.#changed();
  }

  #changed(isSent = false) {
    this.querySelector(".send").disabled = this.isEmpty;
    if (!CSS.supports("field-sizing", "content")) {
      this.#text.style.height = "auto";
      this.#text.style.height = `${this.#text.scrollHeight}px`;
    }
    if (this.isEmpty) this.#form.dataset.draft = "none";
    if (!isSent) this.#draft();
  }

  /** Not at every key: the server waits for a pause anyway. */
  #draft() {
    clearTimeout(this.#timer);
    const wait = Math.max(0, this.#lastSent + DRAFT_MS - performance.now());
    this.#timer = setTimeout(() => {
      const draft = this.isEmpty ? null : this.#text.value.trim();
      if (draft === this.#lastDraft) return;
      this.#lastDraft = draft;
      this.#lastSent = performance.now();
      this.dispatchEvent(new CustomEvent("draft", { detail: { prompt: draft } }));
    }, wait);
  }

  #setDelay(seconds) {
    this.#delay = seconds;
    this.#at = null;
    this.#label(seconds ? `in ${seconds} s` : "now");
  }

  #label(text) {
    this.#when.classList.toggle("is-set", text !== "now");
    this.#when.firstElementChild.textContent = text;
  }

  #openMenu() {
    this.#menu.showPopover();
    const box = this.#when.getBoundingClientRect();
    this.#menu.style.left = `${Math.max(8, box.right - this.#menu.offsetWidth)}px`;
    this.#menu.style.top = `${Math.max(8, box.top - this.#menu.offsetHeight - 8)}px`;
    this.#menu.querySelector("button").focus();
  }

  #walkMenu(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const items = [...this.#menu.querySelectorAll("button")];
    const index = items.indexOf(document.activeElement);
    items[(index + step + items.length) % items.length].focus();
  }
}

customElements.define("prompt-box", PromptBox);
