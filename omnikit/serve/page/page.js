/** The page: it joins connection, microphone, player, conversation and history with the controls of index.html. */

import { RATE, decodeFile } from "./audio_format.js";
import { Connection, listModels } from "./connection.js";
import { Conversation } from "./conversation.js";
import { History, seconds } from "./history.js";
import { INSECURE, Microphone } from "./microphone.js";
import { Player } from "./player.js";
import { pauseRecording } from "./recording.js";
import { TalkButton } from "./talk_button.js";
import { Tape } from "./waveform.js";

const LONGEST_FILE = 120; // seconds; the server has its own, lower limit
const LARGEST_FILE = 50 * 2 ** 20; // bytes
const TOKEN = "omnikit token"; // its name in the session's storage

const at = (id) => document.getElementById(id);

const player = new Player();
const connection = new Connection();
const conversation = new Conversation(connection, player);
const history = new History(at("turns"));
const tape = new Tape(at("tape"));
const microphone = new Microphone(takeFrame, loseMicrophone);

let listening = false; // hands-free, with an open microphone
let holds = false; // the talk button is held

function takeFrame(frame, time) {
  if (conversation.hear(frame, time)) tape.addSamples(frame, time);
}

function loseMicrophone() {
  stopListening();
  conversation.discardSpeech();
  complain("The microphone was unplugged or switched off.");
}

// messages

/** Show a message that needs attention, or none; `again` offers to connect. */
function complain(text, again = false) {
  const focused = at("problem").contains(document.activeElement);
  at("problem").hidden = !text;
  at("problem").querySelector("p").textContent = text;
  at("reconnect").hidden = !again;
  if (focused && !text) at("talk").focus();
}

/** Run what a control does, and show the error that it ends with. */
async function attempt(action) {
  try {
    await action();
  } catch (error) {
    complain(error.message);
  }
}

// connection

const NEW_SESSION = "The session ended here: the server does not remember the turns below.";
const STATES = {
  closed: "not connected",
  connecting: "connecting …",
  open: "connected",
  waiting: "trying again …",
  token: "token needed",
};

connection.addEventListener("state", ({ detail: { state, message } }) => {
  at("connection").dataset.state = state;
  at("connection").querySelector("span").textContent = STATES[state];
  if (state === "open") complain(window.isSecureContext ? "" : INSECURE);
  else if (message) complain(message, state === "closed" || state === "waiting");
  const asks = state === "token";
  if (asks && at("token-form").hidden) setTimeout(() => at("token").focus());
  at("token-form").hidden = !asks;
  if (state === "closed" || state === "waiting") history.divide(NEW_SESSION);
  if (state !== "open" && state !== "connecting") stopListening();
});

async function start() {
  connection.token = sessionStorage.getItem(TOKEN) ?? "";
  showModels(await listModels(connection.token));
  connection.connect();
}

function showModels(models) {
  connection.model ??= models[0] ?? null;
  at("model").replaceChildren(...models.map((name) => new Option(name, name, false, name === connection.model)));
  at("model-choice").hidden = models.length < 2;
  at("only-model").hidden = models.length !== 1;
  at("only-model").textContent = models[0] ?? "";
}

/** End the session and begin another one, which knows nothing of the turns before. */
async function beginSession() {
  stopListening();
  await conversation.interrupt();
  connection.close();
  complain("");
  connection.connect();
}

async function beginAnew() {
  await beginSession();
  conversation.forget();
  history.clear();
  at("empty").hidden = false;
  at("latency").querySelector("b").textContent = "–";
  at("caption").textContent = "";
}

at("model").addEventListener("change", () => {
  connection.model = at("model").value;
  beginSession();
});
at("anew").addEventListener("click", beginAnew);
at("reconnect").addEventListener("click", () => connection.connect());
at("dismiss").addEventListener("click", () => complain(""));
at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, at("token").value.trim());
  at("token").value = "";
  complain("");
  start();
});

// questions

async function beginSpeech() {
  holds = true;
  pauseRecording();
  showTalk();
  const [, opened] = await Promise.allSettled([player.resume(), microphone.open()]);
  if (opened.status === "rejected") complain(opened.reason.message);
  else if (holds) conversation.beginSpeech(microphone.preroll());
  else microphone.releaseLater();
}

function endSpeech() {
  holds = false;
  showTalk();
  conversation.endSpeech(performance.now());
  microphone.releaseLater();
}

async function toggleListening() {
  if (listening) {
    stopListening();
    return;
  }
  pauseRecording();
  await player.resume();
  await microphone.open();
  if (!conversation.handsFree) { // the mode was changed while the browser asked for the microphone
    if (!holds) microphone.close();
    return;
  }
  connection.connect();
  listening = true;
  showTalk();
}

