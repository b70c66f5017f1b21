// The keyboard: what is typed anywhere goes to the prompt; commands are Alt and a letter.

import { at } from "./dom.js";

const TEXT = "textarea, select, input:not([type=range], [type=checkbox], [type=file])";

// prompts: the caption line. commands: functions by the code of a key ("KeyK"). pause: for the space bar.
export function takeKeys(prompts, commands, pause) {
  addEventListener("keydown", (event) => {
    const { target, key, code, altKey, ctrlKey, metaKey, isComposing } = event;
    if (isComposing || at("help").open) return;
    if (altKey && !ctrlKey && !metaKey) {
      const digit = /^Digit([1-9])$/.exec(code);
      const command = digit ? () => commands.preset(Number(digit[1]) - 1) : commands[code];
      if (command) { event.preventDefault(); command(); }
      return;
    }
    if (target.closest?.(TEXT) || target.isContentEditable) return;
    if ((ctrlKey || metaKey) && code === "KeyV") { prompts.take(); return; } // the browser pastes into it
    if (ctrlKey || metaKey || altKey) return;
    if (key === " ") {
      if (target === document.body) { event.preventDefault(); pause(); }
    } else if (key === "Enter") {
      if (target === document.body) prompts.take();
    } else if ([...key].length === 1) {
      prompts.take(); // the browser writes the letter there
    }
  });
}

// While nothing is touched for a while, all but the picture and the caption goes.
export function restWhenIdle(mayRest, after = 3_500) {
  let timer;
  const wake = () => {
    document.body.classList.remove("idle");
    clearTimeout(timer);
    timer = setTimeout(() => { if (mayRest()) document.body.classList.add("idle"); else wake(); }, after);
  };
  for (const name of ["pointermove", "pointerdown", "keydown", "focusin", "resize"]) addEventListener(name, wake, { passive: true });
  wake();
}
