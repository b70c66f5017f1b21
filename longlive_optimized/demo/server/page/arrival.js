// When a prompt is seen: from Enter to its first picture on this screen.
//
// The server numbers prompts, and says ("shown") with which RTP time stamp the first picture of one goes out: the block
// that was made with it knows. The browser tells the RTP time stamp of each picture as it puts it on the screen
// (requestVideoFrameCallback). The first one that is not older is the prompt's. Where a browser tells no time stamps
// with its pictures, the receiver's own last one counts, and without that the next picture after "shown".

const KEPT = 240; // pictures that are remembered, since they may come before the server's word
const WRAP = 2 ** 32;

// Whether one RTP time stamp is at or after another: they wrap around.
export const notBefore = (one, other) => (one - other + WRAP) % WRAP < WRAP / 2;

export class Arrival extends EventTarget {
  #seen = []; #pending = null; #engine = new Map(); #shown = 0; #switched = 0;

  // What is on its way: {what, since, own, number}, or null; what: {prompt} or {prompts}, as it was asked for.
  get pending() { return this.#pending; }

  // A new connection: nothing of the one before counts.
  begin() {
    this.#seen = [];
    this.#engine.clear();
    this.#shown = 0;
    this.#change(null);
  }

  // This viewer pressed Enter, at that time; answer: what the server will say.
  async ask(what, answer, since = performance.now()) {
    const pending = { what, since, own: true, number: Infinity };
    this.#change(pending);
    const said = await answer;
    if (!said) { if (this.#pending === pending) this.#change(null); return; } // it was refused
    pending.number = said.number ?? Infinity;
    if (said.number === undefined || said.number <= this.#shown) this.#settle(performance.now()); // nothing changes
  }

  // The server's state: others ask for prompts, too.
  state({ asked, shown, prompt, prompts }) {
    if (asked === undefined || asked <= shown || asked <= this.#shown) return;
    if (this.#pending && this.#pending.number >= asked) return; // or it has no number yet, which comes at once
    this.#change({ what: prompts ? { prompts } : { prompt }, since: performance.now(), own: false, number: asked });
  }

  // A block was made: how long the engine took from its own asking to the first new frame.
  block({ prompt, stats }) {
    if (prompt > 0 && !this.#engine.has(prompt)) this.#engine.set(prompt, stats.prompt_switch_ms === this.#switched ? null : stats.prompt_switch_ms);
    this.#switched = stats.prompt_switch_ms; // it stays until the next switch: the same words again are none
  }

  // The first picture of a prompt is sent, with that RTP time stamp.
  shown({ number, rtp }) {
    this.#shown = number;
    const pending = this.#pending;
    if (!pending || number < pending.number) return;
    pending.rtp = rtp ?? null;
    pending.sent = number;
    this.#look();
  }

  // A picture is on the screen at that time.
  picture(seen, rtp) {
    this.#seen.push({ seen, rtp });
    if (this.#seen.length > KEPT) this.#seen.shift();
    this.#look(this.#seen.at(-1));
  }

  #look(newest) {
    const pending = this.#pending;
    if (pending?.rtp === undefined) return;
    const known = pending.rtp !== null && this.#seen.some(({ rtp }) => rtp !== undefined);
    const first = known ? this.#seen.find(({ seen, rtp }) => seen >= pending.since && rtp !== undefined && notBefore(rtp, pending.rtp)) : newest;
    if (first) this.#settle(first.seen, known);
  }

  #settle(seen, exact = true) {
    const { what, since, own, sent } = this.#pending;
    const engine = this.#engine.get(sent);
    this.#change(null);
    const detail = { what, own, exact, seconds: (seen - since) / 1e3, engine: engine ? engine / 1e3 : null };
    this.dispatchEvent(new CustomEvent("arrived", { detail }));
  }

  #change(pending) {
    this.#pending = pending;
    this.dispatchEvent(new Event("change"));
  }
}
