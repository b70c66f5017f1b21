// Saving the last seconds, and links to the stream.

import { at, choice, download, make, segments, stamp } from "./dom.js";

const LENGTHS = [5, 10, 30, 60];
const SCALES = [1, 2, 4, 8];

export class Clips {
  #connection; #toast; #chosen = { seconds: 0, format: "mp4", scale: 1 }; #most = 0; #all = false; #link = ""; #live = () => false;

  // live: whether there is a stream to save from.
  constructor(connection, toast, live) {
    this.#connection = connection;
    this.#toast = toast;
    this.#live = live;
    segments("clip-scale", SCALES.map((scale) => [scale, `${scale} ×`]), (scale) => this.#choose({ scale: Number(scale) }));
    at("clip-save").addEventListener("click", () => this.save());
    at("share").addEventListener("click", () => this.#copy(this.#address(), "The link to this stream"));
    at("share-watch").addEventListener("click", () => this.#copy(this.#address("watch?clean=1"), "The link for OBS and other screens"));
  }

  greet({ link, record_seconds: most, height, formats }) {
    this.#link = link;
    this.#most = most;
    this.#all = Boolean(formats);
    segments("clip-format", (formats ?? ["mp4"]).map((format) => [format, format]), (format) => this.#choose({ format }));
    const lengths = [...LENGTHS.filter((seconds) => seconds < most), most];
    segments("clip-seconds", lengths.map((seconds) => [seconds, `${seconds} s`]), (seconds) => this.#choose({ seconds: Number(seconds) }));
    at("clip-format-row").hidden = at("clip-scale-row").hidden = !this.#all;
    at("save").hidden = at("clip-section").hidden = !most;
    this.#choose({ seconds: most, scale: height < 128 ? 4 : height < 256 ? 2 : 1 });
  }

  async save() {
    if (!this.#most || !this.#live()) return;
    const { seconds, format, scale } = this.#chosen;
    at("save").disabled = at("clip-save").disabled = true;
    this.#toast("The clip is being made");
    try {
      const path = this.#all ? `recording?${new URLSearchParams({ seconds, format, scale })}` : `recording.mp4?seconds=${seconds}`;
      const answer = await this.#connection.fetch(path);
      if (!answer.ok) throw new Error((await answer.json()).error);
      download(await answer.blob(), `longlive-${stamp()}.${this.#all ? format : "mp4"}`);
      this.#toast("The clip is saved");
    } catch (error) {
      this.#toast(`No clip: ${error.message}`);
    }
    at("save").disabled = at("clip-save").disabled = !this.#live();
  }

  #choose(change) {
    Object.assign(this.#chosen, change);
    const { seconds, format, scale } = this.#chosen;
    choice("clip-seconds", seconds);
    choice("clip-format", format);
    choice("clip-scale", scale);
    at("save").title = `Save the last ${seconds} s (Alt+S)`;
  }

  // The stream's own address, with a token for it alone.
  #address(page = "") {
    const root = location.pathname.replace(/s\/[^/]+\/$/, "");
    const [path, token] = (root + this.#link).split("#");
    return new URL(path + page + (token ? `#${token}` : ""), location).href;
  }

  async #copy(address, what) {
    try {
      await navigator.clipboard.writeText(address);
      this.#toast(`${what} is copied`);
    } catch { // not over plain http
      const field = make("input", { value: address, readOnly: true, ariaLabel: what });
      at("share-address").replaceChildren(field);
      field.select();
      this.#toast(`${what} is below, to be copied`);
    }
  }
}
