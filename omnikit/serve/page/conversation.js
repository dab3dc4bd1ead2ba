/**
 * The conversation: what the user does becomes events of the Realtime protocol, and the server's events become turns.
 *
 * It knows neither the page nor the microphone. Events: `turn` when a turn began or changed, `removed` when one is no
 * longer one, `problem` with a text for the user, `busy` when an answer begins or ends.
 */

import { RATE, fromBase64, joined, toBase64, toFloat } from "./audio_format.js";
import { SentAudio } from "./sent_audio.js";

const FORMAT = { type: "audio/pcm", rate: RATE };
const DETECTION = { type: "server_vad", create_response: true, interrupt_response: true };
const SHORTEST = 0.2 * RATE; // samples of a question after the talk button was pressed
const AWAY = new Set(["closed", "waiting", "token"]); // states of the connection without a session
const HARMLESS = new Set(["response_cancel_not_active"]); // the answer ended while the cancellation was on its way

/** A question and its answer. `status` is asking, waiting, answering, done, interrupted or failed. */
class Turn {
  constructor(number, spoken, text = "") {
    this.number = number;
    this.spoken = spoken; // whether the question is spoken
    this.question = text;
    this.sound = null; // samples of a spoken question, once it is complete
    this.start = 0; // its first sample on the clock of the sent audio
    this.asked = 0; // time at which it ended
    this.inputItem = null;
    this.response = null; // id of the answer
    this.item = null; // id of the answer's item
    this.answer = "";
    this.pieces = []; // samples of the answer as they came
    this.latency = null; // ms from the end of the question to the answer's first sound
    this.heard = null; // ms of an interrupted answer that were heard
    this.status = "asking";
    this.note = ""; // why it failed
  }

  get answerSound() {
    return joined(this.pieces);
  }

  get open() {
    return ["asking", "waiting", "answering"].includes(this.status);
  }
}

export class Conversation extends EventTarget {
  /**
   * @param {Connection} connection
   * @param {Player} player
   */
  constructor(connection, player) {
    super();
    this.connection = connection;
    this.player = player;
    this.handsFree = false;
    this.transcribes = false;
    this.holding = false; // whether a push-to-talk question is being spoken
    this.pressed = 0; // place in the sent audio where its button was pressed
    this.turns = [];
    this.numbers = 0;
    this.sent = new SentAudio();
    connection.addEventListener("message", ({ detail }) => this.#take(detail));
    connection.addEventListener("state", ({ detail }) => AWAY.has(detail.state) && this.#lost());
    player.addEventListener("started", ({ detail }) => this.#firstSound(detail));
    player.addEventListener("ended", ({ detail }) => this.#playedOut(detail.id));
  }

  /** Whether an answer is awaited, generated or heard. */
  get busy() {
    return this.#current() !== undefined;
  }

  // what the user does

  /** Say how turns are detected and whether questions are transcribed. */
  configure({ handsFree = this.handsFree, transcribes = this.transcribes }) {
    this.handsFree = handsFree;
    this.transcribes = transcribes;
    if (this.connection.state === "open") this.#configure();
  }

  /** Begin a spoken question with frames that were recorded just before. */
  async beginSpeech(preroll) {
    this.holding = true;
    this.#send("input_audio_buffer.clear");
    const turn = this.#newTurn(true);
    turn.start = this.sent.length;
    for (const frame of preroll) this.#append(frame, performance.now());
    this.pressed = this.sent.length;
    await this.interrupt();
  }

  /** Take a frame of the microphone, which is sent if a question is being spoken or awaited. */
  hear(frame, time) {
    if (!this.holding && !(this.handsFree && this.connection.state === "open")) return false;
    this.#append(frame, time);
    return true;
  }

  /** End the spoken question; `asked` is the time at which the user ended it. */
  endSpeech(asked) {
    if (!this.holding) return; // the connection was lost meanwhile
    this.holding = false;
    const turn = this.turns.at(-1);
    if (this.sent.length - this.pressed >= SHORTEST) {
      this.#commit(turn, asked);
    } else {
      this.discardSpeech();
      this.#tell("problem", "That was too short. Hold the button, or the space bar, while you speak.");
    }
  }

  /** Send the samples of a recording as a spoken question. */
  async sendRecording(samples, name) {
    await this.interrupt();
    if (this.handsFree) this.#configure({ handsFree: false });
    this.#send("input_audio_buffer.clear");
    const turn = this.#newTurn(true, name);
    turn.start = this.sent.length;
    for (let i = 0; i < samples.length; i += RATE) this.#append(samples.subarray(i, i + RATE), performance.now());
    this.#commit(turn, performance.now());
    if (this.handsFree) this.#configure();
  }

  /** Send a written question. */
  async sendText(text) {
    await this.interrupt();
    const turn = this.#newTurn(false, text);
    const content = [{ type: "input_text", text }];
    this.#send("conversation.item.create", { item: { type: "message", role: "user", content } }, turn);
    this.#respond(turn, performance.now());
  }

  /** End the answer that is awaited, generated or heard, on both sides; the server forgets what was not heard. */
  async interrupt({ cancelled = false } = {}) {
    const turn = this.#current();
    if (!turn) return;
    if (turn.response && turn.generating && !cancelled) {
      this.#send("response.cancel", { response_id: turn.response });
    } else if (!turn.response && !cancelled) {
      this.#send("response.cancel");
    }
    turn.status = "interrupted";
    const heard = await this.player.stop(turn.response);
    if (heard !== null && turn.item && turn.pieces.length > 0) {
      turn.heard = heard;
      this.#send("conversation.item.truncate", { item_id: turn.item, content_index: 0, audio_end_ms: turn.heard });
    }
    this.#tell("turn", turn);
    this.#tell("busy");
  }

  /** Forget what was said since the last turn, as when the microphone is switched off. */
  discardSpeech() {
    if (this.connection.state === "open") this.#send("input_audio_buffer.clear");
    const turn = this.turns.at(-1);
    if (turn?.status === "asking") this.#remove(turn);
    this.holding = false;
  }

  /** Forget all turns. */
  forget() {
    this.turns = [];
  }

  // events to the server

  #configure({ handsFree = this.handsFree } = {}) {
    const input = {
      format: FORMAT,
      turn_detection: handsFree ? DETECTION : null,
      transcription: this.transcribes ? { model: this.model } : null,
    };
    const session = { type: "realtime", output_modalities: ["audio"], audio: { input, output: { format: FORMAT } } };
    this.#send("session.update", { session });
  }

  #append(samples, time) {
    this.sent.add(samples, time);
    this.#send("input_audio_buffer.append", { audio: toBase64(samples) });
  }

  #commit(turn, asked) {
    turn.sound = this.sent.slice(turn.start, this.sent.length);
    this.#send("input_audio_buffer.commit", {}, turn);
    this.#respond(turn, asked);
  }

  #respond(turn, asked) {
    turn.asked = asked;
    turn.status = "waiting";
    this.#send("response.create", { response: { metadata: { turn: String(turn.number) } } }, turn);
    this.#tell("turn", turn);
    this.#tell("busy");
  }

