/** The loudspeaker: it plays one answer at a time and tells when its first sound is heard and how much was played. */

import { RATE } from "./audio_format.js";

const LONGEST_START = 500; // ms; without a sound device some browsers never start

export class Player extends EventTarget {
  constructor() {
    super();
    this.context = null;
    this.ready = null;
    this.answers = new Map(); // those that have not ended, by id
    this.counts = { received: 0, played: 0, underruns: 0 }; // of all answers that have ended
  }

  /** Prepare the player, first in an event of the user, as browsers demand; it plays in secure contexts only. */
  async resume() {
    if (!window.isSecureContext) return;
    this.ready ??= this.#prepare();
    await this.ready;
    await Promise.race([this.context.resume(), new Promise((resolve) => setTimeout(resolve, LONGEST_START))]);
  }

  async #prepare() {
    this.context = new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
    await this.context.audioWorklet.addModule(new URL("player_worklet.js", import.meta.url));
    this.node = new AudioWorkletNode(this.context, "player", { numberOfInputs: 0, outputChannelCount: [1] });
    this.node.connect(this.context.destination);
    this.node.port.onmessage = ({ data }) => this.#report(data);
  }

  /** Whether answers are heard while they arrive. */
  get plays() {
    return this.node !== undefined && this.context.state === "running";
  }

  /** Begin an answer; one that is still heard fades out. */
  begin(id) {
    if (!this.plays) return;
    const answer = { played: 0 };
    answer.ended = new Promise((resolve) => (answer.end = resolve));
    this.answers.set(id, answer);
    this.node.port.postMessage({ type: "begin", id });
  }

  /** Queue samples [n] in -1..1 of an answer. */
  push(id, samples) {
    if (this.answers.has(id)) this.node.port.postMessage({ type: "push", id, samples });
  }

  /** Say that an answer is complete. */
  finish(id) {
    if (this.answers.has(id)) this.node.port.postMessage({ type: "finish", id });
  }

  /** Fade out an answer, drop the rest, and return the milliseconds that were heard; null if it had ended before. */
  async stop(id) {
    const answer = this.answers.get(id);
    if (!answer) return null;
    this.node.port.postMessage({ type: "stop", id });
    await answer.ended;
    const unheard = (this.context.outputLatency || 0) * RATE; // samples on their way to the loudspeaker
    return Math.max(0, Math.floor(((answer.played - unheard) / RATE) * 1000));
  }

  #report({ type, id, time, received, played, underruns, peak }) {
    const answer = this.answers.get(id);
    if (type === "started") {
      this.#tell("started", { id, at: this.#heardAt(time) });
      return;
    }
    answer.played = played;
    const { counts } = this;
    this.#tell("played", {
      id,
      peak,
      at: performance.now() + 1000 * (this.context.outputLatency || 0),
      received: counts.received + received,
      played: counts.played + played,
      underruns: counts.underruns + underruns,
    });
    if (type === "played") return;
    counts.received += received;
    counts.played += played;
    counts.underruns += underruns;
    this.answers.delete(id);
    answer.end();
    this.#tell("ended", { id });
  }

  /** Return the time, as of `performance.now()`, at which a moment of the context leaves the loudspeaker. */
  #heardAt(time) {
    const { contextTime, performanceTime } = this.context.getOutputTimestamp();
    if (performanceTime) return performanceTime + 1000 * (time - contextTime);
    return performance.now() + 1000 * (time - this.context.currentTime + (this.context.outputLatency || 0));
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
