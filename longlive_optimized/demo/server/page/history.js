// Prompts that were seen, with a small picture of each; kept in this browser.

import { at, make, store, stored } from "./dom.js";

const STORE = "longlive history";
const KEPT = 24;
const FORM = (entry) => typeof entry?.prompt === "string" && typeof entry.settings === "object";

export class History {
  #entries; #restore; #submit; #seen = false;

  // restore: called with an entry, to begin it as it was. submit: likewise, to show its prompt now.
  constructor(restore, submit) {
    const found = stored(STORE, []);
    this.#entries = Array.isArray(found) ? found.filter(FORM).slice(0, KEPT) : [];
    this.#restore = restore;
    this.#submit = submit;
    at("history-clear").addEventListener("click", () => { this.#entries = []; this.#keep(); });
    this.#show();
  }

  get prompts() { return this.#entries.filter(({ prompts }) => !prompts).map(({ prompt }) => prompt); }

  // An entry: the prompt in words, the prompts of a mix, and the settings that it was made with: seed, preset, height, width.
  add(entry) {
    const before = this.#entries.find(({ prompt }) => prompt === entry.prompt);
    this.#entries = [{ ...entry, picture: before?.picture }, ...this.#entries.filter((one) => one !== before)].slice(0, KEPT);
    this.#keep();
  }

  picture(prompt, picture) {
    const entry = this.#entries.find((one) => one.prompt === prompt);
    if (!entry || !picture) return;
    entry.picture = picture;
    this.#keep();
  }

  #keep() {
    if (!store(STORE, this.#entries)) store(STORE, this.#entries.map(({ picture, ...rest }) => rest)); // there is little room
    this.#show();
  }

  #show() {
    at("history-section").hidden = !this.#entries.length;
    at("ideas").hidden = this.#entries.length > 0;
    if (!this.#seen && this.#entries.length) at("try").open = false; // they know how by now
    this.#seen = this.#entries.length > 0;
    at("history").replaceChildren(...this.#entries.map((entry) => {
      const { seed, preset, width, height } = entry.settings;
      const picture = entry.picture?.startsWith("data:image/") ? make("img", { src: entry.picture, alt: "" }) : make("span", { className: "blank" });
      const whole = make("button", { type: "button", className: "whole", title: "Begin it again with its seed and settings" }, picture, make("small", { textContent: `${preset?.replaceAll("_", " ")} · seed ${seed} · ${width}×${height}` }));
      whole.ariaLabel = `Begin again: ${entry.prompt}`;
      whole.addEventListener("click", () => this.#restore(entry));
      const words = make("button", { type: "button", className: "words", textContent: entry.prompt, title: "Show this prompt now" });
      words.addEventListener("click", () => this.#submit(entry));
      return make("li", {}, whole, words);
    }));
  }
}
