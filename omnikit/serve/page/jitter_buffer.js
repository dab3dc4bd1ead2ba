/**
 * The queue between an answer that arrives in bursts and the loudspeaker that plays it evenly.
 *
 * It starts when `wait` seconds are queued, or the whole answer. It fades out over the last samples that it has: at the
 * end, when it is stopped, and when the queue runs empty in mid-answer (an under-run), after which it waits for more
 * samples than before. So none of these clicks.
 */

const WAIT = 0.1; // seconds queued before it starts
const LONGEST_WAIT = 0.8;
const FADE = 0.006; // seconds of a fade

export class JitterBuffer {
  /** @param {number} rate sample rate in Hz */
  constructor(rate) {
    this.fade = Math.round(FADE * rate);
    this.wait = Math.round(WAIT * rate);
    this.longestWait = Math.round(LONGEST_WAIT * rate);
    this.pieces = [];
    this.taken = 0; // samples of the first piece that have been played
    this.queued = 0;
    this.received = 0;
    this.played = 0;
    this.underruns = 0;
    this.gain = 0;
    this.playing = false;
    this.finished = false; // no samples will follow
    this.ended = false; // nothing will be played any more
  }

  /** Queue samples [n]. */
  push(samples) {
    if (this.finished || samples.length === 0) return;
    this.pieces.push(samples);
    this.queued += samples.length;
    this.received += samples.length;
  }

  /** Say that no samples will follow. */
  finish() {
    this.finished = true;
  }

  /** Fade out and drop what is queued behind. */
  stop() {
    this.finished = true;
    const keep = this.playing ? Math.min(this.fade, this.queued) : 0;
    const first = this.pieces.length > 0 ? this.#next(keep) : new Float32Array(0);
    this.pieces = first.length > 0 ? [first] : [];
    this.taken = 0;
    this.queued = first.length;
  }

  /** Fill `output` with the samples to play now, and with silence where there are none. */
  pull(output) {
    for (let i = 0; i < output.length; i++) output[i] = this.#starts() ? this.#sample() : 0;
    if (this.finished && this.queued === 0) this.ended = true;
  }

  /** Return whether a sample is to be played now. */
  #starts() {
    if (this.queued === 0) return false;
    this.playing ||= this.finished || this.queued >= this.wait;
    return this.playing;
  }

  /** Return the next sample, faded in at a start and out over the last samples of the queue. */
  #sample() {
    const goal = this.queued > this.fade ? 1 : 0;
    this.gain += Math.max(-1 / this.fade, Math.min(1 / this.fade, goal - this.gain));
    const sample = this.gain * this.pieces[0][this.taken++];
    this.queued--;
    this.played++;
    if (this.taken === this.pieces[0].length) {
      this.pieces.shift();
      this.taken = 0;
    }
    if (this.queued === 0) this.#ranEmpty();
    return sample;
  }

  #ranEmpty() {
    this.playing = false;
    this.gain = 0;
    if (this.finished) return;
    this.underruns++;
    this.wait = Math.min(this.longestWait, 2 * this.wait);
  }

  /** Return the next `n` queued samples without taking them. */
  #next(n) {
    const samples = new Float32Array(n);
    for (let i = 0, piece = 0, at = this.taken; i < n; i++, at++) {
      if (at === this.pieces[piece].length) [piece, at] = [piece + 1, 0];
      samples[i] = this.pieces[piece][at];
    }
    return samples;
  }
}
