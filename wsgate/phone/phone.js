// The page: forms and buttons, what is shown in each state, and window.wsgatePhone for tests.

import { Line } from "./line.js";
import { Meters, Ringer, audioContext, openMicrophone } from "./media.js";
import { messages, microphoneMessage } from "./messages.js";
import { hasOwnTurn, iceServers, recall, remember, serverAddress } from "./settings.js";

const CALL_TEXT = {
  preparing: "Preparing…",
  calling: "Calling…",
  ringing: "Ringing…",
  incoming: "Incoming call",
  connecting: "Connecting…",
  active: "Connected",
};
const REGISTRATION_TEXT = { none: "Not signed in", connecting: "Connecting…", lost: "Connection lost" };

const $ = (id) => document.getElementById(id);
const phone = $("phone");
const ringer = new Ringer();
const meters = new Meters(showLevel);

let server = { domain: "", path: "/ws", turn: null }; // phone.json of the daemon
let line = null;
let microphone = null;
let account = "";
let clock = null;
let registration = "none";
let call = { state: "none" };
let muted = false;
let tones = { sent: "", received: "" };
const levels = { local: 0, remote: 0 };

// What is shown

function showMessage(code, detail = {}) {
  const { text, hint = "", link, kind = "error" } = messages[code];
  phone.dataset.message = code;
  $("message").dataset.kind = kind;
  $("message-text").textContent = typeof text === "function" ? text(detail) : text;
  $("message-hint").textContent = hint;
  $("message-hint").hidden = !hint;
  $("message-link").hidden = !link;
  if (link) {
    const anchor = $("message-link").firstElementChild;
    anchor.href = anchor.textContent = link(detail);
  }
  $("message").hidden = false;
}

function hideMessage() {
  phone.dataset.message = "";
  $("message").hidden = true;
}

function showLevel(name, level) {
  levels[name] = level;
  const meter = $(`${name}-level`);
  meter.style.setProperty("--level", level.toFixed(3));
  meter.setAttribute("aria-valuenow", Math.round(level * 100));
}

function spell(seconds) {
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
}

function showRegistration() {
  phone.dataset.registration = registration;
  $("identity-text").textContent = registration === "registered" ? account : REGISTRATION_TEXT[registration];
  const signedIn = registration === "registered" || registration === "lost" || (registration === "connecting" && !$("line").hidden);
  $("sign-in").hidden = signedIn;
  $("line").hidden = !signedIn;
  $("sign-out").hidden = !signedIn;
  $("sign-in-button").disabled = registration === "connecting" || !window.JsSIP;
  $("sign-in-button").textContent = registration === "connecting" ? "Signing in…" : "Sign in";
}

function showCall() {
  const { state, peer = "" } = call;
  const inCall = state !== "none";
  phone.dataset.call = state;
  $("dial").hidden = $("dial-button").hidden = inCall;
  $("call").hidden = $("hang-up").hidden = !inCall;
  $("answer").hidden = state !== "incoming";
  $("mute").hidden = $("levels").hidden = state !== "connecting" && state !== "active";
  $("timer").hidden = state !== "active";
  $("keypad").hidden = inCall && state !== "active";
  $("hang-up-text").textContent = state === "incoming" ? "Decline" : state === "active" ? "Hang up" : "Cancel";
  showCallState();
  $("peer").textContent = peer;
  $("initial").textContent = peer.replace(/^sip:/i, "").slice(0, 1).toUpperCase();
  document.title = inCall ? `${peer} – ${CALL_TEXT[state]}` : "wsgate phone";
}

function showCallState() {
  const { state } = call;
  const interrupted = state === "active" && (phone.dataset.media === "disconnected" || phone.dataset.media === "failed");
  const text = interrupted ? "Connection interrupted…" : (CALL_TEXT[state] ?? "");
  $("call-state").textContent = state === "active" && muted ? `${text}, microphone off` : text;
}

function showMuted() {
  phone.dataset.muted = muted ? "yes" : "no";
  $("mute").setAttribute("aria-pressed", String(muted));
  showCallState();
}

