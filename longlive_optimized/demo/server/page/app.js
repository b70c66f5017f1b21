// The page: what the server says is shown, what the viewer does is sent.

import { Advice } from "./advice.js";
import { Arrival } from "./arrival.js";
import { Chart } from "./chart.js";
import { Clips } from "./clips.js";
import { Connection } from "./connection.js";
import { at, make, store, stored } from "./dom.js";
import { Drawer } from "./drawer.js";
import { History } from "./history.js";
import { Input } from "./input.js";
import { restWhenIdle, takeKeys } from "./keys.js";
import { Mix } from "./mix.js";
import { Prompts } from "./prompts.js";
import { announce, toast } from "./say.js";
import { Settings, wantedFps } from "./settings.js";
import { Stage } from "./stage.js";
import { Story } from "./story.js";
import { CHANGES, promptWords } from "./words.js";

const FIGURES = "longlive figures";
const FADE = 8_000; // ms that an arrival's time is seen
const BLOCK = 1_200; // ms until a prompt's picture is worth keeping
let you = "", hello = null, state = null, fps = 0, guide = { suggestions: [], sizes: [], help: "" };
let link = { phase: "connecting" }, arrived = null, clock = 0, figuresShown = stored(FIGURES, false) === true;

const connection = new Connection(new URLSearchParams(location.hash.slice(1)).get("token"));
const arrival = new Arrival();
const stage = new Stage((seen, rtp) => { arrival.picture(seen, rtp); if (stage.pictures === 1) show(); });
const chart = new Chart(at("chart"));
const can = (type, field) => Boolean(hello?.commands?.[type]) && (!field || hello.commands[type].includes(field));
const settings = new Settings(ask, begin);
const history = new History(restore, showAgain);
const prompts = new Prompts((prompt) => { mix.start(prompt); goOver({ prompt }); }, () => history.prompts);
const mix = new Mix((pairs) => goOver({ prompts: pairs }));
const input = new Input(connection, ask, toast);
const story = new Story(connection, (wanted) => ask({ type: "replay", story: wanted }), () => ask({ type: "stop_replay" }), toast);
const clips = new Clips(connection, toast, () => link.phase === "live");
const drawer = new Drawer((tab) => story.seen(tab === "tab-prompts"));
const advice = new Advice({
  presets: () => settings.presets,
  preset: (preset) => ask({ type: "set_optimization_preset", preset }),
  sizes: () => (can("reset", "height") ? guide.sizes : []),
  size: (height, width) => begin({ height, width }),
});

function ask(command) {
  return connection.ask(command).catch((error) => toast(error.message));
}

// Go over to a prompt, or to several with their weights.
function goOver(what) {
  const since = performance.now();
  arrival.ask(what, ask({ type: "switch_prompt", ...what }), since);
}

function showAgain({ prompt, prompts: pairs }) {
  if (pairs) goOver({ prompts: pairs });
  else prompts.submit(prompt);
}

// The video anew, with another seed or size, or as an entry of the history was.
function begin({ what = state.prompts ? { prompts: state.prompts } : { prompt: state.prompt }, seed, height, width, preset }) {
  const { effective } = state, other = Object.entries({ seed, height, width }).filter(([name, value]) => value !== undefined && value !== effective[name]);
  if (preset && preset !== effective.preset && hello.presets.some(({ name }) => name === preset)) ask({ type: "set_optimization_preset", preset });
  goOver(what);
  ask({ type: "reset", ...Object.fromEntries(other) });
}

function restore(entry) {
  const { prompt, prompts: pairs, settings: before } = entry;
  begin({ what: pairs ? { prompts: pairs } : { prompt }, ...before });
}

// --- what the server says

connection.addEventListener("stream", ({ detail }) => stage.attach(detail.stream, detail.receiver));

connection.addEventListener("state", ({ detail }) => {
  link = detail;
  const away = detail.phase !== "live";
  if (away) { stage.away(); input.away(); advice.away(); arrival.begin(); at("people").textContent = ""; }
  for (const id of ["pause", "reset", "save", "clip-save", "share", "share-watch", "send", "burnt", "look", "input", "mix-fields", "transition"]) at(id).disabled = away;
  show();
});

connection.addEventListener("message", ({ detail: message }) => {
  if (message.type === "hello") greet(message);
  if (message.type === "state") showState(message);
  if (message.type === "block") showBlock(message);
  if (message.type === "shown") arrival.shown(message);
  if (message.type === "error" && !message.asked) toast(message.error); // others are told to whoever asked
});

async function greet(message) {
  hello = message;
  you = hello.you;
  arrival.begin();
  stage.greet(hello);
  settings.greet(hello, can);
  input.greet(hello);
  clips.greet(hello);
  story.greet(can);
  mix.greet(can);
  if (hello.resumed) toast("The stream has moved to another machine, and goes on there");
  const answer = await connection.fetch("guide").catch(() => null);
  if (!answer?.ok) return;
  guide = await answer.json();
  prompts.suggest(guide.suggestions);
  settings.offerSizes(guide.sizes);
  at("guide-help").textContent = guide.help;
  if (guide.builtin) at("ideas-title").textContent = "It knows shapes. Try";
  at("prompt").maxLength = guide.limits?.prompt ?? 2000;
  at("model-name").textContent = guide.builtin ? "the built-in model" : guide.name;
}

