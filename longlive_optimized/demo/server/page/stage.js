// The picture: shown as large as the window lets it be, watched frame by frame.

import { at, make } from "./dom.js";
import { pillWords, veilWords } from "./words.js";
import { announce } from "./say.js";

const SMALL = 320 * 320; // pixels of a picture that is enlarged crisply: its own are worth seeing
const RATE_WINDOW = 3_000; // ms that the arriving rate is taken over

export class Stage {
  #video = at("video"); #times = []; #receiver = null; #onPicture; #mood = ""; #size = null;
  pictures = 0;

  // onPicture: called with the time at which a picture is seen, and its RTP time stamp if the browser tells it.
  constructor(onPicture) {
    this.#onPicture = onPicture;
    this.#video.addEventListener("resize", () => this.#fit(this.#video.videoWidth, this.#video.videoHeight));
  }

  attach(stream, receiver) {
    const video = this.#video;
    this.#receiver = receiver;
    this.pictures = 0;
    this.#times = [];
    video.srcObject = stream;
    const look = (now, { rtpTimestamp, expectedDisplayTime }) => {
      if (video.srcObject !== stream) return;
      this.pictures++;
      this.#times.push(now);
      while (this.#times[0] < now - RATE_WINDOW) this.#times.shift();
      this.#onPicture(Math.max(now, expectedDisplayTime ?? now), rtpTimestamp ?? this.#lastStamp());
      video.requestVideoFrameCallback(look);
    };
    if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(look);
    else video.addEventListener("timeupdate", () => { this.pictures ||= 1; this.#onPicture(performance.now()); });
    video.play().catch(() => { /* it is muted, so this is a page that went away */ });
  }

  // Pictures a second that come here.
  get rate() {
    const recent = this.#times.filter((time) => time > performance.now() - RATE_WINDOW);
    return recent.length < 2 ? 0 : ((recent.length - 1) * 1e3) / (recent.at(-1) - recent[0]);
  }

  // The server's size, before the first picture tells its own.
  greet({ width, height }) { this.#fit(width, height); }

  away() { this.pictures = 0; }

  show(link, state, fps) {
    const veil = veilWords(link, state, this.pictures), pill = pillWords(link, state, this.pictures, fps);
    at("veil").classList.toggle("gone", !veil);
    if (veil) {
      at("veil-title").textContent = veil.title;
      at("veil-text").textContent = veil.text ?? "";
      at("veil-progress").hidden = veil.progress === undefined;
      if (veil.progress >= 0) at("veil-progress").value = veil.progress;
      else at("veil-progress").removeAttribute("value");
      at("veil-button").hidden = !veil.again;
    }
    at("pill").replaceChildren(pill.text, make("span", { textContent: pill.figure ?? "" }));
    at("pill").dataset.mood = pill.mood;
    if (veil) document.body.classList.remove("idle");
    const mood = veil?.title ?? pill.text;
    if (mood !== this.#mood) announce(this.#mood = mood);
  }

  // Figures upon the picture: [name, value] pairs.
  figures(rows) {
    at("overlay-figures").replaceChildren(...rows.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })]));
  }

  // A small copy of what is seen now, as a data URL; null where there is nothing.
  snapshot(width = 192) {
    const video = this.#video;
    if (!video.videoWidth) return null;
    const canvas = make("canvas", { width, height: Math.round((width * video.videoHeight) / video.videoWidth) });
    const pen = canvas.getContext("2d");
    pen.imageSmoothingEnabled = video.videoWidth > width;
    pen.drawImage(video, 0, 0, canvas.width, canvas.height);
    return canvas.toDataURL("image/webp", 0.7);
  }

  #fit(width, height) {
    if (!width || !height || this.#size === `${width}x${height}`) return;
    this.#size = `${width}x${height}`;
    at("screen").style.setProperty("--ratio", width / height);
    this.#video.classList.toggle("crisp", width * height <= SMALL);
  }

  #lastStamp() {
    return this.#receiver?.getSynchronizationSources?.()[0]?.rtpTimestamp;
  }
}
