// Several prompts at once, each with a weight.

import { at, make } from "./dom.js";

const MOST = 4;
const STEADY = 250; // ms after the last move of a weight

export class Mix {
  #show; #rows = []; #timer; #inForce = false;

  // show: sends [text, weight] pairs.
  constructor(show) {
    this.#show = show;
    at("mix-add").addEventListener("click", () => { this.#add("", 0.5); at("mix-rows").lastElementChild.querySelector("input").focus(); });
    at("mix-form").addEventListener("submit", (event) => { event.preventDefault(); this.#send(); });
  }

  greet(can) {
    at("mix-section").hidden = !can("switch_prompt", "prompts");
    while (this.#rows.length < 2) this.#add("", 0.5);
  }

  // What the server shows, if it is a mix.
  state({ prompts }) { this.#inForce = Boolean(prompts); }

  start(prompt) { if (!this.#inForce && this.#rows[0]) this.#rows[0].text.value = prompt; }

  #add(text, weight) {
    if (this.#rows.length >= MOST) return;
    const number = this.#rows.length + 1;
    const row = {
      text: make("input", { type: "text", value: text, maxLength: 2000, ariaLabel: `Prompt ${number} of the mix`, placeholder: `prompt ${number}` }),
      weight: make("input", { type: "range", min: 0, max: 1, step: 0.05, value: weight, ariaLabel: `Weight of prompt ${number}` }),
      figure: make("output", { textContent: weight.toFixed(2) }),
    };
    row.weight.addEventListener("input", () => {
      row.figure.textContent = Number(row.weight.value).toFixed(2);
      clearTimeout(this.#timer);
      if (this.#inForce) this.#timer = setTimeout(() => this.#send(), STEADY);
    });
    this.#rows.push(row);
    at("mix-rows").append(make("li", {}, row.text, make("span", { className: "strength" }, row.weight, row.figure)));
    at("mix-add").disabled = this.#rows.length >= MOST;
  }

  #send() {
    const pairs = this.#rows.map(({ text, weight }) => [text.value.trim(), Number(weight.value)]).filter(([text, weight]) => text && weight > 0);
    if (pairs.length) this.#show(pairs);
  }
}