function stopListening() {
  if (!listening) return;
  listening = false;
  microphone.close();
  conversation.discardSpeech();
  showTalk();
}

/** Send a sound file as a question. */
async function ask(bytes, name) {
  pauseRecording();
  await player.resume();
  const samples = await decodeFile(bytes).catch(() => {
    throw new Error(`${name || "The file"} is not a sound file that this browser can read.`);
  });
  if (samples.length > LONGEST_FILE * RATE) throw new Error(`${name} is longer than ${LONGEST_FILE} seconds.`);
  await conversation.sendRecording(samples, name);
}

async function askFile(file) {
  if (!file) return;
  if (file.size > LARGEST_FILE) throw new Error(`${file.name} is larger than ${LARGEST_FILE / 2 ** 20} MiB.`);
  await ask(await file.arrayBuffer(), file.name);
}

async function askShipped(button) {
  const file = await fetch(button.dataset.question);
  if (!file.ok) throw new Error(`The recording could not be loaded: ${file.status} ${file.statusText}`);
  await ask(await file.arrayBuffer(), button.textContent);
}

new TalkButton(at("talk"), {
  begin: beginSpeech,
  end: endSpeech,
  toggle: () => attempt(toggleListening),
  handsFree: () => conversation.handsFree,
});

for (const radio of document.getElementsByName("mode")) {
  radio.addEventListener("change", () => {
    stopListening();
    conversation.configure({ handsFree: radio.value === "free" });
    showTalk();
  });
}

for (const button of document.querySelectorAll("[data-question]")) {
  button.addEventListener("click", () => attempt(() => askShipped(button)));
}

at("write").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("text").value.trim();
  if (!text) return;
  at("text").value = "";
  pauseRecording();
  attempt(async () => {
    await player.resume();
    await conversation.sendText(text);
  });
});

at("file").addEventListener("change", () => {
  const [file] = at("file").files;
  at("file").value = "";
  attempt(() => askFile(file));
});

let dragged = 0; // elements of the page that the dragged file is over
document.addEventListener("dragenter", (event) => showDrop(event, 1));
document.addEventListener("dragleave", (event) => showDrop(event, -1));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  showDrop(event, -dragged);
  const [file] = event.dataTransfer.files;
  attempt(() => askFile(file));
});

function showDrop(event, change) {
  dragged = Math.max(0, dragged + change);
  at("drop").hidden = dragged === 0 || !event.dataTransfer.types.includes("Files");
}

// answers

at("stop").addEventListener("click", () => conversation.interrupt());
document.addEventListener("keydown", (event) => event.key === "Escape" && conversation.interrupt());
at("transcribes").addEventListener("change", () => conversation.configure({ transcribes: at("transcribes").checked }));

conversation.addEventListener("problem", ({ detail }) => complain(detail));
conversation.addEventListener("removed", ({ detail: turn }) => history.remove(turn));
conversation.addEventListener("busy", showTalk);
conversation.addEventListener("turn", ({ detail: turn }) => {
  at("empty").hidden = true;
  history.show(turn);
  if (turn.status === "answering") at("caption").textContent = turn.answer;
  if (!turn.open && !turn.announced) announce(turn);
});
player.addEventListener("started", () => {
  const turn = conversation.turns.findLast(({ latency }) => latency !== null);
  at("latency").querySelector("b").textContent = seconds(turn.latency);
  tape.addGap(turn.asked, turn.asked + turn.latency);
});
player.addEventListener("played", ({ detail: { peak, at: time, received, played, underruns } }) => {
  tape.add("answer", peak, time);
  Object.assign(at("tape").dataset, { received, played, underruns }); // counts of samples, for tests and the curious
});

/** Have screen readers read the answer's text, once it is not spoken any more. */
function announce(turn) {
  turn.announced = true;
  at("spoken-text").textContent = turn.note || turn.answer;
}

/** Show on the talk button what it does now. */
function showTalk() {
  const free = conversation.handsFree;
  const live = free ? listening : holds;
  const words = free ? ["Start listening", "Listening: speak"] : ["Hold to talk", "Listening: let go to send"];
  at("talk").querySelector("span").textContent = words[Number(live)];
  at("talk").classList.toggle("live", live);
  if (free) at("talk").setAttribute("aria-pressed", String(listening));
  else at("talk").removeAttribute("aria-pressed");
  at("talk-hint").textContent = free
    ? "Your turn ends when you pause. Speak over an answer, or press Escape, to stop it."
    : "Hold the button or the space bar while you speak. Escape stops the answer.";
  if (!conversation.busy && document.activeElement === at("stop")) at("talk").focus(); // not lost with the button
  at("stop").disabled = !conversation.busy;
}

start();
