/**
 * A streaming resampler for mono audio, by a windowed sinc that cuts off below the lower of both Nyquist frequencies.
 *
 * The output does not depend on how the input is cut into pieces.
 */

const ZEROS = 16; // zero crossings of the sinc on each side
const TABLE_STEPS = 256; // table entries between two zero crossings
const ROLLOFF = 0.94; // share of the lower Nyquist frequency that passes

/** Return the right half of a Hann-windowed sinc, `TABLE_STEPS` entries for each of its zero crossings. */
function halfSinc() {
  return Float64Array.from({ length: ZEROS * TABLE_STEPS + 2 }, (_, i) => {
    const x = i / TABLE_STEPS;
    if (x >= ZEROS) return 0;
    const window = 0.5 * (1 + Math.cos((Math.PI * x) / ZEROS));
    return window * (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
  });
}

const TABLE = halfSinc();

export class Resampler {
  /**
   * @param {number} from sample rate of the input in Hz
   * @param {number} to sample rate of the output in Hz
   */
  constructor(from, to) {
    this.step = from / to; // input samples for each output sample
    this.scale = ROLLOFF * Math.min(1, to / from); // width of the sinc's lobes, relative to those at the input's rate
    this.reach = Math.ceil(ZEROS / this.scale); // input samples on each side of an output sample
    this.kept = new Float32Array(this.reach); // silence before the first sample
    this.keptFrom = -this.reach; // index of the first kept input sample
    this.made = 0; // number of output samples so far
  }

  /** Take input samples and return the output samples [n] that are final; the last `reach` input samples wait. */
  push(samples) {
    const input = new Float32Array(this.kept.length + samples.length);
    input.set(this.kept);
    input.set(samples, this.kept.length);
    const end = this.keptFrom + input.length;
    const output = [];
    let centre = this.made * this.step;
    for (; centre + this.reach < end; centre = ++this.made * this.step) output.push(this.#at(input, centre));
    const drop = Math.max(0, Math.min(input.length, Math.floor(centre) - this.reach - this.keptFrom));
    this.kept = input.slice(drop);
    this.keptFrom += drop;
    return Float32Array.from(output);
  }

  /** Return the output sample at a place of the input, in samples. */
  #at(input, centre) {
    let sum = 0;
    const first = Math.ceil(centre - this.reach);
    for (let i = Math.max(first, this.keptFrom); i <= centre + this.reach; i++) {
      const x = Math.abs(i - centre) * this.scale * TABLE_STEPS;
      const low = Math.floor(x);
      if (low >= ZEROS * TABLE_STEPS) continue;
      sum += input[i - this.keptFrom] * (TABLE[low] + (x - low) * (TABLE[low + 1] - TABLE[low]));
    }
    return sum * this.scale;
  }
}
