// Slower than it should be: says so, and offers what would help.

import { at, make } from "./dom.js";
import { wantedFps } from "./settings.js";
import { presetWords } from "./words.js";

const SLOW = 0.9; // of the wanted rate
const AFTER = 4; // blocks in a row that are too slow, before anything is said, and that are fast enough before it goes
const REST = 300_000; // ms after "Not now"
const LOST = 0.75; // of the pictures that are sent
const IN_8_BITS = 0.65; // of a pass's time, on a GPU

// What a block of a preset takes, in a unit of its own.
export function cost({ denoising_steps: steps, local_attn_size: window, precision }, onGpu) {
  return (steps.length + 1) * (0.7 + 0.025 * window) * (onGpu && precision !== "bf16" ? IN_8_BITS : 1);
}

// Presets that are faster than what is in force, the mildest first.
export function faster(presets, effective) {
  const onGpu = effective.device !== "cpu", now = cost(effective, onGpu);
  return presets.filter((preset) => cost(preset, onGpu) < 0.95 * now).sort((a, b) => cost(b, onGpu) - cost(a, onGpu));
}

export class Advice {
  #slow = 0; #quick = 0; #until = 0; #offers; #shown = "";

  // offers: {preset(name), size(height, width), sizes(), presets(), streams()}.
  constructor(offers) {
    this.#offers = offers;
    at("advice-no").addEventListener("click", () => { this.#until = performance.now() + REST; this.#hide(); });
  }

  away() { this.#slow = this.#quick = 0; this.#hide(); }

  // After each block: the server's figures, the state, and the pictures a second that arrive here.
  look({ model_fps, shown_fps, stats }, state, arriving) {
    const { effective } = state, wanted = wantedFps(effective), made = model_fps ?? shown_fps;
    const slow = made < SLOW * wanted && stats.block_ms > 0;
    const lost = !slow && arriving > 0 && arriving < LOST * shown_fps;
    this.#slow = slow || lost ? this.#slow + 1 : 0;
    this.#quick = slow || lost ? 0 : this.#quick + 1;
    if (this.#quick >= AFTER) this.#hide();
    if (this.#slow < AFTER || state.paused || performance.now() < this.#until) return;
    if (slow) this.#say(`Slower than real time: ${made.toFixed(0)} of ${wanted} frames a second.`, this.#helps(effective));
    else this.#say(`${arriving.toFixed(0)} of ${shown_fps.toFixed(0)} pictures a second arrive here: the connection or this device is slow.`, []);
  }

  #helps(effective) {
    const helps = [];
    const [preset] = faster(this.#offers.presets(), effective);
    if (preset) helps.push([`${presetWords(preset).title} (${presetWords(preset).name})`, () => this.#offers.preset(preset.name)]);
    const pixels = effective.width * effective.height;
    const [size] = this.#offers.sizes().filter(([h, w]) => h * w < 0.9 * pixels).sort((a, b) => b[0] * b[1] - a[0] * a[1]);
    if (size) helps.push([`Smaller: ${size[1]} × ${size[0]}`, () => this.#offers.size(...size)]);
    return helps;
  }

  #say(text, helps) {
    const kind = [text.replace(/[\d.]+/g, ""), ...helps.map(([words]) => words)].join();
    at("advice-figures").textContent = text;
    if (this.#shown === kind && !at("advice").hidden) return; // the figures alone have changed
    this.#shown = kind;
    at("advice-text").textContent = helps.length ? "This would help:" : text.startsWith("Slower") ? "A stronger computer would help: nothing faster is left to choose." : "";
    at("advice-offers").replaceChildren(...helps.map(([words, act]) => {
      const button = make("button", { type: "button", textContent: words });
      button.addEventListener("click", () => { this.#slow = 0; this.#hide(); act(); at("prompt").focus({ preventScroll: true }); });
      return button;
    }));
    at("advice").hidden = false;
    document.body.classList.remove("idle");
  }

  #hide() { at("advice").hidden = true; }
}
