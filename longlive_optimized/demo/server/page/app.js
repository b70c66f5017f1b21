// The page: what the server says is shown, what the viewer does is sent.

import { Chart } from "./chart.js";
import { Connection } from "./connection.js";
import { Input } from "./input.js";
import { Prompts } from "./prompts.js";
import { Settings } from "./settings.js";

const at = (id) => document.getElementById(id);
const chart = new Chart(at("chart"));
const connection = new Connection(new URLSearchParams(location.hash.slice(1)).get("token"));
const prompts = new Prompts((prompt) => ask({ type: "switch_prompt", prompt }));
const settings = new Settings(ask);
const input = new Input(connection, ask, toast);
let you = "", state = null, recordSeconds = 0, pictures = 0, fps = 0, streamLink = "";

function ask(command) {
  return connection.ask(command).catch((error) => toast(error.message));
}

// --- what the server says

connection.addEventListener("stream", ({ detail }) => {
  const video = at("video");
  video.srcObject = detail;
  pictures = 0;
  const count = () => { pictures++; showVeil(); video.requestVideoFrameCallback(count); };
  video.requestVideoFrameCallback?.(count);
  video.addEventListener("playing", () => { pictures ||= 1; showVeil(); }, { once: true });
  video.play().catch(() => { /* it is muted, so this is a page that went away */ });
});

let link = { phase: "connecting" };
connection.addEventListener("state", ({ detail }) => {
  link = detail;
  const away = detail.phase !== "live";
  if (away) { pictures = 0; at("people").textContent = ""; input.away(); }
  for (const id of ["pause", "overlay", "reset", "save", "share", "send", "transition", "preset", "input"]) at(id).disabled = away;
  showVeil();
});

connection.addEventListener("message", ({ detail: message }) => {
  if (message.type === "hello") greet(message);
  if (message.type === "state") showState(message);
  if (message.type === "block") showBlock(message);
  if (message.type === "error" && !message.asked) toast(message.error); // others are told to whoever asked
});

function greet(hello) {
  you = hello.you;
  streamLink = hello.link;
  recordSeconds = hello.record_seconds;
  at("save").hidden = !recordSeconds;
  at("save").textContent = `Save last ${recordSeconds} s`;
  at("screen").style.setProperty("--ratio", `${hello.width} / ${hello.height}`);
  settings.offer(hello.presets);
  input.greet(hello);
  if (hello.resumed) toast("The stream has moved to another machine, and goes on there");
}

const CHANGES = {
  switch_prompt: "changed the prompt", set_optimization_preset: "changed the preset", set_transition: "changed the transition", settings: "changed the speed",
  set_overlay: "switched the overlay", set_paused: "pressed pause", reset: "started over",
  set_input: "changed the input", set_strength: "changed a strength", set_picture: "gave a picture", remove_picture: "removed a picture",
};

function showState(news) {
  state = news;
  at("pause").ariaPressed = String(news.paused);
  at("pause").textContent = news.paused ? "Go on" : "Pause";
  at("overlay").ariaPressed = String(news.overlay);
  at("shown-prompt").textContent = news.prompt;
  at("people").textContent = news.viewers > 1 ? `${news.viewers} watching · you are ${you}` : "";
  settings.show(news);
  input.show(news);
  const trouble = news.status.phase === "trouble";
  at("notice").hidden = !trouble;
  if (trouble) at("notice").textContent = `A block failed: ${news.status.detail}. The next try is in ${news.status.retry_in} s.`;
  if (news.by && news.by !== you) toast(`${news.by} ${CHANGES[news.changed] ?? "changed something"}`);
  showVeil();
}

function showBlock(block) {
  const { stats } = block, target = state?.effective.model_fps ?? 16;
  chart.add(stats.block_ms, (1e3 * block.frames) / target, block.model_fps);
  const figures = [
    ["block", stats.block_ms.toFixed(0), "ms"], ["frame", stats.current_ms.toFixed(1), "ms"], ["p99", stats.p99_ms.toFixed(1), "ms"],
    ["engine", stats.fps.toFixed(1), "fps"], ["shown", block.shown_fps.toFixed(1), "fps"],
    ["prompt switch", stats.prompt_switch_ms ? stats.prompt_switch_ms.toFixed(0) : "–", "ms"], ["frames", stats.frame_count, ""],
  ];
  at("figures").replaceChildren(...figures.map(([name, value, unit]) => {
    const cell = document.createElement("div"), term = document.createElement("dt"), text = document.createElement("dd"), small = document.createElement("small");
    term.textContent = name;
    text.textContent = `${value} `;
    small.textContent = unit;
    text.append(small);
    cell.append(term, text);
    return cell;
  }));
  fps = block.model_fps;
  showPill();
}

