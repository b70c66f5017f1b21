// What is said in passing: a line that fades, and words for those who listen, sparingly.

import { at } from "./dom.js";

const SHOWN = 4_000; // ms
const QUIET = 1_500; // ms between two announcements; of those that come quicker the last one is said

let fading, waiting, last = 0, said = "";

export function toast(text) {
  at("toast").textContent = text;
  at("toast").classList.add("shown");
  clearTimeout(fading);
  fading = setTimeout(() => at("toast").classList.remove("shown"), SHOWN);
}

// For screen readers alone: changes, never counters; nothing twice in a row.
export function announce(text) {
  clearTimeout(waiting);
  const wait = Math.max(0, last + QUIET - performance.now());
  waiting = setTimeout(() => {
    if (text === said) return;
    last = performance.now();
    at("announce").textContent = said = text;
  }, wait);
}
