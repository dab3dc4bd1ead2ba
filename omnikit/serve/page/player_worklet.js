/** The audio thread's side of the player: it plays answers one after another and reports what was played. */

import { JitterBuffer } from "./jitter_buffer.js";

const REPORT = 0.02; // seconds between reports

class Player extends AudioWorkletProcessor {
  constructor() {
    super();
    this.answers = []; // [{id, buffer, started}], the first of which is heard
    this.peak = 0;
    this.silentFor = 0;
    this.port.onmessage = ({ data }) => this[data.type](data);
  }

  begin({ id }) {
    this.answers.at(-1)?.buffer.stop();
    this.answers.push({ id, buffer: new JitterBuffer(sampleRate), started: false });
  }

  push({ id, samples }) {
    this.#find(id)?.buffer.push(samples);
  }

  finish({ id }) {
    this.#find(id)?.buffer.finish();
  }

  stop({ id }) {
    this.#find(id)?.buffer.stop();
  }

  process(_, [[output]]) {
    const [answer] = this.answers;
    if (!answer) return true;
    const { buffer } = answer;
    const before = buffer.played;
    buffer.pull(output);
    if (!answer.started && buffer.played > 0) {
      answer.started = true;
      this.port.postMessage({ type: "started", id: answer.id, time: currentTime });
    }
    for (const sample of output) this.peak = Math.max(this.peak, Math.abs(sample));
    this.silentFor += output.length;
    if (buffer.played > before && this.silentFor >= REPORT * sampleRate) this.#report("played", answer);
    if (buffer.ended) {
      this.answers.shift();
      this.#report("ended", answer);
    }
    return true;
  }

  #find(id) {
    return this.answers.find((answer) => answer.id === id);
  }

  #report(type, { id, buffer: { received, played, underruns } }) {
    this.port.postMessage({ type, id, received, played, underruns, peak: this.peak });
    this.peak = 0;
    this.silentFor = 0;
  }
}

registerProcessor("player", Player);
