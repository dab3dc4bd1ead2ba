// Talks to a server with @openai/agents-realtime, as it is published, and prints what it heard as one line of JSON.
//   node agents.mjs URL KEY QUESTION.pcm OTHER.pcm      (16 bit, 24 kHz)
import { readFileSync } from 'node:fs';
import { RealtimeAgent, RealtimeSession } from '@openai/agents-realtime';

const [url, apiKey, question, other] = process.argv.slice(2);
const PIECE_MS = 40;
const PIECE_BYTES = PIECE_MS * 48;
const PATIENCE_MS = 90_000;

class Call {
  constructor(model) {
    const agent = new RealtimeAgent({ name: 'test', instructions: 'Answer in one sentence.' });
    this.session = new RealtimeSession(agent, { transport: 'websocket', model, tracingDisabled: true });
    this.events = [];
    this.interruptions = 0;
    this.bytes = 0;
    this.errors = [];
    this.speech = Buffer.alloc(0);
    this.session.on('audio', (audio) => { this.bytes += audio.data.byteLength; });
    this.session.on('audio_interrupted', () => { this.interruptions += 1; });
    this.session.on('error', (error) => this.errors.push(JSON.stringify(error.error ?? error)));
    this.session.transport.on('*', (event) => this.events.push(event));
    this.url = `${url}?model=${model}`;
  }

  async open() {
    await this.session.connect({ apiKey, url: this.url });
    await this.until('session.updated');
  }

  startMicrophone() {
    this.microphone = setInterval(() => {
      const piece = Buffer.alloc(PIECE_BYTES);
      this.speech.copy(piece, 0, 0, PIECE_BYTES);
      this.speech = this.speech.subarray(Math.min(PIECE_BYTES, this.speech.length));
      this.session.sendAudio(piece.buffer.slice(piece.byteOffset, piece.byteOffset + PIECE_BYTES));
    }, PIECE_MS);
  }

  stopMicrophone() {
    clearInterval(this.microphone);
  }

  say(file) {
    this.speech = readFileSync(file);
  }

  async when(condition, what) {
    const end = Date.now() + PATIENCE_MS;
    while (!condition()) {
      if (this.errors.length) throw new Error(`${what}: ${this.errors}`);
      if (Date.now() > end) throw new Error(`${what}: waited in vain; ${this.events.map((event) => event.type)}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  async until(type, number = 1) {
    const found = () => this.events.filter((event) => event.type === type);
    await this.when(() => found().length >= number, type);
    return found()[number - 1];
  }
}

const call = new Call('mini');
await call.open();
call.startMicrophone();
call.say(question);
const spoken = (await call.until('response.done')).response;
const transcribed = await call.until('conversation.item.input_audio_transcription.completed');
await call.until('conversation.item.retrieved');
call.stopMicrophone();

call.session.transport.updateSessionConfig({ audio: { input: { turnDetection: null } } });
await call.until('session.updated', 2);
const pcm = readFileSync(other);
call.session.sendAudio(pcm.buffer.slice(pcm.byteOffset, pcm.byteOffset + pcm.length), { commit: true });
call.session.transport.requestResponse();
const pushed = (await call.until('response.done', 2)).response;

call.session.sendMessage('what is two plus two');
const written = (await call.until('response.done', 3)).response;
const history = call.session.history.map((item) => `${item.role} ${item.status}`);
call.session.close();

const long = new Call('long');
await long.open();
long.startMicrophone();
long.say(question);
await long.when(() => long.bytes > 48_000, 'a second of speech');
long.say(other);
const interrupted = (await long.until('response.done')).response;
await long.when(() => long.interruptions > 0, 'audio_interrupted');
const truncated = await long.until('conversation.item.truncated');
await long.until('conversation.item.retrieved', 1);
await long.until('response.created', 2);
long.stopMicrophone();
long.session.close();

const transcript = (response) => response.output[0].content[0].transcript;
console.log(JSON.stringify({
  spoken: transcript(spoken),
  pushed: transcript(pushed),
  written: transcript(written),
  heard: transcribed.transcript,
  seconds: call.bytes / 48_000,
  history,
  interrupted: [interrupted.status, interrupted.status_details.reason],
  playedMs: truncated.audio_end_ms,
  errors: [...call.errors, ...long.errors],
}));
process.exit(0);
