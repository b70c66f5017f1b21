// A session's timeline: prompts and when they came; saved as a story file, and played again from one.

import { at, download, make, picks, stamp } from "./dom.js";
import { promptWords } from "./words.js";

const BLOCK_SECONDS = 0.75;
const USUAL_SEED = 42; // a story says what is not usual
const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
const timeOf = ({ block, seconds }) => seconds ?? block * BLOCK_SECONDS;

export class Story {
  #connection; #replay; #toast; #busy = false; #seen = false;

  // replay: sends a story to be played. stop: ends that.
  constructor(connection, replay, stop, toast) {
    this.#connection = connection;
    this.#replay = replay;
    this.#toast = toast;
    at("replaying-stop").addEventListener("click", stop);
    at("story-save").addEventListener("click", () => this.#with((story) => this.#save(story)));
    at("story-again").addEventListener("click", () => this.#with((story) => this.#replay(story)));
    at("story-load").addEventListener("click", () => at("story-file").click());
    picks("story-file", (file) => this.#play(file));
  }

  greet(can) {
    at("story-section").hidden = !can("replay");
    at("replaying-stop").hidden = !can("stop_replay");
  }

  // Whether the timeline is looked at.
  seen(seen) {
    this.#seen = seen;
    if (seen) this.refresh();
  }

  refresh() { if (this.#seen && !at("story-section").hidden) this.#with((story) => this.#show(story), true); }

  state({ replaying }) {
    at("replaying").hidden = !replaying;
    if (!replaying) return;
    at("replaying-progress").max = replaying.blocks;
    at("replaying-progress").value = replaying.block;
    at("replaying-words").textContent = `Playing a story: ${clock(replaying.block * BLOCK_SECONDS)} of ${clock(replaying.blocks * BLOCK_SECONDS)}`;
  }

  async #with(act, quiet = false) {
    if (this.#busy) return;
    this.#busy = true;
    try {
      const answer = await this.#connection.fetch("story");
      const content = await answer.json();
      if (!answer.ok) throw new Error(content.error);
      act(content);
    } catch (error) {
      if (!quiet) this.#toast(`No story: ${error.message}`);
    }
    this.#busy = false;
  }

  #save(story) {
    download(new Blob([JSON.stringify(story, null, 2)], { type: "application/json" }), `longlive-story-${stamp()}.json`);
    const loras = Object.keys(story.loras ?? {});
    this.#toast(`The story is saved${loras.length ? `: to make it again, put it beside ${loras.join(", ")}` : ""}`);
  }

  async #play(file) {
    let story;
    try { story = JSON.parse(await file.text()); } catch { this.#toast(`${file.name} is no story file`); return; }
    this.#replay(story);
  }

  #show(story) {
    const end = story.blocks * BLOCK_SECONDS, prompts = story.prompts;
    at("timeline").replaceChildren(...prompts.map((prompt, i) => {
      const from = timeOf(prompt), until = i + 1 < prompts.length ? timeOf(prompts[i + 1]) : Math.max(end, from);
      const item = make("li", {}, make("span", { className: "when", textContent: clock(from) }), make("span", { textContent: promptWords(prompt) }));
      item.style.setProperty("--from", end ? from / end : 0);
      item.style.setProperty("--long", end ? (until - from) / end : 1);
      return item;
    }));
    at("timeline-length").textContent = `${clock(end)} so far, seed ${story.seed ?? USUAL_SEED}`;
  }
}
