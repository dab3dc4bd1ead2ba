/** The audio that was sent in a session, on the server's clock, which counts all samples sent. */

import { RATE, joined } from "./audio_format.js";

const KEPT = 90; // seconds

export class SentAudio {
  constructor() {
    this.pieces = []; // [{start, samples, time}], start in samples, time at which the piece's sound ended
    this.length = 0; // samples sent so far
  }

  /** Add samples whose last one was recorded at a time of `performance.now()`. */
  add(samples, time) {
    this.pieces.push({ start: this.length, samples, time });
    this.length += samples.length;
    while (this.pieces[0].start < this.length - KEPT * RATE && this.pieces.length > 1) this.pieces.shift();
  }

  /** Return the samples between two moments in samples, as far as they are kept. */
  slice(from, to) {
    const cut = ({ start, samples }) => samples.subarray(Math.max(0, from - start), Math.max(0, to - start));
    return joined(this.pieces.map(cut));
  }

  /** Return the time of `performance.now()` at which a moment in samples was recorded; now if it is not known. */
  timeOf(moment) {
    const piece = this.pieces.find(({ start, samples }) => moment <= start + samples.length);
    if (!piece) return performance.now();
    return piece.time - (1000 * (piece.start + piece.samples.length - moment)) / RATE;
  }
}
