/** The WebSocket to the server: opened again when it is lost, with a reason in words where it cannot be. */

const FIRST_DELAY = 500; // ms before the first new try, doubled for each further one
const LONGEST_DELAY = 15_000;
const STEADY = 30_000; // ms of a session after which the next new try is a first one again
const SERVER_ERROR = 1011;
const MOST_ERRORS = 5; // new tries after errors of the server, each of which it logs
const PROXY = "The server answers, but not over a WebSocket: a proxy in between has to pass WebSockets on.";
const COMES_BACK = new Set([1001, 1005, 1006, 1011, 1012, 1013]); // codes of a close after which a new try makes sense

/** Return the headers that carry the token. */
function authorization(token) {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

/**
 * Call the server.
 *
 * @returns {Promise<{status: number, body: object}>} the status is 0 if it cannot be reached, the body empty if it is
 *   not JSON
 */
async function call(path, method, token) {
  try {
    const answer = await fetch(new URL(path, document.baseURI), { method, headers: authorization(token) });
    return { status: answer.status, body: await answer.json().catch(() => ({})) };
  } catch {
    return { status: 0, body: {} };
  }
}

/** Return the names of the server's models; there are none if it does not tell. */
export async function listModels(token) {
  const { body } = await call("v1/models", "GET", token);
  return body.data?.map(({ id }) => id) ?? [];
}

/**
 * Tells by events: `message` each event of the server, `state` each change of the connection. States are `closed`,
 * `connecting`, `open`, `waiting` (for the next try) and `token` (the server wants another one).
 */
export class Connection extends EventTarget {
  constructor() {
    super();
    this.state = "closed";
    this.model = null;
    this.token = "";
    this.waiting = []; // events to send when it is open
    this.tries = 0;
  }

  /** Open the connection, or do nothing if it is open or about to be. */
  connect() {
    if (this.state === "open" || this.state === "connecting") return;
    clearTimeout(this.timer);
    const url = new URL("v1/realtime", document.baseURI);
    url.protocol = url.protocol.replace("http", "ws");
    if (this.model) url.searchParams.set("model", this.model);
    const protocols = this.token ? ["realtime", `openai-insecure-api-key.${this.token}`] : ["realtime"];
    this.#change("connecting");
    try {
      this.#listen(new WebSocket(url, protocols));
    } catch {
      this.#change("token", "A browser cannot send the signs of this token.");
    }
  }

  #listen(socket) {
    this.socket = socket;
    this.reached = false; // whether the server took the connection
    this.began = null; // time at which a session began
    this.complaint = ""; // the server's last error
    socket.onopen = () => (this.reached = true);
    socket.onmessage = ({ data }) => socket === this.socket && this.#take(JSON.parse(data));
    socket.onclose = (close) => socket === this.socket && this.#closed(close);
  }

  #take(event) {
    if (event.type === "session.created") {
      this.began = performance.now();
      this.#change("open");
      this.dispatchEvent(new CustomEvent("message", { detail: event }));
      for (const waiting of this.waiting.splice(0)) this.send(waiting);
      return;
    }
    if (event.type === "error") this.complaint = event.error.message;
    this.dispatchEvent(new CustomEvent("message", { detail: event }));
  }

  /** Send an event, once the connection is open; opens it if need be. */
  send(event) {
    if (this.state === "open") {
      this.socket.send(JSON.stringify(event));
      return;
    }
    this.waiting.push(event);
    this.connect();
  }

  /** Close the connection for good. */
  close() {
    clearTimeout(this.timer);
    const { socket } = this;
    this.socket = null;
    socket?.close(1000);
    this.waiting = [];
    if (this.state !== "closed") this.#change("closed");
  }

  async #closed({ code, reason }) {
    this.socket = null;
    if (this.began !== null && performance.now() - this.began >= STEADY) this.tries = 0;
    const words = (this.began === null && this.complaint) || reason;
    if (!this.reached) {
      await this.#diagnose();
    } else if (code === SERVER_ERROR && this.tries >= MOST_ERRORS) {
      this.waiting = [];
      this.tries = 0;
      this.#change("closed", `${words || "The server had an error"}, also when it was tried again. Its log says why.`);
    } else if (COMES_BACK.has(code)) {
      this.#retry(words || "The connection was lost.");
    } else {
      this.waiting = [];
      this.#change("closed", words || "The server closed the session.");
    }
  }

  /** Find out why a connection was refused, which browsers do not tell. */
  async #diagnose() {
    let { status, body } = await call("v1/models", "GET", this.token);
    // with this method, as with a WebSocket, a browser tells the server from which page it calls
    if (status === 200) ({ status, body } = await call("v1/realtime", "POST", this.token));
    if (this.socket || this.state !== "connecting") return; // closed or opened again meanwhile
    const words = body.error?.message;
    if (status === 401) {
      this.#change("token", this.token ? "The server does not accept this token." : "The server wants a token.");
    } else if (status === 403) {
      this.waiting = [];
      this.#change("closed", words ? `The server refuses this page. ${words}` : "A server or proxy refuses this page.");
    } else if (status === 0) {
      this.#retry("The server cannot be reached.");
    } else if (status === 429 || status >= 500) {
      this.#retry(`The server cannot take the connection now: ${words ?? `status ${status}`}`);
    } else {
      this.#retry(PROXY);
    }
  }

  #retry(message) {
    const delay = Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** this.tries++) * (0.75 + 0.5 * Math.random());
    this.waiting = []; // a question to a server that is away is not kept for later
    this.timer = setTimeout(() => this.connect(), delay);
    this.#change("waiting", message);
  }

  #change(state, message = "") {
    this.state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: { state, message } }));
  }
}
