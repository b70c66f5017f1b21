// The caption line: what is shown, and what is to be shown.

import { at, make } from "./dom.js";

const TOUCH = matchMedia("(hover: none) and (pointer: coarse)");

export class Prompts {
  #box = at("prompt"); #send; #past; #place = -1; #draft = ""; #edited = false; #shown = "";

  // send: called with a prompt that is to be shown. past: gives earlier ones, the newest first.
  constructor(send, past) {
    this.#send = send;
    this.#past = past;
    at("prompt-form").addEventListener("submit", (event) => { event.preventDefault(); this.submit(this.#box.value); });
    this.#box.addEventListener("keydown", (event) => this.#key(event));
    this.#box.addEventListener("input", () => { this.#edited = true; this.#fit(); });
    this.#box.addEventListener("focus", () => { if (!this.#edited) this.#box.select(); });
    this.#box.addEventListener("blur", () => { if (!this.#box.value.trim()) this.#revert(); });
    let width = 0;
    new ResizeObserver(() => { if (width !== (width = this.#box.clientWidth)) this.#fit(); }).observe(this.#box);
  }

  // What is written next replaces what is there.
  take() { this.#box.focus(); this.#box.select(); }

  get isEdited() { return this.#edited; }

  submit(text) {
    const prompt = text.trim();
    if (!prompt) return;
    this.#place = -1;
    this.#edited = false;
    this.#write(prompt);
    this.#send(prompt);
    if (TOUCH.matches) this.#box.blur(); // the keyboard covers the picture
    else if (document.activeElement === this.#box) this.#box.select(); // what is written next replaces it
  }

  // The prompt in force, whoever asked for it.
  show(prompt) {
    this.#shown = prompt;
    if (!this.#edited && this.#box.value !== prompt) this.#write(prompt);
  }

  suggest(suggestions) {
    const list = (texts) => texts.map((text) => {
      const button = make("button", { type: "button", textContent: text });
      button.addEventListener("click", () => this.submit(text));
      return make("li", {}, button);
    });
    at("examples").replaceChildren(...list(suggestions));
    at("ideas-list").replaceChildren(...list(suggestions.filter((text) => text !== this.#shown).slice(0, 2)));
  }

  #key(event) {
    const { key, shiftKey, isComposing } = event, box = this.#box;
    if (isComposing) return;
    if (key === "Enter" && !shiftKey) {
      event.preventDefault();
      this.submit(box.value);
    } else if (key === "ArrowUp" && !box.value.slice(0, box.selectionStart).includes("\n")) {
      this.#recall(event, this.#place + 1);
    } else if (key === "ArrowDown" && !box.value.slice(box.selectionEnd).includes("\n")) {
      this.#recall(event, this.#place - 1);
    } else if (key === "Escape") {
      this.#revert();
      box.blur();
    }
  }

  #recall(event, place) {
    const past = this.#past().filter((text) => text !== this.#shown);
    if (place < -1 || place >= past.length) return;
    event.preventDefault();
    if (this.#place === -1) this.#draft = this.#box.value;
    this.#place = place;
    this.#edited = true;
    this.#write(place === -1 ? this.#draft : past[place]);
    this.#box.setSelectionRange(0, 0);
  }

  #revert() {
    this.#edited = false;
    this.#place = -1;
    this.#write(this.#shown);
  }

  #write(text) {
    this.#box.value = text;
    this.#fit();
  }

  // As many lines as it has, up to what the style allows.
  #fit() {
    this.#box.style.height = "auto";
    this.#box.style.height = `${this.#box.scrollHeight + this.#box.offsetHeight - this.#box.clientHeight}px`;
  }
}
