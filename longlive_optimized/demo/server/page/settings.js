// Presets, transitions, the model's settings, and what is really in force.

import { at, choice, make, place, segments, slider } from "./dom.js";
import { presetWords } from "./words.js";

const BLOCK = 12; // frames
const LENGTHS = [1, 2, 4, 8];
const STEPS = { 1: [1000], 2: [1000, 250], 3: [1000, 500, 250], 4: [1000, 750, 500, 250], 5: [1000, 800, 600, 400, 200], 6: [1000, 850, 700, 550, 400, 200] };
const SPEEDS = [0.25, 0.5, 1, 1.5, 2, 4];
const PICTURES = [["none", "as made"], [24, "24"], [30, "30"], [60, "60"]]; // between frames two are mixed
const times = (value) => `${Number(value.toFixed(2))} ×`;
const sizeOf = (size) => size.join("x");

export class Settings {
  #ask; #begin; #presets = []; #state = null; #sized = false;

  // ask: sends a command. begin: starts the video anew with another seed or size.
  constructor(ask, begin) {
    this.#ask = ask;
    this.#begin = begin;
    segments("blocks", LENGTHS.map((blocks) => [blocks, blocks === 1 ? "at once" : `${blocks} blocks`]), (blocks) => this.#transition({ blocks: Number(blocks) }));
    segments("blend", [["linear", "linear"], ["slerp", "spherical"]], (blend) => this.#transition({ blend }));
    segments("steps", Object.keys(STEPS).map((n) => [n, n]), (n) => this.#set({ denoising_steps: STEPS[n] }));
    segments("speed", SPEEDS.map((speed) => [speed, times(speed)]), (speed) => this.#set({ playback_speed: Number(speed) }));
    segments("pictures-shown", PICTURES, (fps) => this.#set(fps === "none" ? { interpolation: "none" } : { interpolation: "blend", shown_fps: Number(fps) }));
    at("seed-form").addEventListener("submit", (event) => { event.preventDefault(); this.#begin({ seed: Number(at("seed").value) }); });
    at("seed-new").addEventListener("click", () => this.#begin({ seed: Math.floor(Math.random() * 1e6) }));
    at("size").addEventListener("change", ({ target }) => { const [height, width] = target.value.split("x").map(Number); this.#begin({ height, width }); });
  }

  get presets() { return this.#presets; }

  // What there is to choose, once it is known; can(type, field): whether the server takes a message, and that field.
  greet({ presets, loras }, can) {
    this.#presets = presets;
    at("presets").replaceChildren(...presets.map((preset, i) => {
      const { name, title, text, steps, numbers } = presetWords(preset);
      const button = make("button", { type: "button", value: preset.name, title: `${numbers} (Alt+${i + 1})`, ariaKeyShortcuts: `Alt+${i + 1}` },
        make("strong", { textContent: title }), make("span", { textContent: `${name} · ${steps}` }), make("small", { textContent: text }));
      button.addEventListener("click", () => this.choose(i));
      return button;
    }));
    at("seed-form").hidden = !can("reset", "seed");
    this.#sized = can("reset", "height");
    at("steps-row").hidden = !can("settings", "denoising_steps");
    at("speed-row").hidden = !can("settings", "playback_speed");
    at("pictures-row").hidden = !can("settings", "interpolation");
    this.#offerLoras(loras ?? [], can("settings", "loras"));
  }

  // The sizes that suit the model.
  offerSizes(sizes) {
    at("size-row").hidden = !this.#sized || sizes.length < 2;
    at("size").replaceChildren(...sizes.map(([height, width]) => make("option", { value: `${height}x${width}`, textContent: `${width} × ${height}` })));
    this.#showSize();
  }

  choose(i) {
    if (this.#presets[i]) this.#ask({ type: "set_optimization_preset", preset: this.#presets[i].name });
  }

  show(state) {
    this.#state = state;
    const { effective, preset, transition } = state;
    for (const button of at("presets").children) {
      button.ariaPressed = String(button.value === effective.preset);
      button.classList.toggle("coming", button.value === preset && preset !== effective.preset);
    }
    choice("blocks", transition.blocks);
    for (const button of at("blocks").children) {
      const seconds = (Number(button.value) * BLOCK) / wantedFps(effective);
      if (button.value !== "1") button.textContent = `${Number(seconds.toFixed(1))} s`;
    }
    choice("blend", transition.blend);
    for (const button of at("blend").children) button.disabled = transition.blocks === 1;
    choice("steps", effective.denoising_steps.length);
    choice("speed", effective.playback_speed);
    choice("pictures-shown", effective.interpolation === "none" ? "none" : effective.shown_fps ?? 30);
    if (document.activeElement !== at("seed") && effective.seed !== undefined) at("seed").value = effective.seed;
    this.#showSize();
    this.#showEffective(effective);
  }

  #showSize() {
    if (!this.#state) return;
    const { height, width } = this.#state.effective, here = sizeOf([height, width]);
    if (at("size").options.length && ![...at("size").options].some(({ value }) => value === here)) {
      at("size").prepend(make("option", { value: here, textContent: `${width} × ${height}` }));
    }
    at("size").value = here;
  }

  // turns: whether this stream's viewers may turn them.
  #offerLoras(loras, turns) {
    const who = turns ? "For all streams of this server." : "They are the same in all streams, and not turned in this one.";
    at("loras").hidden = !loras.length;
    at("loras").replaceChildren(make("p", { className: "name", textContent: "LoRAs" }), ...loras.map(({ name, scale }, i) => {
      const id = `lora-${i}`;
      const range = { min: Math.min(-1, Math.floor(scale)), max: Math.max(2, Math.ceil(scale)), step: 0.05 };
      return make("p", { className: "strength" }, make("label", { htmlFor: id, textContent: name }), make("input", { id, type: "range", ...range, value: scale, disabled: !turns }), make("output", { id: `${id}-value`, textContent: scale.toFixed(2) }));
    }), make("p", { className: "hint", textContent: who }));
    loras.forEach(({ name }, i) => slider(`lora-${i}`, (scale) => this.#set({ loras: { [name]: scale } })));
  }

  // As they are wished for; the range follows.
  showLoras(loras = []) {
    loras.forEach(({ scale }, i) => {
      const input = at(`lora-${i}`);
      if (!input) return;
      if (scale < input.min) input.min = Math.floor(scale);
      if (scale > input.max) input.max = Math.ceil(scale);
      place(`lora-${i}`, scale);
    });
  }

  #showEffective(effective) {
    const rows = {
      Preset: effective.preset.replaceAll("_", " "),
      Steps: effective.denoising_steps.join(" "),
      Window: `${effective.local_attn_size} latent frames`,
      Precision: effective.precision,
      Wanted: `${wantedFps(effective)} fps`,
      Picture: `${effective.width} × ${effective.height}`,
      Seed: effective.seed ?? "–",
      ...loraRows(effective.loras),
      Device: effective.device + (effective.cuda_graphs ? ", CUDA graphs" : ""),
      Memory: memory(effective.memory),
    };
    at("effective").replaceChildren(...Object.entries(rows).flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })]));
  }

  #set(fields) { this.#ask({ type: "settings", ...fields }); }

  #transition(change) {
    this.#ask({ type: "set_transition", ...(this.#state?.transition ?? { blocks: 1, blend: "linear" }), ...change });
  }
}

// Model frames that are to be shown a second.
export const wantedFps = ({ model_fps, target_fps }) => model_fps ?? target_fps;

function loraRows(loras = {}) {
  const scales = Object.entries(loras).map(([name, scale]) => `${name} ${scale.toFixed(2)}`);
  return scales.length ? { LoRAs: scales.join(", ") } : {};
}

// What the plan says: how much, other GPUs by their names, and what was chosen so that it fits.
function memory({ costs, others = {}, ...first }) {
  const beside = Object.entries(others).map(([name, plan]) => `${gib(plan)} on ${name}`);
  return [gib(first), ...beside, ...costs].join("; ");
}

function gib({ peak_gib, available_gib }) {
  const most = available_gib === null ? "" : ` of ${available_gib.toFixed(1)}`;
  return `${peak_gib.toFixed(1)}${most} GiB`;
}
