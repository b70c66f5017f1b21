// The video and its caption, for other screens; with ?clean=1 nothing but the video, for OBS's browser sources.

import { Connection } from "./connection.js";
import { veilWords } from "./words.js";

const SMALL = 320 * 320; // pixels of a picture that is enlarged crisply
const video = document.getElementById("video");
const connection = new Connection(new URLSearchParams(location.hash.slice(1)).get("token"));
let link = { phase: "connecting" }, state = null, playing = false;

document.body.classList.toggle("clean", new URLSearchParams(location.search).get("clean") === "1");

function show() {
  const words = veilWords(link, state, playing);
  document.getElementById("words").textContent = words ? `${words.title}. ${words.text ?? ""}` : "";
  document.getElementById("caption").textContent = words ? "" : state?.prompt ?? "";
}

connection.addEventListener("stream", ({ detail }) => {
  video.srcObject = detail.stream;
  video.play().catch(() => { /* it is muted, so this is a page that went away */ });
});
connection.addEventListener("state", ({ detail }) => { link = detail; playing &&= link.phase === "live"; show(); });
connection.addEventListener("message", ({ detail }) => { if (detail.type === "state") { state = detail; show(); } });
video.addEventListener("playing", () => { playing = true; show(); });
video.addEventListener("resize", () => video.classList.toggle("crisp", video.videoWidth * video.videoHeight <= SMALL));
connection.run();
