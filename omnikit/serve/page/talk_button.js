/**
 * The button that is held while speaking: by pointer or, anywhere on the page, by the space bar. Where it cannot be
 * held, as with a screen reader, one click begins and one ends.
 */

export class TalkButton {
  /**
   * @param {HTMLButtonElement} button
   * @param {{begin: () => void, end: () => void, toggle: () => void, handsFree: () => boolean}} does
   */
  constructor(button, does) {
    this.does = does;
    this.held = false;
    button.addEventListener("pointerdown", (event) => this.#pointer(event, button));
    for (const type of ["pointerup", "pointercancel", "lostpointercapture"]) {
      button.addEventListener(type, () => this.#end());
    }
    button.addEventListener("click", (event) => this.#click(event));
    button.addEventListener("contextmenu", (event) => event.preventDefault()); // of a long touch
    document.addEventListener("keydown", (event) => this.#keyDown(event, button));
    document.addEventListener("keyup", (event) => this.#keyUp(event));
    window.addEventListener("blur", () => this.#end());
  }

  #pointer(event, button) {
    if (event.button !== 0 || this.does.handsFree()) return;
    button.setPointerCapture(event.pointerId);
    this.#begin();
  }

  #keyDown(event, button) {
    if (event.code !== "Space" || event.ctrlKey || event.metaKey || event.altKey) return;
    const free = event.target === button || event.target === document.body || event.target.tagName === "MAIN";
    if (!free || this.does.handsFree()) return;
    event.preventDefault(); // neither a click nor scrolling
    if (!event.repeat) this.#begin();
  }

  #keyUp(event) {
    if (event.code !== "Space" || !this.held) return;
    event.preventDefault(); // no click of the button, which would begin anew
    this.#end();
  }

  #click(event) {
    if (this.does.handsFree()) this.does.toggle();
    else if (event.detail === 0) this.held ? this.#end() : this.#begin(); // by the Enter key or an assistive technology
  }

  #begin() {
    if (this.held) return;
    this.held = true;
    this.does.begin();
  }

  #end() {
    if (!this.held) return;
    this.held = false;
    this.does.end();
  }
}
