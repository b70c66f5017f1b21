// What things are called on the page.

// What a preset costs and gives, for those who look at pictures.
const PRESETS = {
  quality_stream: ["Closest to the model", "All steps, long memory, full precision. For final takes."],
  balanced: ["Closest to the model, live", "The same picture. The usual choice."],
  speed: ["Lighter, hard to tell apart", "All steps in 8 bits: the picture differs by a hair."],
  realtime: ["Faster, a little softer", "One step less, and a shorter memory."],
  turbo: ["Faster still, a little softer", "The same in 8 bits: fine texture goes first."],
  ultra: ["Fastest, softest", "Two steps: for trying things out."],
};

export function presetWords({ name, denoising_steps: steps, local_attn_size: window, precision }) {
  const [title, text] = PRESETS[name] ?? ["", ""];
  const count = `${steps.length} steps`, numbers = `${count} · window ${window} · ${precision}`;
  return { name: name.replaceAll("_", " "), title: title || numbers, text, steps: count, numbers };
}

export const CHANGES = {
  switch_prompt: "changed the prompt", set_optimization_preset: "changed the preset", set_transition: "changed the transition",
  set_overlay: "switched the burnt-in figures", set_paused: "pressed pause", reset: "started over",
  set_input: "changed the input", set_strength: "changed a strength", set_picture: "gave a picture", remove_picture: "removed a picture",
  settings: "changed a setting", loras: "turned a LoRA, for all streams", replay: "plays a story", stop_replay: "stopped the story",
};

// A prompt in one line; of several, with their weights.
export const promptWords = ({ prompt, prompts }) => (prompts ? prompts.map(([text, weight]) => `${text} (${weight})`).join(" + ") : prompt);

export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

const IN_QUEUE = "All places are taken. The video starts by itself.";

// What covers the picture: null where it is to be seen.
export function veilWords(link, state, pictures) {
  const { phase, detail, stage, done, total } = link;
  const soon = link.delay ? ` Trying again in ${Math.round(link.delay / 1e3)} s.` : "";
  switch (phase) {
    case "live":
      if (state?.queue) return { title: `You are number ${state.queue} in the queue`, text: IN_QUEUE, progress: -1 };
      return pictures || state?.paused ? null : { title: "The first pictures are being made", text: "They come in blocks of twelve.", progress: -1 };
    case "connecting": return { title: "Connecting" };
    case "loading":
      if (stage === "failed") return { title: "The model could not be loaded", text: detail, again: true };
      if (stage === "warming up") return { title: "Warming up", text: "Kernels are compiled and captured.", progress: -1 };
      return { title: detail ? `Loading the ${detail}` : "Loading", text: "The video starts by itself.", progress: total ? done / total : -1 };
    case "busy":
      if (link.queue) return { title: `You are number ${link.queue} in the queue`, text: IN_QUEUE, progress: -1 };
      return { title: "The server is busy", text: `${capital(detail)}.${soon}`, again: true };
    case "refused": return { title: "The server says no", text: `${capital(detail)}.`, again: true };
    case "blocked": return { title: "No way for the video", text: `${blockedBy()}${soon}`, again: true };
    case "lost": return { title: "The connection was lost", text: soon, again: true };
    default: return { title: "The server is gone", text: `It does not answer.${soon}`, again: true };
  }
}

function blockedBy() {
  if (/Firefox/.test(navigator.userAgent) && ["127.0.0.1", "localhost", "[::1]"].includes(location.hostname)) {
    return "Firefox takes no video from 127.0.0.1: start the server with --ice-address and another address of its machine.";
  }
  return "The server answers, but its video does not arrive: something on the way blocks UDP. A TURN server helps (serve --turn).";
}

export function pillWords(link, state, pictures, fps) {
  if (link.phase !== "live") return { text: link.phase, mood: ["connecting", "loading", "busy"].includes(link.phase) ? "wait" : "bad" };
  if (state?.status.phase === "trouble") return { text: "trouble", mood: "bad" };
  if (state?.queue) return { text: `number ${state.queue} in the queue`, mood: "wait" };
  if (state?.paused) return { text: "paused", mood: "wait" };
  if (!pictures) return { text: "starting", mood: "wait" };
  return { text: "live", figure: fps ? ` · ${fps.toFixed(0)} fps` : "", mood: "live" };
}
