// The drawer beside the stage (below it on a phone), and its tabs.

import { at, store, stored } from "./dom.js";

const STORE = "longlive drawer";

export class Drawer {
  #tabs = [...document.querySelectorAll("#tabs button")];
  #changed;

  // changed: called with the tab that is seen, or null.
  constructor(changed = () => {}) {
    this.#changed = changed;
    at("drawer-button").addEventListener("click", () => this.toggle());
    at("drawer-close").addEventListener("click", () => this.close());
    at("drawer").addEventListener("keydown", (event) => { if (event.key === "Escape" && !event.defaultPrevented) this.close(); });
    for (const tab of this.#tabs) tab.addEventListener("click", () => this.#select(tab));
    at("tabs").addEventListener("keydown", (event) => this.#key(event));
    const { open, tab } = stored(STORE, {});
    this.#select(this.#tabs.find(({ id }) => id === tab) ?? this.#tabs[0]);
    if (open) this.open();
  }

  get isOpen() { return !at("drawer").hidden; }

  toggle() { if (this.isOpen) this.close(); else this.open(undefined, true); }

  // tab: the id of the one to show; focus: go there.
  open(tab, focus = false) {
    at("drawer").hidden = false;
    this.#select(this.#tabs.find(({ id }) => id === tab) ?? this.#selected, focus);
    this.#mark();
  }

  close() {
    const inside = at("drawer").contains(document.activeElement);
    at("drawer").hidden = true;
    this.#mark();
    if (inside) at("drawer-button").focus();
  }

  get #selected() { return this.#tabs.find((tab) => tab.ariaSelected === "true"); }

  #select(tab, focus = false) {
    for (const one of this.#tabs) {
      one.ariaSelected = String(one === tab);
      one.tabIndex = one === tab ? 0 : -1;
      at(one.getAttribute("aria-controls")).hidden = one !== tab;
    }
    if (focus) tab.focus();
    this.#mark();
  }

  #mark() {
    document.body.classList.toggle("drawer-open", this.isOpen);
    at("drawer-button").ariaExpanded = String(this.isOpen);
    store(STORE, { open: this.isOpen, tab: this.#selected?.id });
    this.#changed(this.isOpen ? this.#selected?.id : null);
  }

  #key(event) {
    const last = this.#tabs.length - 1, here = this.#tabs.indexOf(event.target);
    const next = { ArrowRight: here === last ? 0 : here + 1, ArrowLeft: here === 0 ? last : here - 1, Home: 0, End: last }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    this.#select(this.#tabs[next], true);
  }
}
