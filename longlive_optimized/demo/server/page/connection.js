// A viewer's connection: made, kept, and made again. Says how it stands by events:
//   "state"   detail {phase, ...}: connecting, loading, busy, refused, gone, lost or live
//   "stream"  detail {stream, receiver}: the MediaStream, and the RTCRtpReceiver that it comes from
//   "message" detail: what the server said

const GIVE_UP = 15_000; // ms for a connection to come about
const PATIENCE = 5_000; // ms that a disturbed one may take to recover
const SLOWEST = 5_000; // ms between attempts
const IN_QUEUE = 2_000; // ms between attempts of one who waits for a seat
const SILENCE = 2_000; // ms without a word after which the server is asked whether it still has the stream
const NUMBERS = ["height", "width", "seed"];
const WISHES = ["prompt", "preset", ...NUMBERS];

export class Connection extends EventTarget {
  #token; #peer = null; #video = null; #channel = null; #wake = null; #ids = 0; #waiting = new Map();

  constructor(token) {
    super();
    this.#token = token;
    addEventListener("pagehide", () => this.#peer?.close());
    addEventListener("pageshow", (event) => event.persisted && this.retry());
  }

  async run() {
    for (let failures = 0; ; ) {
      const before = performance.now();
      const state = await this.#once().catch((error) => ({ phase: "gone", detail: String(error.message ?? error) }));
      if (performance.now() - before > GIVE_UP) failures = 0;
      const delay = state.phase === "loading" ? 500 : state.queue ? IN_QUEUE : Math.min((state.orphaned ? 100 : 1_000) * 2 ** failures++, SLOWEST);
      this.#say({ ...state, delay });
      await new Promise((resolve) => { this.#wake = resolve; setTimeout(resolve, delay); });
    }
  }

  // Try again now, and not when the delay is over.
  retry() { this.#wake?.(); }

  // Send a command; its answer, or an Error with what the server says against it.
  ask(command) {
    if (this.#channel?.readyState !== "open") return Promise.reject(new Error("not connected"));
    const id = ++this.#ids;
    this.#channel.send(JSON.stringify({ ...command, id }));
    return new Promise((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
  }

  // Send a track's video to the server, or none; limits: of RTCRtpEncodingParameters.
  async send(track, limits = {}) {
    const sender = this.#video?.sender;
    if (!sender || sender.transport?.state === "closed") return;
    await sender.replaceTrack(track);
    const parameters = sender.getParameters();
    if (!track || !parameters.encodings?.length) return;
    Object.assign(parameters.encodings[0], limits);
    await sender.setParameters(parameters);
  }

  fetch(path, options = {}) {
    const headers = this.#token ? { Authorization: `Bearer ${this.#token}` } : {};
    return fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  }

  // One attempt, up to the end of the connection that it makes. What to say then.
  async #once() {
    const answer = await this.fetch("status");
    if (!answer.ok) return { phase: "refused", detail: (await answer.json()).error };
    const status = await answer.json();
    if (["loading", "warming up", "failed"].includes(status.phase)) return { ...status, phase: "loading", stage: status.phase };
    this.#say({ phase: "connecting" });
    const servers = status.ice_servers.map(({ urls, username, credential }) => (username ? { urls, username, credential } : { urls }));
    for (let before = null; ; ) {
      const end = await this.#connect(servers, before);
      if (!end.moved) return end;
      before = end.moved;
    }
  }

  // One connection, up to its end; before: the one that shows the video until this one does.
  async #connect(servers, before) {
    const peer = (this.#peer = new RTCPeerConnection({ iceServers: servers }));
    let moved = false;
    try {
      const end = this.#follow(peer, before);
      const refusal = await this.#offer(peer);
      const ending = refusal ?? (await end);
      moved = Boolean(ending.moved);
      return ending;
    } finally {
      before?.close();
      if (!moved) peer.close();
      this.#channel = this.#video = null;
      for (const { reject } of this.#waiting.values()) reject(new Error("the connection was lost"));
      this.#waiting.clear();
    }
  }

  async #offer(peer) {
    await peer.setLocalDescription(await peer.createOffer());
    await new Promise((resolve) => {
      const look = () => peer.iceGatheringState === "complete" && resolve();
      peer.addEventListener("icegatheringstatechange", look);
      look();
      setTimeout(resolve, 2_000);
    });
    const { type, sdp } = peer.localDescription;
    const answer = await this.fetch("offer", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ type, sdp, stream: wishes() }),
    });
    const content = await answer.json();
    if (!answer.ok) return { phase: ["busy", "full"].includes(content.code) ? "busy" : "refused", detail: content.error, queue: content.queue };
    await peer.setRemoteDescription(content);
    return null;
  }

  // Resolves with what to say when the connection has ended.
  #follow(peer, before) {
    this.#video = peer.addTransceiver("video", { direction: "sendrecv" }); // nothing is sent before there is a track
    peer.addEventListener("track", async (event) => {
      const stream = event.streams[0] ?? new MediaStream([event.track]);
      if (before) await firstPicture(stream);
      this.#tell("stream", { stream, receiver: event.receiver });
      before?.close();
    });
    const channel = (this.#channel = peer.createDataChannel("control"));
    return new Promise((resolve) => {
      let live = false;
      const lost = () => resolve(live ? { phase: "lost" } : { phase: "blocked" });
      let timer = setTimeout(() => live || lost(), GIVE_UP), heard = performance.now();
      const look = setInterval(async () => {
        if (peer.connectionState === "closed") clearInterval(look);
        if (!live || performance.now() - heard < SILENCE) return;
        heard = performance.now();
        if (await this.#isOrphaned()) resolve({ phase: "lost", orphaned: true });
      }, 500);
      channel.addEventListener("open", () => { live = true; this.#say({ phase: "live" }); });
      channel.addEventListener("close", lost);
      channel.addEventListener("message", ({ data }) => {
        const message = JSON.parse(data);
        heard = performance.now();
        if (message.type === "moved") resolve({ moved: peer });
        if (message.type === "bye") resolve(message.reason ? { phase: "refused", detail: message.reason } : { phase: "gone" });
        this.#receive(message);
      });
      peer.addEventListener("connectionstatechange", () => {
        const state = peer.connectionState;
        if (state === "failed" || state === "closed") lost();
        if (state === "connected") clearTimeout(timer);
        if (state === "disconnected") timer = setTimeout(lost, PATIENCE);
      });
    });
  }

  // Whether the server answers, and has this stream no more: its machine is gone, and it goes on at another one.
  async #isOrphaned() {
    try {
      const answer = await this.fetch("status");
      return answer.ok && (await answer.json()).stream === null;
    } catch {
      return false;
    }
  }

  #receive(message) {
    const asked = this.#waiting.get(message.id);
    this.#waiting.delete(message.id);
    if (asked && message.type === "error") asked.reject(new Error(message.error));
    else asked?.resolve(message);
    this.#tell("message", { ...message, asked: Boolean(asked) });
  }

  #say(state) { this.#tell("state", state); }

  #tell(name, detail) { this.dispatchEvent(new CustomEvent(name, { detail })); }
}

// Resolves when a stream's first picture is there, or should have been.
function firstPicture(stream) {
  const video = Object.assign(document.createElement("video"), { muted: true, srcObject: stream });
  video.play().catch(() => { /* then it is shown late */ });
  return new Promise((resolve) => {
    video.requestVideoFrameCallback?.(resolve);
    setTimeout(resolve, PATIENCE);
  });
}

// What the address asks of a stream that is opened by it: ?preset=ultra&height=320&width=576&seed=7&prompt=...
function wishes() {
  const asked = [...new URLSearchParams(location.search)].filter(([name]) => WISHES.includes(name));
  return Object.fromEntries(asked.map(([name, text]) => [name, NUMBERS.includes(name) ? Number(text) : text]));
}
