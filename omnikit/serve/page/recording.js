/** A recording in the history: a button that plays it, its waveform with a position that can be set, and a wav file. */

import { RATE, toFloat, wavFile } from "./audio_format.js";
import { drawRecording, lengthOf } from "./waveform.js";

let context = null; // shared by all recordings, made when the first one is played
let playing = null; // only one recording is heard at a time

/** Pause the recording that is being played. */
export function pauseRecording() {
  playing?.pause();
}

export class Recording {
  /**
   * @param {HTMLElement} root element made from the template `recording`
   * @param {Int16Array} samples
   * @param {string} name what it is, such as "question 3"
   */
  constructor(root, samples, name) {
    this.samples = samples;
    this.name = name;
    this.at = 0; // position in seconds
    this.button = root.querySelector("button");
    this.canvas = root.querySelector("canvas");
    this.slider = root.querySelector("input");
    this.seconds = samples.length / RATE;
    this.slider.max = this.seconds;
    this.slider.setAttribute("aria-label", `Position in ${name}`);
    this.slider.addEventListener("input", () => this.#seek(Number(this.slider.value)));
    this.button.addEventListener("click", () => (this.source ? this.pause() : this.play()));
    root.querySelector(".length").textContent = lengthOf(samples);
    this.#link(root.querySelector("a"));
    this.#show();
    new ResizeObserver(() => this.#show()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#show());
  }

  #link(link) {
    link.href = URL.createObjectURL(wavFile(this.samples));
    link.download = `${this.name.replace(" ", "_")}.wav`;
    link.setAttribute("aria-label", `Save ${this.name} as a wav file`);
  }

  play() {
    pauseRecording();
    playing = this;
    context ??= new AudioContext();
    context.resume();
    if (this.at >= this.seconds - 0.01) this.at = 0;
    const buffer = context.createBuffer(1, this.samples.length, RATE);
    buffer.copyToChannel(toFloat(this.samples), 0);
    const source = new AudioBufferSourceNode(context, { buffer });
    source.connect(context.destination);
    source.onended = () => this.source === source && this.pause();
    source.start(0, this.at);
    this.source = source;
    this.began = context.currentTime - this.at;
    this.#move();
  }

  pause() {
    const { source } = this;
    this.#advance();
    this.source = null;
    source?.stop();
    if (playing === this) playing = null;
    this.#show();
  }

  #seek(seconds) {
    const plays = this.source !== undefined && this.source !== null;
    if (plays) this.pause();
    this.at = seconds;
    if (plays) this.play();
    this.#show();
  }

  #advance() {
    if (this.source) this.at = Math.min(this.seconds, context.currentTime - this.began);
  }

  #move() {
    this.#advance();
    this.#show();
    if (this.source) setTimeout(() => this.#move(), 50);
  }

  #show() {
    this.button.setAttribute("aria-label", `${this.source ? "Pause" : "Play"} ${this.name}`);
    this.button.classList.toggle("plays", Boolean(this.source));
    this.slider.value = this.at;
    this.slider.setAttribute("aria-valuetext", `${this.at.toFixed(1)} of ${this.seconds.toFixed(1)} seconds`);
    drawRecording(this.canvas, this.samples, this.at / this.seconds);
  }
}