function showTones() {
  $("tones").textContent = [tones.sent, tones.received && `received ${tones.received}`].filter(Boolean).join(" · ");
}

// Registration

function signIn() {
  hideMessage();
  audioContext(); // within the click, so that an incoming call may ring
  let [user, domain] = [$("user").value.trim().normalize("NFC"), $("domain").value.trim()];
  if (user.includes("@")) [user, domain] = user.replace(/^sip:/i, "").split("@");
  const password = $("password").value.normalize("NFC"); // as `wsgate user add` hashes it
  signOut();
  try {
    const address = serverAddress(server);
    if (!window.JsSIP.URI.parse(`sip:${user}@${domain}`)) throw new TypeError("bad-account");
    const options = {
      server: address,
      user,
      domain,
      password,
      iceServers: iceServers(server, user, password),
      ownTurn: hasOwnTurn(),
      relayOnly: $("relay").checked,
      dtmf: $("dtmf").value,
      ringSeconds: Number(new URLSearchParams(location.search).get("ring")) || 60,
    };
    const own = new Line(window.JsSIP, options, (name, detail) => own === line && handlers[name](detail));
    line = own;
  } catch (error) {
    showMessage(messages[error.message] ? error.message : "bad-account");
    return;
  }
  account = `${user}@${domain}`;
  remember();
  line.start();
}

function signOut() {
  line?.stop();
  line = null;
  registration = "none";
  endMedia();
  call = { state: "none" };
  showRegistration();
  showCall();
}

// The call

function missingForCalls() {
  if (!window.RTCPeerConnection) return "no-webrtc";
  if (!window.isSecureContext || !navigator.mediaDevices) return "insecure-page";
  return "";
}

async function openAudio() {
  const missing = missingForCalls();
  if (missing) {
    showMessage(missing);
    return null;
  }
  try {
    microphone = await openMicrophone();
  } catch (error) {
    showMessage(microphoneMessage(error));
    return null;
  }
  meters.add("local", microphone);
  return microphone;
}

function endMedia() {
  ringer.stop();
  meters.close();
  clearInterval(clock);
  for (const track of microphone?.getTracks() ?? []) track.stop();
  microphone = null;
  $("remote-audio").srcObject = null;
  muted = false;
  showMuted();
}

async function dial(target) {
  if (!line || call.state !== "none") return;
  hideMessage();
  audioContext();
  if (!line.canCall(target)) {
    showMessage("bad-target");
    $("target").focus();
    return;
  }
  startCall({ state: "preparing", peer: target, outgoing: true });
  $("hang-up").focus();
  const [own, stream] = [line, await openAudio()];
  // The person may have cancelled while the browser asked for the microphone.
  if (stream && own === line && call.state === "preparing") line.dial(target, stream);
  else dropCall();
}

async function answer() {
  if (call.state !== "incoming") return;
  ringer.stop();
  const [own, stream] = [line, await openAudio()];
  if (stream && own === line && call.state === "incoming") line.answer(stream);
  else if (call.state === "incoming") line.hangUp(480);
  else endMedia();
}

function startCall(next) {
  tones = { sent: "", received: "" };
  showTones();
  call = next;
  showCall();
}

function dropCall() {
  endMedia();
  call = { state: "none" };
  showCall();
  focusTarget();
}

function hangUp() {
  if (line?.busy) line.hangUp();
  else if (call.state === "preparing") dropCall();
}

function press(tone) {
  audioContext();
  if (call.state === "active") line.sendTone(tone);
  else if (call.state === "none") $("target").value += tone;
  const audio = $("remote-audio");
  if (audio.srcObject && audio.paused) playRemote();
}

function playRemote() {
  $("remote-audio").play().catch((error) => {
    if (error.name === "NotAllowedError") showMessage("playback-blocked");
  });
}

function focusTarget() {
  // Not on a touch screen, where it would open the keyboard over the keypad.
  if (!$("line").hidden && matchMedia("(pointer: fine)").matches) $("target").focus();
}