function showPill() {
  const paused = state?.paused, trouble = state?.status.phase === "trouble";
  const live = link.phase === "live" && pictures > 0;
  const waits = state?.queue ? `number ${state.queue} in the queue` : "starting";
  const text = !live ? (link.phase === "live" ? waits : link.phase) : trouble ? "trouble" : paused ? "paused" : fps ? `live · ${fps.toFixed(0)} fps` : "live";
  at("pill").textContent = text;
  at("pill").dataset.mood = live && !trouble && !paused ? "live" : ["gone", "lost", "refused", "blocked"].includes(link.phase) || trouble ? "bad" : "wait";
}

function showVeil() {
  const words = veilWords();
  at("veil").classList.toggle("gone", !words);
  if (words) {
    at("veil-title").textContent = words.title;
    at("veil-text").textContent = words.text ?? "";
    at("veil-progress").hidden = words.progress === undefined;
    if (words.progress >= 0) at("veil-progress").value = words.progress;
    else at("veil-progress").removeAttribute("value");
    at("veil-button").hidden = !words.again;
  }
  showPill();
}

function veilWords() {
  const { phase, detail, stage, done, total } = link;
  const soon = link.delay ? ` Trying again in ${Math.round(link.delay / 1e3)} s.` : "";
  switch (phase) {
    case "live":
      if (state?.queue) return { title: `You are number ${state.queue} in the queue`, text: "All places are taken. The video starts by itself.", progress: -1 };
      return pictures || state?.paused ? null : { title: "The first frames are being made", text: "They come in blocks of twelve.", progress: -1 };
    case "connecting": return { title: "Connecting" };
    case "loading":
      if (stage === "failed") return { title: "The model could not be loaded", text: detail, again: true };
      if (stage === "warming up") return { title: "Warming up", text: "Kernels are compiled and captured.", progress: -1 };
      return { title: detail ? `Loading the ${detail}` : "Loading", text: "The video starts by itself.", progress: total ? done / total : -1 };
    case "busy":
      if (link.queue) return { title: `You are number ${link.queue} in the queue`, text: "All places are taken. The video starts by itself.", progress: -1 };
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

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

let fading;
function toast(text) {
  at("toast").textContent = text;
  at("toast").classList.add("shown");
  clearTimeout(fading);
  fading = setTimeout(() => at("toast").classList.remove("shown"), 4_000);
}

// --- what the viewer does

const pause = () => ask({ type: "set_paused", paused: !state?.paused });
const overlay = () => ask({ type: "set_overlay", enabled: !state?.overlay });
const startOver = () => ask({ type: "reset" });
const full = () => (document.fullscreenElement ? document.exitFullscreen() : at("screen").requestFullscreen?.())?.catch(() => {});

async function save() {
  if (!recordSeconds || link.phase !== "live") return;
  at("save").disabled = true;
  try {
    const answer = await connection.fetch(`recording?seconds=${recordSeconds}`);
    if (!answer.ok) throw new Error((await answer.json()).error);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = `longlive-${new Date().toISOString().slice(0, 19).replaceAll(":", "-")}.mp4`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  } catch (error) {
    toast(`No recording: ${error.message}`);
  }
  at("save").disabled = false;
}

// The stream's own address, with a token for it alone.
async function share() {
  const root = location.pathname.replace(/s\/[^/]+\/$/, "");
  const address = new URL(root + streamLink, location).href;
  try {
    await navigator.clipboard.writeText(address);
    toast("The link to this stream is copied");
  } catch {
    prompt("The link to this stream", address);
  }
}

for (const [id, action] of Object.entries({ pause, overlay, reset: startOver, save, share, full })) at(id).addEventListener("click", action);
at("veil-button").addEventListener("click", () => connection.retry());
at("help-button").addEventListener("click", () => at("help").showModal());

const KEYS = { k: pause, o: overlay, r: startOver, s: save, f: full, "/": () => prompts.focus(), "?": () => at("help").showModal() };
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || at("help").open || /^(TEXTAREA|INPUT)$/.test(event.target.tagName)) return;
  const action = KEYS[event.key.toLowerCase()] ?? (/^[1-9]$/.test(event.key) ? () => settings.choose(Number(event.key) - 1) : null);
  if (action) { event.preventDefault(); action(); }
});

connection.run();
