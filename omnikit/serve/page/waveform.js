/** Waveforms as rows of bars: the last seconds of the conversation, and a whole recording. */

import { RATE } from "./audio_format.js";

const BAR = 3; // CSS pixels
const PITCH = 5; // CSS pixels from bar to bar
const BUCKET = 50; // ms of a bar on the tape
const LOUD = 0.9; // amplitude of a bar of full height

/** Fit a canvas to its place on a screen of any density, clear it, and return its context and size in CSS pixels. */
function cleared(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const density = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * density);
  canvas.height = Math.round(height * density);
  const pen = canvas.getContext("2d");
  pen.scale(density, density);
  return { pen, width, height };
}

/** Return a colour of the style sheet. */
function colour(canvas, name) {
  return getComputedStyle(canvas).getPropertyValue(name).trim();
}

/** Return the height, as a share of the whole, of a bar for a peak. */
function share(peak) {
  return Math.min(1, (peak / LOUD) ** 0.7);
}

function bar(pen, x, y, height) {
  pen.beginPath();
  pen.roundRect(x, y, BAR, height, BAR / 2);
  pen.fill();
}

/** Draw a recording's samples of 16 bit; when it is under way, the bars after `progress`, a share of it, are pale. */
export function drawRecording(canvas, samples, progress) {
  const { pen, width, height } = cleared(canvas);
  const bars = Math.max(1, Math.floor(width / PITCH));
  const each = samples.length / bars;
  pen.fillStyle = colour(canvas, "color");
  for (let i = 0; i < bars; i++) {
    let peak = 0;
    for (let at = Math.floor(i * each); at < (i + 1) * each; at++) peak = Math.max(peak, Math.abs(samples[at] ?? 0));
    const tall = Math.max(2, height * share(peak / 32768));
    pen.globalAlpha = progress === 0 || (i + 0.5) / bars <= progress ? 1 : 0.4;
    bar(pen, i * PITCH, (height - tall) / 2, tall);
  }
}

/** The last seconds of the conversation as a tape that runs to the left: the user above the line, the answer below. */
export class Tape {
  constructor(canvas) {
    this.canvas = canvas;
    this.peaks = { you: new Map(), answer: new Map() }; // by number of the bar
    this.gaps = []; // [{from, to}], times between the end of a question and the first sound of its answer
    this.until = 0; // time at which everything has left the tape
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    new ResizeObserver(() => this.#draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
  }

  /** Add sound of `you` or of the `answer`, heard at a time of `performance.now()`. */
  add(who, peak, time) {
    const number = Math.floor(time / BUCKET);
    this.peaks[who].set(number, Math.max(peak, this.peaks[who].get(number) ?? 0));
    this.#run(time);
  }

  /** Add samples in 16 bit of the user that ended at a time. */
  addSamples(samples, time) {
    this.add("you", samples.reduce((peak, sample) => Math.max(peak, Math.abs(sample)), 0) / 32768, time);
  }

  /** Mark the time between a question and its answer. */
  addGap(from, to) {
    this.gaps.push({ from, to });
    this.#run(to);
  }

  #run(time) {
    const idle = performance.now() > this.until;
    this.until = Math.max(this.until, time + (BUCKET * this.canvas.clientWidth) / PITCH);
    if (idle) this.#frame();
  }

  /** Draw, again and again while something is on the tape; in steps where motion is not wanted. */
  #frame() {
    this.#draw();
    if (performance.now() > this.until) return;
    if (this.still.matches) setTimeout(() => this.#frame(), 1000);
    else setTimeout(() => requestAnimationFrame(() => this.#frame()), 25);
  }

  #draw() {
    const now = performance.now();
    const { pen, width, height } = cleared(this.canvas);
    const middle = height / 2;
    const x = (time) => width - BAR - ((now - time) / BUCKET) * PITCH;
    const oldest = Math.floor((now - (BUCKET * width) / PITCH) / BUCKET);
    const half = middle - 3;
    const colours = { you: colour(this.canvas, "--you"), answer: colour(this.canvas, "--answer") };
    const faint = colour(this.canvas, "--faint");
    for (let number = oldest; number * BUCKET <= now; number++) {
      for (const [who, sign] of [["you", -1], ["answer", 1]]) {
        const tall = half * share(this.peaks[who].get(number) ?? 0);
        pen.fillStyle = tall > 2 ? colours[who] : faint;
        if (tall > 2) bar(pen, x(number * BUCKET), sign < 0 ? middle - 2 - tall : middle + 2, tall);
        else if (sign < 0) bar(pen, x(number * BUCKET), middle - 1, 2);
      }
    }
    this.#drawGaps(pen, x, middle);
    this.#forget(oldest);
  }

  #drawGaps(pen, x, middle) {
    pen.fillStyle = colour(this.canvas, "--ink");
    pen.font = `600 12px ${getComputedStyle(this.canvas).fontFamily}`;
    for (const { from, to } of this.gaps) {
      pen.fillRect(x(from), middle - 1, Math.max(2, x(to) - x(from)), 2);
      pen.fillText(`${((to - from) / 1000).toFixed(2)} s`, x(from), middle - 8);
    }
  }

  #forget(oldest) {
    for (const peaks of Object.values(this.peaks)) {
      for (const number of peaks.keys()) if (number < oldest) peaks.delete(number);
    }
    this.gaps = this.gaps.filter(({ to }) => to > oldest * BUCKET);
  }
}

/** Return a length of samples as text, such as `1.4 s`. */
export function lengthOf(samples) {
  return `${(samples.length / RATE).toFixed(1)} s`;
}
