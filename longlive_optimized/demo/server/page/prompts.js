// The prompt box: what was written before, and what might be.

const EXAMPLES = [
  "a red fox walks through fresh snow, morning light, film grain",
  "the fox leaps over a frozen stream in slow motion",
  "a paper boat drifts down a rainy street at night, neon reflections",
  "a hot air balloon rises over terraced green hills at dawn",
  "an astronaut tends a small garden inside a glass dome on Mars",
  "a koi pond seen from above, petals fall on the water",
];
const KEPT = 20;
const STORE = "longlive prompts";

export class Prompts {
  #box; #send; #history = read(); #place = -1; #draft = "";

  // send: called with a prompt that is to be shown.
  constructor(send) {
    this.#send = send;
    this.#box = document.getElementById("prompt");
    const form = document.getElementById("prompt-form");
    form.addEventListener("submit", (event) => { event.preventDefault(); this.#submit(this.#box.value); });
    this.#box.addEventListener("keydown", (event) => this.#key(event));
    list("examples", EXAMPLES, (text) => this.#submit(text));
    this.#showHistory();
  }

  focus() { this.#box.focus(); this.#box.select(); }

  #submit(text) {
    const prompt = text.trim();
    if (!prompt) return;
    this.#box.value = prompt;
    this.#history = [prompt, ...this.#history.filter((old) => old !== prompt)].slice(0, KEPT);
    this.#place = -1;
    write(this.#history);
    this.#showHistory();
    this.#send(prompt);
  }

  #key(event) {
    const { key, shiftKey, isComposing } = event, box = this.#box;
    if (isComposing) return;
    if (key === "Enter" && !shiftKey) {
      event.preventDefault();
      this.#submit(box.value);
    } else if (key === "ArrowUp" && !box.value.slice(0, box.selectionStart).includes("\n")) {
      this.#recall(event, this.#place + 1);
    } else if (key === "ArrowDown" && !box.value.slice(box.selectionEnd).includes("\n")) {
      this.#recall(event, this.#place - 1);
    } else if (key === "Escape") {
      box.blur();
    }
  }

  #recall(event, place) {
    if (place < -1 || place >= this.#history.length) return;
    event.preventDefault();
    if (this.#place === -1) this.#draft = this.#box.value;
    this.#place = place;
    this.#box.value = place === -1 ? this.#draft : this.#history[place];
  }

  #showHistory() {
    document.getElementById("history-section").hidden = !this.#history.length;
    list("history", this.#history.slice(0, 8), (text) => this.#submit(text));
  }
}

function list(id, texts, choose) {
  document.getElementById(id).replaceChildren(...texts.map((text) => {
    const item = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.textContent = button.title = text;
    button.addEventListener("click", () => choose(text));
    item.append(button);
    return item;
  }));
}

// Storage may be forbidden or hold anything.
function read() {
  try {
    const found = JSON.parse(localStorage.getItem(STORE));
    return Array.isArray(found) ? found.filter((text) => typeof text === "string").slice(0, KEPT) : [];
  } catch { return []; }
}

function write(history) {
  try { localStorage.setItem(STORE, JSON.stringify(history)); } catch { /* then it lasts as long as the page */ }
}