const handlers = {
  registration({ state, message, ...detail }) {
    const first = state === "registered" && $("line").hidden;
    registration = state;
    showRegistration();
    if (message) showMessage(message, detail);
    else if (state === "registered" && phone.dataset.message === "connection-lost") hideMessage();
    if (first) {
      $("password").value = "";
      focusTarget();
    }
    if (state === "none") $(message === "wrong-password" ? "password" : "user").focus();
  },

  call({ state, peer, outgoing, message, status, seconds }) {
    if (state === "none") {
      const shown = phone.dataset.message;
      dropCall();
      // What was shown during the call (a refused microphone) says more than "you declined".
      if (!shown || message !== "rejected") showMessage(message, { peer, status, duration: seconds ? spell(seconds) : "" });
      return;
    }
    if (state === "incoming") {
      hideMessage();
      startCall({ state, peer, outgoing });
      $("answer").focus();
    }
    call = { ...call, state };
    showCall();
    if (state === "incoming") ringer.start("bell");
    else if (state === "ringing") ringer.start("ringback");
    else ringer.stop();
    if (state === "connecting" && !outgoing) $("hang-up").focus();
    if (state === "active") startClock();
  },

  ice(state) {
    phone.dataset.media = state;
    showCallState();
  },

  remote(stream) {
    $("remote-audio").srcObject = stream;
    playRemote();
    meters.add("remote", stream);
  },

  tone({ tone, originator }) {
    if (originator === "remote") tones.received += tone;
    else tones.sent += tone;
    showTones();
  },
};

function startClock() {
  const begin = Date.now();
  const tick = () => {
    $("timer").textContent = spell((Date.now() - begin) / 1000);
  };
  tick();
  clearInterval(clock);
  clock = setInterval(tick, 1000);
}

// For tests and for whoever wants to look

window.wsgatePhone = {
  get state() {
    const { peer = "", state } = call;
    return { registration, account, call: state, peer, muted, levels: { ...levels }, tones: { ...tones }, message: phone.dataset.message };
  },
  call: dial,
  getStats: () => line?.stats() ?? Promise.resolve(null),
};

// Beginning

async function askDaemon() {
  try {
    const response = await fetch("phone.json", { cache: "no-store" });
    if (response.ok) server = { ...server, ...(await response.json()) };
  } catch {
    // Without it the page's own host and the usual path are taken; signing in tells what is wrong.
  }
}

function loadJsSIP() {
  return new Promise((resolve) => {
    const script = document.createElement("script");
    script.src = "jssip.js";
    script.onload = script.onerror = resolve;
    document.head.append(script);
  });
}

$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  signIn();
});
$("sign-out").addEventListener("click", () => {
  signOut();
  hideMessage();
  $("user").focus();
});
$("dial").addEventListener("submit", (event) => {
  event.preventDefault();
  dial($("target").value.trim());
});
$("answer").addEventListener("click", answer);
$("hang-up").addEventListener("click", hangUp);
$("mute").addEventListener("click", () => {
  muted = !muted;
  line.mute(muted);
  showMuted();
});
$("backspace").addEventListener("click", () => {
  $("target").value = $("target").value.slice(0, -1);
  $("target").focus();
});
$("keypad").addEventListener("click", ({ target }) => {
  const tone = target.closest("button")?.dataset.tone;
  if (tone) press(tone);
});
$("message-close").addEventListener("click", hideMessage);
document.addEventListener("keydown", ({ key, ctrlKey, altKey, metaKey }) => {
  if (call.state === "active" && /^[0-9*#]$/.test(key) && !ctrlKey && !altKey && !metaKey) press(key);
});
window.addEventListener("pagehide", () => line?.stop());

await Promise.all([askDaemon(), loadJsSIP()]);
recall(server);
showRegistration();
showCall();
if (!window.JsSIP) showMessage("no-jssip");
else if (missingForCalls()) showMessage(missingForCalls());
$($("user").value ? "password" : "user").focus();
phone.dataset.ready = "yes";
