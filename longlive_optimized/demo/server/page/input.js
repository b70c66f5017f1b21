// What the video is made from beside the prompt: a webcam or a file, sent as it plays, and pictures.

import { at, choice, picks, place, segments, slider } from "./dom.js";

const SOURCES = [["none", "None"], ["webcam", "Webcam"], ["file", "File…"]];
const USES = [["video", "Start from it"], ["control", "Follow it"]];
const FPS = 24; // most that is sent a second: a block takes as many as it has frames
const BITS_PER_PIXEL = 0.2;
const USUAL_WIDTH = 640; // pixels that a webcam is asked for, where the model's picture is smaller

export class Input {
  #connection; #ask; #toast; #hello = null; #input = null; #use = "video"; #source = "none"; #sending = false; #turn = 0; #role = "reference";

  // connection: sends track and pictures. ask: sends a command. toast: shows a line.
  constructor(connection, ask, toast) {
    this.#connection = connection;
    this.#ask = ask;
    this.#toast = toast;
    segments("sources", SOURCES, (source) => this.#choose(source));
    segments("uses", USES, (use) => this.#turnTo(use));
    slider("noise", (noise_scale) => this.#ask({ type: "set_strength", noise_scale }));
    slider("scale", (control_scale) => this.#ask({ type: "set_strength", control_scale }));
    picks("video-file", (file) => this.#start("file", file));
    picks("picture-file", (file) => this.#give(this.#role, file));
    for (const button of document.querySelectorAll("#pictures .choose")) {
      button.addEventListener("click", () => { this.#role = button.closest("li").dataset.role; at("picture-file").click(); });
    }
    for (const button of document.querySelectorAll("#pictures .remove")) {
      button.addEventListener("click", () => this.#ask({ type: "remove_picture", role: button.closest("li").dataset.role }));
    }
    this.#takeDrops();
  }

  // What there is to be offered, once it is known.
  greet(hello) {
    this.#hello = hello;
    at("uses").hidden = !hello.inputs.includes("control");
    at("pictures").hidden = !hello.pictures.length;
    if (!hello.inputs.includes(this.#use)) this.#use = "video";
  }

  show({ input, changed, by }) {
    this.#input = input;
    const mine = input.by === this.#hello.you;
    if (this.#sending && !(input.use && mine)) this.#end(); // by someone else's wish
    if (input.use) this.#use = input.use;
    this.#mark();
    const noisy = input.use === "video", steered = input.use === "control" || input.pictures.length > 0;
    at("noise-row").hidden = !noisy;
    at("scale-row").hidden = !steered;
    place("noise", input.noise_scale);
    place("scale", input.control_scale);
    at("input-note").textContent = note(input, mine);
    for (const item of document.querySelectorAll("#pictures li")) {
      if (changed === "set_picture" && by !== this.#hello.you) item.classList.remove("painted"); // theirs is not here
      item.classList.toggle("given", input.pictures.includes(item.dataset.role));
      item.querySelector(".remove").hidden = !input.pictures.includes(item.dataset.role);
    }
  }

  // The connection has ended, and all that was sent over it.
  away() { if (this.#source !== "none") this.#end(); }

  #choose(source) {
    if (source === "webcam") this.#start("webcam");
    if (source === "file") at("video-file").click();
    if (source === "none") { this.#end(); this.#ask({ type: "set_input", use: null }); }
    this.#mark();
  }

  #turnTo(use) {
    this.#use = use;
    if (this.#sending) this.#ask({ type: "set_input", use });
    this.#mark();
  }

  async #start(source, file) {
    this.#end();
    const preview = at("preview"), turn = this.#turn;
    this.#source = source;
    this.#mark();
    try {
      const stream = source === "webcam" ? await camera(this.#hello) : await played(preview, file);
      const [track] = stream.getVideoTracks();
      if (turn !== this.#turn) { track.stop(); return; } // another choice was made meanwhile
      if (source === "webcam") await shown(preview, stream);
      track.addEventListener("ended", () => { if (turn === this.#turn) this.#choose("none"); }); // it was unplugged
      await this.#connection.ask({ type: "set_input", use: this.#use });
      if (turn !== this.#turn) return;
      this.#sending = true;
      await this.#connection.send(track, this.#limits(preview));
    } catch (error) {
      if (turn !== this.#turn) return;
      this.#end();
      this.#toast(`No input: ${error.message}`);
    }
  }

  #limits({ videoWidth, videoHeight }) {
    const { width, height } = this.#hello;
    const spare = Math.min(videoWidth / width, videoHeight / height); // what covers the picture is enough
    return { maxFramerate: FPS, maxBitrate: Math.max(300_000, BITS_PER_PIXEL * FPS * width * height), scaleResolutionDownBy: Math.max(1, spare || 1) };
  }

  #end() {
    const preview = at("preview");
    for (const track of preview.srcObject?.getTracks() ?? []) track.stop();
    if (preview.src) URL.revokeObjectURL(preview.src);
    preview.srcObject = null;
    preview.removeAttribute("src");
    preview.load();
    this.#turn++;
    this.#sending = false;
    this.#source = "none";
    this.#connection.send(null).catch(() => { /* there is no connection any more */ });
    this.#mark();
  }

  #mark() {
    const others = this.#input?.use && !this.#sending;
    choice("sources", others ? null : this.#source);
    choice("uses", this.#use);
    at("preview").hidden = this.#source === "none";
  }

  async #give(role, file) {
    if (!this.#hello?.pictures.length) { this.#toast("The model here takes no pictures: the server is to be started with --control."); return; }
    const item = document.querySelector(`#pictures li[data-role="${role}"]`);
    try {
      const canvas = item.querySelector("canvas");
      await paint(canvas, file, this.#hello);
      item.classList.add("painted");
      const picture = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
      const answer = await this.#connection.fetch(`picture?${new URLSearchParams({ seat: this.#hello.seat, role })}`, { method: "POST", body: picture });
      if (!answer.ok) throw new Error((await answer.json()).error);
    } catch (error) {
      this.#toast(`No picture: ${error.message}`);
    }
  }

  // A picture that is dropped on its place, or anywhere; a video likewise.
  #takeDrops() {
    const dragged = (event) => [...(event.dataTransfer?.items ?? [])].some(({ kind }) => kind === "file");
    addEventListener("dragover", (event) => { if (dragged(event)) { event.preventDefault(); document.body.classList.add("dragging"); } });
    addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
    addEventListener("drop", (event) => {
      document.body.classList.remove("dragging");
      if (!dragged(event)) return;
      event.preventDefault();
      const file = event.dataTransfer.files[0], place = event.target.closest?.("#pictures li");
      if (!this.#hello || at("input").disabled) return;
      if (file.type.startsWith("image/")) this.#give(place?.dataset.role ?? "reference", file);
      else if (file.type.startsWith("video/")) this.#start("file", file);
      else this.#toast("Only a picture or a video can be dropped here.");
    });
  }
}

function note(input, mine) {
  if (!input.use) return "";
  const what = `${mine ? "Your" : `${input.by}'s`} video is ${input.use === "video" ? "what the picture starts from" : "followed"}`;
  return input.receiving ? `${what}.` : `${what}, once it arrives.`;
}

function camera({ width, height }) {
  if (!navigator.mediaDevices) throw new Error("browsers give a webcam only to pages over https, and on localhost");
  const large = Math.max(1, USUAL_WIDTH / width), size = { width: { ideal: width * large }, height: { ideal: height * large } };
  return navigator.mediaDevices.getUserMedia({ video: { ...size, frameRate: { ideal: FPS } } });
}

async function shown(preview, stream) {
  preview.srcObject = stream;
  await preview.play().catch(() => {});
}

async function played(preview, file) {
  const capture = preview.captureStream ?? preview.mozCaptureStream;
  if (!capture) throw new Error("this browser cannot send a file; a webcam it can");
  preview.src = URL.createObjectURL(file);
  preview.loop = true;
  try { await preview.play(); } catch { throw new Error(`${file.name} is no video that this browser plays`); }
  return capture.call(preview);
}

// The part of a picture file that has the video's proportions, onto a canvas of its size.
async function paint(canvas, file, { width, height }) {
  const picture = await createImageBitmap(file).catch(() => { throw new Error(`${file.name} is no picture that this browser shows`); });
  const scale = Math.max(width / picture.width, height / picture.height);
  const [w, h] = [picture.width * scale, picture.height * scale];
  Object.assign(canvas, { width, height });
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, width, height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(picture, (width - w) / 2, (height - h) / 2, w, h);
}
