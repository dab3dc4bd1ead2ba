/** The list of turns, newest first, which lives as long as the page. */

import { Recording, pauseRecording } from "./recording.js";

const STATES = { asking: "listening …", waiting: "thinking …", answering: "", done: "" };

export class History {
  /** @param {HTMLElement} list an `ol`, filled from the templates `turn` and `recording` */
  constructor(list) {
    this.list = list;
    this.items = new Map(); // by number of the turn
  }

  /** Show a turn as it is now. */
  show(turn) {
    const item = this.items.get(turn.number) ?? this.#add(turn);
    const set = (selector, text) => {
      const element = item.querySelector(selector);
      if (element.textContent !== text) element.textContent = text;
      element.hidden = text === "";
    };
    item.dataset.status = turn.status;
    set(".question .text", turn.question || (turn.spoken && !turn.sound ? "" : turn.spoken ? "A spoken question" : ""));
    set(".answer .text", turn.answer);
    set(".state", stateOf(turn));
    set(".latency", turn.latency === null ? "" : `first sound after ${seconds(turn.latency)}`);
    if (turn.sound) this.#record(item.querySelector(".question .sound"), turn.sound, `question ${turn.number}`);
    if (!turn.open && turn.pieces.length > 0) {
      this.#record(item.querySelector(".answer .sound"), turn.answerSound, `answer ${turn.number}`);
    }
  }

  /** Remove a turn. */
  remove(turn) {
    this.items.get(turn.number)?.remove();
    this.items.delete(turn.number);
  }

  /** Say between two turns that the server does not remember the earlier ones. */
  divide(text) {
    if ((this.list.firstElementChild ?? { className: "divider" }).className === "divider") return; // nothing to divide
    const divider = document.createElement("li");
    divider.className = "divider";
    divider.textContent = text;
    this.list.prepend(divider);
  }

  /** Remove everything. */
  clear() {
    pauseRecording();
    for (const { href } of this.list.querySelectorAll("a")) URL.revokeObjectURL(href);
    this.list.replaceChildren();
    this.items.clear();
  }

  #add(turn) {
    const item = document.getElementById("turn").content.firstElementChild.cloneNode(true);
    item.querySelector("h3").textContent = `Turn ${turn.number}`;
    this.items.set(turn.number, item);
    this.list.prepend(item);
    return item;
  }

  #record(place, samples, name) {
    if (place.firstElementChild !== null || samples.length === 0) return;
    const root = document.getElementById("recording").content.firstElementChild.cloneNode(true);
    place.append(root);
    new Recording(root, samples, name);
  }
}

function stateOf(turn) {
  if (turn.status === "interrupted") {
    return turn.heard === null ? "interrupted" : `interrupted after ${seconds(turn.heard)}, the rest is forgotten`;
  }
  return turn.note || STATES[turn.status] || "";
}

/** Return milliseconds as text in seconds. */
export function seconds(ms) {
  return `${(ms / 1000).toFixed(2)} s`;
}
