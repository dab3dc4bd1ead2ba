/** The microphone: opened when it is first needed, released when it was not used for a minute. */

const RELEASE_AFTER = 60_000; // ms; until then the next question begins without a delay
const PREROLL = 10; // frames from before the talk button was pressed, so that the first sound is not cut

const REASONS = {
  NotAllowedError: "The browser does not let this page use the microphone. Allow it by the symbol beside the address.",
  NotFoundError: "No microphone was found. Questions can also be typed, dropped as a file or picked below.",
  NotReadableError: "The microphone is in use by another program.",
};

export const INSECURE =
  "Browsers give the microphone, and speech while it is generated, only to pages from https or localhost. " +
  "Open this page by https or through a tunnel to localhost; until then, type a question.";

export class Microphone {
  /**
   * @param {(frame: Int16Array, time: number) => void} onframe takes each frame and the time at which it ended
   * @param {() => void} onlost is called when the microphone was unplugged or taken away
   */
  constructor(onframe, onlost) {
    this.onframe = onframe;
    this.onlost = onlost;
    this.latest = []; // frames of the last moments
    this.opening = null;
    this.context = null;
    this.timer = 0;
  }

  /**
   * Open the microphone unless it is open.
   *
   * @throws {Error} it cannot be had; the message is for the user
   */
  async open() {
    clearTimeout(this.timer);
    const opening = (this.opening ??= this.#open());
    try {
      await opening;
    } catch (error) {
      if (opening === this.opening) this.close();
      throw new Error(REASONS[error.name] ?? error.message);
    }
  }

  async #open() {
    if (!window.isSecureContext || !navigator.mediaDevices) throw new Error(INSECURE);
    const context = (this.context = new AudioContext({ latencyHint: "interactive" }));
    await context.audioWorklet.addModule(new URL("capture_worklet.js", import.meta.url));
    const audio = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 };
    const stream = await navigator.mediaDevices.getUserMedia({ audio });
    const [track] = stream.getAudioTracks();
    if (context !== this.context) { // closed while the user was asked
      track.stop();
      throw new Error("The microphone was switched off.");
    }
    this.track = track;
    track.onended = () => this.#lose();
    const capture = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
    capture.port.onmessage = ({ data }) => context === this.context && this.#take(data);
    context.createMediaStreamSource(stream).connect(capture);
    await context.resume();
  }

  #lose() {
    this.close();
    this.onlost();
  }

  #take(frame) {
    this.latest = [...this.latest.slice(1 - PREROLL), frame];
    this.onframe(frame, performance.now());
  }

  /** Return the frames of the last moments, oldest first. */
  preroll() {
    return this.latest;
  }

  /** Release the microphone after a while, unless `open` is called before. */
  releaseLater() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.close(), RELEASE_AFTER);
  }

  /** Release the microphone now. */
  close() {
    clearTimeout(this.timer);
    this.track?.stop();
    this.context?.close();
    this.track = this.context = this.opening = null;
    this.latest = [];
  }
}
