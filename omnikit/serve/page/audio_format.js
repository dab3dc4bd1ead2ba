/** The protocol's audio: base64 of mono 16 bit little-endian samples at 24 kHz; and wav files of it. */

export const RATE = 24000; // Hz
export const FRAME = RATE / 50; // samples of the frames that are sent, 20 ms

/** Return the base64 of 16 bit samples. */
export function toBase64(samples) {
  const bytes = new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength);
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}

/** Return the 16 bit samples of a base64 text. */
export function fromBase64(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Int16Array(bytes.buffer, 0, bytes.length >> 1);
}

/** Return 16 bit samples in -1..1. */
export function toFloat(samples) {
  return Float32Array.from(samples, (sample) => sample / 32768);
}

/** Return samples in -1..1 with 16 bit. */
export function toInt16(samples) {
  return Int16Array.from(samples, (sample) => Math.round(32767 * Math.max(-1, Math.min(1, sample))));
}

/** Return arrays of 16 bit samples as one. */
export function joined(pieces) {
  const whole = new Int16Array(pieces.reduce((length, piece) => length + piece.length, 0));
  let filled = 0;
  for (const piece of pieces) {
    whole.set(piece, filled);
    filled += piece.length;
  }
  return whole;
}

/** Return a wav file of 16 bit samples. */
export function wavFile(samples) {
  const header = new DataView(new ArrayBuffer(44));
  const letters = (at, text) => [...text].forEach((letter, i) => header.setUint8(at + i, letter.charCodeAt(0)));
  letters(0, "RIFF");
  header.setUint32(4, 36 + samples.byteLength, true);
  letters(8, "WAVEfmt ");
  header.setUint32(16, 16, true); // length of the format that follows
  header.setUint16(20, 1, true); // PCM
  header.setUint16(22, 1, true); // mono
  header.setUint32(24, RATE, true);
  header.setUint32(28, 2 * RATE, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  letters(36, "data");
  header.setUint32(40, samples.byteLength, true);
  return new Blob([header, samples], { type: "audio/wav" });
}

/**
 * Return the 16 bit samples at `RATE` of a sound file that the browser can decode.
 *
 * @throws {DOMException} the browser cannot decode it
 */
export async function decodeFile(bytes) {
  const decoded = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(bytes); // resamples to `RATE`
  const channels = Array.from({ length: decoded.numberOfChannels }, (_, i) => decoded.getChannelData(i));
  return toInt16(channels[0].map((_, i) => channels.reduce((sum, one) => sum + one[i], 0) / channels.length));
}