  /** Send an event; an error that it causes is told at its turn. */
  #send(type, fields = {}, turn = null) {
    const id = turn ? { event_id: `turn${turn.number}.${type}` } : {};
    this.connection.send({ type, ...id, ...fields });
  }

  // events of the server

  #take(event) {
    const { type } = event;
    if (type === "session.created") this.#newSession(event.session);
    else if (type === "error") this.#failed(event.error);
    else if (type === "input_audio_buffer.speech_started") this.#speechStarted(event);
    else if (type === "input_audio_buffer.speech_stopped") this.#speechStopped(event);
    else if (type === "input_audio_buffer.committed") this.#committed(event);
    else if (type.startsWith("conversation.item.input_audio_transcription.")) this.#transcribed(event);
    else if (type.startsWith("response.")) this.#answered(event);
  }

  #newSession({ model }) {
    this.model = model;
    this.#configure();
  }

  #speechStarted({ audio_start_ms, item_id }) {
    this.interrupt({ cancelled: true });
    const turn = this.#newTurn(true);
    turn.start = samplesOf(audio_start_ms);
    turn.inputItem = item_id;
  }

  #speechStopped({ audio_end_ms, item_id }) {
    const turn = this.turns.find(({ inputItem }) => inputItem === item_id);
    if (!turn) return;
    turn.sound = this.sent.slice(turn.start, samplesOf(audio_end_ms));
    turn.asked = this.sent.timeOf(turn.start + lastLoud(turn.sound));
    turn.status = "waiting";
    this.#tell("turn", turn);
    this.#tell("busy");
  }

  #committed({ item_id }) {
    if (this.turns.some(({ inputItem }) => inputItem === item_id)) return; // known since speech_started
    const turn = this.turns.find((one) => one.spoken && !one.inputItem && one.status !== "asking");
    if (turn) turn.inputItem = item_id;
  }

  #transcribed({ type, item_id, delta, transcript, error }) {
    const turn = this.turns.find(({ inputItem }) => inputItem === item_id);
    if (!turn) return;
    if (type.endsWith(".delta")) turn.question += delta;
    else if (type.endsWith(".completed")) turn.question = transcript;
    else if (type.endsWith(".failed")) this.#tell("problem", `Your question was not transcribed: ${error.message}`);
    this.#tell("turn", turn);
  }

  #answered(event) {
    if (event.type === "response.created") {
      this.#answerBegan(event.response);
      return;
    }
    const turn = this.turns.find(({ response }) => response === (event.response_id ?? event.response.id));
    if (!turn) return;
    if (event.type === "response.output_item.added") turn.item = event.item.id;
    else if (event.type === "response.done") this.#answerDone(turn, event.response);
    else if (turn.status !== "answering") return; // interrupted, and what is on its way is not wanted
    else if (/^response\.output_(audio_transcript|text)\.delta$/.test(event.type)) turn.answer += event.delta;
    else if (event.type === "response.output_audio.delta") this.#answerSounds(turn, fromBase64(event.delta));
    else if (event.type === "response.output_audio.done") this.player.finish(turn.response);
    else return;
    this.#tell("turn", turn);
  }

  #answerBegan({ id, metadata }) {
    const number = Number(metadata?.turn);
    const turn = this.turns.find((one) => (number ? one.number === number : one.status === "waiting" && !one.response));
    if (!turn) return;
    turn.response = id;
    turn.generating = true;
    if (turn.status !== "waiting") { // interrupted meanwhile, or its question was refused
      this.#send("response.cancel", { response_id: id });
      return;
    }
    turn.status = "answering";
    this.player.begin(id);
    this.#tell("turn", turn);
  }

  #answerSounds(turn, samples) {
    turn.pieces.push(samples);
    this.player.push(turn.response, toFloat(samples));
  }

  #answerDone(turn, { id, status, status_details }) {
    turn.generating = false;
    if (turn.status === "answering") {
      if (status === "cancelled") {
        this.interrupt({ cancelled: true });
        return;
      }
      if (status === "failed") this.#fail(turn, status_details?.error?.message ?? "The answer failed.");
      else if (status === "incomplete") turn.note = "The answer was cut at the longest that the server allows.";
    }
    this.player.finish(id);
    if (!this.player.answers.has(id)) this.#playedOut(id);
  }

  #failed({ code, message, event_id }) {
    if (HARMLESS.has(code)) return;
    const number = Number(/^turn(\d+)\./.exec(event_id ?? "")?.[1]);
    const turn = this.turns.find((one) => one.number === number && one.status === "waiting");
    if (turn) this.#fail(turn, message);
    else if (!number) this.#tell("problem", message);
  }

  // turns

  #current() {
    return this.turns.findLast(({ status }) => status === "waiting" || status === "answering");
  }

  #newTurn(spoken, text) {
    const turn = new Turn(++this.numbers, spoken, text);
    this.turns.push(turn);
    this.#tell("turn", turn);
    return turn;
  }

  #firstSound({ id, at }) {
    const turn = this.turns.find(({ response }) => response === id);
    if (!turn || turn.latency !== null) return;
    turn.firstSound = at;
    turn.latency = Math.max(0, at - turn.asked);
    this.#tell("turn", turn);
  }

  /** End a turn whose answer is complete and was heard, or cannot be heard while it arrives. */
  #playedOut(id) {
    const turn = this.turns.find(({ response }) => response === id);
    if (!turn || turn.status !== "answering" || turn.generating) return;
    turn.status = "done";
    this.#tell("turn", turn);
    this.#tell("busy");
  }

  #fail(turn, note) {
    turn.status = "failed";
    turn.note = note;
    this.player.finish(turn.response);
    this.#tell("turn", turn);
    this.#tell("busy");
  }

  #remove(turn) {
    this.turns = this.turns.filter((one) => one !== turn);
    this.#tell("removed", turn);
  }

  /** End what was open in a session that is no more. */
  #lost() {
    this.sent = new SentAudio();
    this.holding = false;
    for (const turn of this.turns.filter(({ open }) => open)) {
      if (turn.status === "answering" && !turn.generating) continue; // all of it is here and is being played
      this.#fail(turn, "The connection was lost.");
    }
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

function samplesOf(ms) {
  return Math.round((ms * RATE) / 1000);
}

/** Return the place behind the last loud sample: the end of the speech, without the pause that ended the turn. */
function lastLoud(samples) {
  const peak = samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
  return samples.findLastIndex((sample) => Math.abs(sample) > 0.1 * peak) + 1;
}
