// Presets, transitions, and what is really in force.

const BLOCK = 12; // frames
const LENGTHS = [1, 2, 4, 8];

export class Settings {
  #ask; #presets = []; #state = null;

  // ask: sends a command.
  constructor(ask) {
    this.#ask = ask;
    segments("blocks", LENGTHS, (blocks) => this.#transition({ blocks }));
    segments("blend", ["linear", "slerp"], (blend) => this.#transition({ blend }));
    for (const button of document.querySelectorAll("#blend button")) button.textContent = { linear: "linear", slerp: "spherical" }[button.value];
  }

  // The presets that there are, once they are known.
  offer(presets) {
    this.#presets = presets;
    document.getElementById("presets").replaceChildren(...presets.map((preset, i) => {
      const button = document.createElement("button"), rate = document.createElement("span"), small = document.createElement("small");
      button.type = "button";
      button.value = preset.name;
      button.title = `steps ${preset.denoising_steps.join(" ")}, attention window of ${preset.local_attn_size} latent frames`;
      button.ariaKeyShortcuts = String(i + 1);
      button.textContent = preset.name.replace("_", " ");
      rate.textContent = preset.precision;
      small.textContent = `${preset.denoising_steps.length} steps · window ${preset.local_attn_size}`;
      button.append(rate, small);
      button.addEventListener("click", () => this.choose(i));
      return button;
    }));
  }

  choose(i) {
    if (this.#presets[i]) this.#ask({ type: "set_optimization_preset", preset: this.#presets[i].name });
  }

  show(state) {
    this.#state = state;
    const { effective, preset, transition } = state;
    for (const button of document.querySelectorAll("#presets button")) {
      button.ariaPressed = String(button.value === effective.preset);
      button.classList.toggle("coming", button.value === preset && preset !== effective.preset);
    }
    for (const button of document.querySelectorAll("#blocks button")) {
      const blocks = Number(button.value), seconds = (blocks * BLOCK) / effective.model_fps;
      button.textContent = blocks === 1 ? "at once" : `${Number(seconds.toFixed(1))} s`;
      button.ariaChecked = String(blocks === transition.blocks);
    }
    for (const button of document.querySelectorAll("#blend button")) {
      button.ariaChecked = String(button.value === transition.blend);
      button.disabled = transition.blocks === 1;
    }
    this.#showEffective(effective);
  }

  #showEffective(effective) {
    const rows = {
      Steps: effective.denoising_steps.join(" "),
      Window: `${effective.local_attn_size} latent frames`,
      Precision: effective.precision,
      Speed: `${effective.model_fps} frames of the world a second`,
      Picture: `${effective.width} × ${effective.height}`,
      Device: effective.device + (effective.cuda_graphs ? ", CUDA graphs" : ""),
      Memory: memory(effective.memory),
    };
    document.getElementById("effective").replaceChildren(...Object.entries(rows).flatMap(([name, value]) => {
      const term = document.createElement("dt"), text = document.createElement("dd");
      term.textContent = name;
      text.textContent = value;
      return [term, text];
    }));
  }

  #transition(change) {
    this.#ask({ type: "set_transition", ...(this.#state?.transition ?? { blocks: 1, blend: "linear" }), ...change });
  }
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

// A row of buttons of which one is chosen; arrow keys go from one to the next.
export function segments(id, values, choose) {
  const row = document.getElementById(id);
  row.replaceChildren(...values.map((value) => {
    const button = document.createElement("button");
    button.type = "button";
    button.value = value;
    button.textContent = value;
    button.role = "radio";
    button.ariaChecked = "false";
    button.addEventListener("click", () => choose(value));
    return button;
  }));
  row.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const next = step && row.children[[...row.children].indexOf(event.target) + step];
    if (next) { next.focus(); next.click(); }
  });
}