function showState(news) {
  const before = state;
  state = news;
  at("pause").ariaPressed = String(news.paused);
  at("pause-words").textContent = news.paused ? "Go on" : "Pause";
  at("burnt").checked = news.overlay;
  at("people").textContent = news.viewers > 1 ? `${news.viewers} watching · you are ${you}` : "";
  at("real-model").hidden = !news.model?.ask;
  prompts.show(news.prompt);
  if (!before) mix.start(news.prompt);
  mix.state(news);
  settings.show(news);
  settings.showLoras(news.loras);
  story.state(news);
  input.show(news);
  arrival.state(news);
  const trouble = news.status.phase === "trouble", words = `A block failed: ${news.status.detail}. The next try is in ${news.status.retry_in} s.`;
  at("notice").hidden = !trouble;
  if (trouble && at("notice").textContent !== words) at("notice").textContent = words;
  if (news.by && news.by !== you) toast(`${news.by} ${CHANGES[news.changed] ?? "changed something"}`);
  show();
}

function showBlock(block) {
  arrival.block(block);
  if (!state) return;
  const { stats } = block, wanted = wantedFps(state.effective);
  chart.add(stats.block_ms, (1e3 * block.frames) / wanted, block.model_fps ?? block.shown_fps);
  const rows = [
    ["block", stats.block_ms.toFixed(0), "ms"], ["frame", stats.current_ms.toFixed(1), "ms"], ["frame, p99", stats.p99_ms.toFixed(1), "ms"],
    ["engine, mean", stats.fps.toFixed(1), "fps"], ["shown", block.shown_fps.toFixed(1), "fps"], ["arriving", stage.rate.toFixed(1), "fps"],
    ["prompt, engine", stats.prompt_switch_ms ? (stats.prompt_switch_ms / 1e3).toFixed(2) : "–", "s"],
    ["Enter to picture", arrived ? arrived.seconds.toFixed(2) : "–", "s"], ["frames", stats.frame_count, ""],
  ];
  at("figures").replaceChildren(...rows.map(([name, value, unit]) => make("div", {}, make("dt", { textContent: name }), make("dd", {}, `${value} `, make("small", { textContent: unit })))));
  stage.figures([
    ["shown", `${block.shown_fps.toFixed(1)} fps`], ["block", `${stats.block_ms.toFixed(0)} of ${((1e3 * block.frames) / wanted).toFixed(0)} ms`],
    ["Enter to picture", arrived ? `${arrived.seconds.toFixed(2)} s` : "–"], ["preset", state.effective.preset.replaceAll("_", " ")],
  ]);
  const takes = (stats.block_ms / 1e3).toFixed(2), lasts = (block.frames / wanted).toFixed(2);
  at("speed-words").textContent = `The model takes ${takes} s for a block of ${block.frames} frames, which are shown for ${lasts} s: ${stats.block_ms / 1e3 > block.frames / wanted ? "too long" : "fast enough"}.`;
  fps = block.shown_fps;
  advice.look(block, state, stage.rate);
  show();
}

const show = () => stage.show(link, state, fps);

// --- a prompt on its way

arrival.addEventListener("change", () => {
  const { pending } = arrival;
  clearInterval(clock);
  at("arrival").dataset.phase = pending ? "arriving" : "";
  if (!pending) return;
  const tick = () => {
    at("arrival-words").textContent = state?.paused ? "Arrives when the video goes on" : pending.own ? "Arriving" : "Another viewer's prompt is arriving";
    at("arrival-clock").textContent = `${((performance.now() - pending.since) / 1e3).toFixed(1)} s`;
  };
  tick();
  clock = setInterval(tick, 100);
});

arrival.addEventListener("arrived", ({ detail }) => {
  arrived = detail.own ? detail : arrived;
  const engine = detail.engine ? ` · the engine took ${detail.engine.toFixed(2)} s` : "";
  at("arrival").dataset.phase = "arrived";
  at("arrival-words").textContent = detail.own ? `Seen ${detail.seconds.toFixed(2)} s after Enter${engine}` : "Another viewer's prompt is seen";
  at("arrival-clock").textContent = "";
  const prompt = promptWords(detail.what);
  announce(`Seen: ${prompt}`);
  setTimeout(() => { if (!arrival.pending) at("arrival").dataset.phase = ""; }, FADE);
  const { seed, preset, height, width } = state.effective;
  if (detail.own) history.add({ prompt, prompts: detail.what.prompts, settings: { seed, preset, height, width } });
  setTimeout(() => history.picture(prompt, stage.snapshot()), BLOCK);
  story.refresh();
});

// --- what the viewer does

const pause = () => ask({ type: "set_paused", paused: !state?.paused });
const startOver = () => ask({ type: "reset" });
const full = () => (document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen?.())?.catch(() => {});
const help = () => at("help").showModal();

function figures(on = !figuresShown) {
  figuresShown = on;
  store(FIGURES, on);
  at("overlay").ariaPressed = String(on);
  at("overlay-figures").hidden = !on;
}

const save = () => clips.save();
for (const [id, action] of Object.entries({ pause, reset: startOver, save, full, overlay: () => figures(), "help-button": help })) at(id).addEventListener("click", action);
at("veil-button").addEventListener("click", () => connection.retry());
at("burnt").addEventListener("change", ({ target }) => ask({ type: "set_overlay", enabled: target.checked }));
at("full").hidden = !document.fullscreenEnabled;
addEventListener("fullscreenchange", () => { at("full").ariaPressed = String(Boolean(document.fullscreenElement)); });

takeKeys(prompts, {
  KeyK: pause, KeyO: () => figures(), KeyR: startOver, KeyS: save, KeyF: full, KeyD: () => drawer.toggle(), KeyH: help,
  preset: (i) => settings.choose(i),
}, pause);
for (const id of ["pill", "advice-why"]) at(id).addEventListener("click", () => drawer.open("tab-speed", true));
restWhenIdle(() => link.phase === "live" && stage.pictures > 0 && at("ideas").hidden && !drawer.isOpen && !prompts.isEdited && !arrival.pending && at("advice").hidden && !document.querySelector("header :focus-visible, #help[open]"));
figures(figuresShown);
show();
connection.run();
