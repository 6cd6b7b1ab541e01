// What the sign-in form holds beyond the account: remembered in the browser, overridden by the query, never a password.
// `server` is the daemon's phone.json: {domain, path, turn}.

const STORED = ["user", "domain", "server", "turn", "turn-user", "relay", "dtmf"];
const KEY = "wsgate-phone";

const $ = (id) => document.getElementById(id);
const ownAddress = (path) => `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${path}`;

/** RTCIceServers from the form, else from the daemon, which may share the SIP account with its TURN server. */
export function iceServers(server, user, password) {
  const own = $("turn").value.split(",").map((url) => url.trim()).filter(Boolean);
  const credentials = [$("turn-user").value.trim(), $("turn-password").value];
  if (own.length === 0 && !server.turn) return [];
  if (own.length === 0 && !server.turn.same_credentials && !credentials[0]) return [];
  return [{ urls: own.length ? own : server.turn.urls, username: credentials[0] || user, credential: credentials[1] || password }];
}

/** Whether a person entered a TURN server or account: it then counts, not what the registration brings. */
export function hasOwnTurn() {
  return Boolean($("turn").value.trim() || $("turn-user").value.trim());
}

/** The WebSocket address to use; throws a TypeError whose message is a code of messages.js. */
export function serverAddress(server) {
  const address = $("server").value.trim() || ownAddress(server.path);
  if (!/^wss?:\/\/[^/\s]+/i.test(address)) throw new TypeError("bad-server");
  if (location.protocol === "https:" && /^ws:/i.test(address)) throw new TypeError("insecure-server");
  return address;
}

export function remember() {
  const settings = {};
  for (const id of STORED) settings[id] = $(id).type === "checkbox" ? $(id).checked : $(id).value;
  localStorage.setItem(KEY, JSON.stringify(settings));
}

/** Fills the form: what the daemon says, then what the browser remembers, then the query. */
export function recall(server) {
  const query = new URLSearchParams(location.search);
  const settings = remembered();
  $("domain").value = server.domain || location.hostname;
  for (const id of STORED) fill(id, settings[id]);
  for (const id of STORED) fill(id, query.get(id.replace("-", "")));
  fill("turn-password", query.get("turnpass"));
  $("server").placeholder = ownAddress(server.path);
  if (server.turn) $("turn").placeholder = server.turn.urls.join(", ");
}

function remembered() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch {
    localStorage.removeItem(KEY); // unreadable: begin afresh
    return {};
  }
}

function fill(id, value) {
  if (value === null || value === undefined) return;
  if ($(id).type === "checkbox") $(id).checked = value === true || value === "1";
  else $(id).value = value;
}
