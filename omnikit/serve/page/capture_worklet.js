/** The audio thread's side of the microphone: it posts 20 ms frames of mono 16 bit samples at the protocol's rate. */

import { FRAME, RATE } from "./audio_format.js";
import { Resampler } from "./resampler.js";

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(sampleRate, RATE);
    this.frame = new Int16Array(FRAME);
    this.filled = 0;
  }

  process([channels]) {
    if (channels.length === 0) return true; // nothing is connected yet
    for (const sample of this.resampler.push(mixed(channels))) {
      this.frame[this.filled++] = Math.round(32767 * Math.max(-1, Math.min(1, sample)));
      if (this.filled === FRAME) this.#post();
    }
    return true;
  }

  #post() {
    this.port.postMessage(this.frame, [this.frame.buffer]);
    this.frame = new Int16Array(FRAME);
    this.filled = 0;
  }
}

/** Return the mean of all channels. */
function mixed(channels) {
  if (channels.length === 1) return channels[0];
  return channels[0].map((_, i) => channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length);
}

registerProcessor("capture", Capture);
