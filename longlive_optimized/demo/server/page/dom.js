// Small helpers: elements, rows of choices, storage.

export const at = (id) => document.getElementById(id);

// An element with fields of its own and children, which may be texts.
export function make(tag, fields = {}, ...children) {
  const element = Object.assign(document.createElement(tag), fields);
  element.append(...children);
  return element;
}

// A row of buttons of which one is chosen; arrow keys go from one to the next. values: [value, label] pairs.
export function segments(id, values, choose) {
  const row = at(id);
  row.replaceChildren(...values.map(([value, label]) => {
    const button = make("button", { type: "button", value, textContent: label, role: "radio", ariaChecked: "false", tabIndex: -1 });
    button.addEventListener("click", () => choose(value));
    return button;
  }));
  row.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const next = step && row.children[[...row.children].indexOf(event.target) + step];
    if (!next || next.disabled) return;
    event.preventDefault();
    next.focus();
    next.click();
  };
  choice(id, null);
}

// Mark what is chosen of such a row; Tab comes to it alone.
export function choice(id, chosen) {
  const buttons = [...at(id).children];
  for (const button of buttons) {
    button.ariaChecked = String(button.value === String(chosen));
    button.tabIndex = button.ariaChecked === "true" ? 0 : -1;
  }
  if (buttons.length && buttons.every((button) => button.tabIndex)) buttons[0].tabIndex = 0;
}

// Storage may be forbidden, full, or hold anything.
export function stored(key, usual) {
  try { return JSON.parse(localStorage.getItem(key)) ?? usual; } catch { return usual; }
}

export function store(key, value) {
  try { localStorage.setItem(key, JSON.stringify(value)); return true; } catch { return false; }
}

// Give the browser a file to save.
export function download(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

export const stamp = () => new Date().toISOString().slice(0, 19).replaceAll(":", "-");

// A file chooser, which forgets what was chosen: the same file may be chosen again.
export function picks(id, take) {
  at(id).addEventListener("change", ({ target }) => {
    if (target.files[0]) take(target.files[0]);
    target.value = "";
  });
}

const STEADY = 100; // ms between two positions of a slider that are sent
const REST = 1_000; // ms since its last move for which a slider stays where it was moved to
const moving = new Map(); // sliders that are being moved: what puts each where the server says, once it rests

// Sends where a slider stands, a few times a second, the last position always.
export function slider(id, send, words = (value) => value.toFixed(2)) {
  let timer = null, rest = null, wanted;
  at(id).addEventListener("input", ({ target }) => {
    wanted = Number(target.value); // what the server says meanwhile may move it
    at(`${id}-value`).textContent = words(wanted);
    timer ??= setTimeout(() => { timer = null; send(wanted); }, STEADY);
    moving.set(id, moving.get(id));
    clearTimeout(rest);
    rest = setTimeout(() => { const put = moving.get(id); moving.delete(id); put?.(); }, REST);
  });
}

export function place(id, value, words = (number) => number.toFixed(2)) {
  const put = () => {
    if (!at(id)) return;
    at(id).value = value;
    at(`${id}-value`).textContent = words(value);
  };
  if (moving.has(id)) moving.set(id, put);
  else put();
}
