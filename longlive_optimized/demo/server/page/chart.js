// The last blocks: bars for their milliseconds, a line for the frames shown a second, dashes for what the target asks.

const KEPT = 80;
const MARGIN = { left: 40, right: 34, top: 10, bottom: 6 };

export class Chart {
  #canvas; #colours = {}; #blocks = [];

  constructor(canvas) {
    this.#canvas = canvas;
    for (const query of ["(prefers-color-scheme: light)", "(forced-colors: active)"]) matchMedia(query).addEventListener("change", () => this.#draw());
    new ResizeObserver(() => this.#draw()).observe(canvas);
  }

  get blocks() { return this.#blocks; }

  // ms: of the block; budget: ms that it may take at the target; fps: shown a second.
  add(ms, budget, fps) {
    this.#blocks.push({ ms, budget, fps });
    this.#blocks = this.#blocks.slice(-KEPT);
    this.#canvas.ariaLabel = `Last block ${ms.toFixed(0)} ms of ${budget.toFixed(0)} ms, ${fps.toFixed(1)} frames a second shown`;
    this.#draw();
  }

  #draw() {
    const canvas = this.#canvas, ratio = devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width) return; // it is not seen
    const style = getComputedStyle(document.documentElement);
    this.#colours = Object.fromEntries(["good", "warn", "blue", "soft", "line", "text"].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = `${Math.round(parseFloat(style.fontSize) * 0.75)}px system-ui, sans-serif`;
    pen.textBaseline = "middle";
    const room = parseFloat(style.fontSize) / 15; // what figures take, in a larger script
    const box = { left: MARGIN.left * room, right: width - MARGIN.right * room, top: MARGIN.top, bottom: height - MARGIN.bottom };
    const blocks = this.#blocks;
    const mostMs = ceiling(Math.max(50, ...blocks.map((b) => Math.max(b.ms, b.budget) * 1.08)));
    const mostFps = ceiling(Math.max(10, ...blocks.map((b) => b.fps * 1.15)));
    const y = (value, most) => box.bottom - (value / most) * (box.bottom - box.top);
    this.#grid(pen, box, y, mostMs, mostFps);
    const step = (box.right - box.left) / KEPT;
    const x = (i) => box.right - (blocks.length - i) * step;
    blocks.forEach((block, i) => {
      pen.fillStyle = block.ms > block.budget ? this.#colours.warn : this.#colours.good;
      const top = y(block.ms, mostMs);
      pen.fillRect(x(i) + step * 0.15, top, step * 0.7, box.bottom - top);
    });
    this.#line(pen, blocks.map((b, i) => [x(i), x(i) + step, y(b.budget, mostMs)]), this.#colours.text, [4, 4], 1);
    this.#line(pen, blocks.map((b, i) => [x(i) + step / 2, x(i) + step / 2, y(b.fps, mostFps)]), this.#colours.blue, [], 2);
  }

  #grid(pen, box, y, mostMs, mostFps) {
    pen.fillStyle = this.#colours.soft;
    pen.strokeStyle = this.#colours.line;
    pen.lineWidth = 1;
    for (const share of [0, 0.5, 1]) {
      const at = Math.round(y(share, 1)) + 0.5;
      pen.beginPath();
      pen.moveTo(box.left, at);
      pen.lineTo(box.right, at);
      pen.stroke();
      pen.textAlign = "right";
      pen.fillText(mostMs * share, box.left - 6, at);
      pen.textAlign = "left";
      pen.fillText(mostFps * share, box.right + 6, at);
    }
  }

  #line(pen, points, colour, dashes, width) {
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.setLineDash(dashes);
    pen.beginPath();
    for (const [from, to, at] of points) {
      pen.lineTo(from, at);
      pen.lineTo(to, at);
    }
    pen.stroke();
    pen.setLineDash([]);
  }
}

// The next number that makes a round axis.
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((m) => m * power).find((round) => round >= value);
}
