"""Test what the page says of a connection that is refused or lost, by its module in Node.js with a stand-in browser."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from tests.serve.stand_in import PAGE

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="no node on PATH")
PROGRAM = """
globalThis.CustomEvent ??= class extends Event {
  constructor(type, options) { super(type); this.detail = options.detail; }
};
globalThis.document = { baseURI: "https://voice.test/" };
const delays = [];
globalThis.setTimeout = (next, delay) => { delays.push(Math.round(delay)); pending = next; };
globalThis.clearTimeout = () => {};
Math.random = () => 0.5;
let pending, socket, now = 0;
globalThis.performance = { now: () => now };
globalThis.WebSocket = class { constructor() { socket = this; } };
const responses = {};
globalThis.fetch = async (url, { method }) => {
  const [status, message] = responses[method] ?? [0];
  if (!status) throw new TypeError("no route");
  return { status, json: async () => (message ? { error: { message } } : JSON.parse("<html>")) };
};
const { Connection } = await import(process.argv[1]);
const settle = () => new Promise((resolve) => setImmediate(resolve));

async function refused(given, token = "") {
  Object.assign(responses, { GET: undefined, POST: undefined }, given);
  const connection = new Connection(), states = [];
  connection.token = token;
  connection.addEventListener("state", ({ detail: { state, message } }) => states.push([state, message]));
  connection.connect();
  socket.onclose({ code: 1006, reason: "" });
  for (let i = 0; i < 5; i++) await settle();
  return states.at(-1);
}

async function lost({ code, reason = "", seconds = 0, times, session = true, error }) {
  const connection = new Connection(), states = [];
  connection.addEventListener("state", ({ detail: { state, message } }) => states.push([state, message]));
  connection.connect();
  delays.length = 0;
  for (let i = 0; i < times && connection.state === "connecting"; i++) {
    socket.onopen?.();
    if (session) socket.onmessage({ data: '{"type": "session.created"}' });
    if (error) socket.onmessage({ data: JSON.stringify({ type: "error", error: { message: error } }) });
    now += 1000 * seconds;
    socket.onclose({ code, reason });
    await settle();
    if (connection.state === "waiting") pending();
  }
  return [delays.slice(), ...states.filter(([state]) => state === "waiting" || state === "closed").at(-1)];
}

console.log(JSON.stringify([
  await refused({}),
  await refused({ GET: [401, "no"] }),
  await refused({ GET: [401, "no"] }, "x"),
  await refused({ GET: [403, "Host 'a' is not this server's"] }),
  await refused({ GET: [200], POST: [403, "Origin 'b' may not call this server"] }),
  await refused({ GET: [403] }, "x"),
  await refused({ GET: [200], POST: [404, "Not Found"] }),
  await refused({ GET: [503, "the server is about to end"] }),
  await refused({ GET: [502] }),
  await lost({ code: 1011, reason: "the server had an error", times: 20 }),
  await lost({ code: 1011, session: false, times: 20 }),
  await lost({ code: 1011, reason: "the server had an error", seconds: 40, times: 8 }),
  await lost({ code: 1013, session: false, error: "64 sessions are open", times: 8 }),
  await lost({ code: 1000, reason: "idle", times: 2 }),
]));
"""


@pytest.fixture(scope="module")
def found() -> list:
    command = [NODE, "--input-type=module", "--eval", PROGRAM, str(PAGE / "connection.js")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_refused_connection_is_explained(found):
    assert found[:3] == [
        ["waiting", "The server cannot be reached."],
        ["token", "The server wants a token."],
        ["token", "The server does not accept this token."],
    ]
    assert found[3:6] == [
        ["closed", "The server refuses this page. Host 'a' is not this server's"],
        ["closed", "The server refuses this page. Origin 'b' may not call this server"],
        ["closed", "A server or proxy refuses this page."],
    ]
    assert found[6][0] == "waiting" and "a proxy in between has to pass WebSockets on" in found[6][1]
    assert found[7] == ["waiting", "The server cannot take the connection now: the server is about to end"]
    assert found[8] == ["waiting", "The server cannot take the connection now: status 502"]


def test_a_lost_connection_is_tried_again_later_and_later(found):
    errors, before_session, long_sessions, full, idle = found[9:]
    assert errors == [[500, 1000, 2000, 4000, 8000], "closed", errors[2]]
    assert errors[2] == "the server had an error, also when it was tried again. Its log says why."
    assert before_session[:2] == [errors[0], "closed"] and "The server had an error" in before_session[2]
    assert long_sessions == [[500] * 8, "waiting", "the server had an error"]
    assert full == [[500, 1000, 2000, 4000, 8000, 15000, 15000, 15000], "waiting", "64 sessions are open"]
    assert idle == [[], "closed", "idle"]
