// One registration and its call, on JsSIP. What happens comes out as plain events, `emit(name, detail)`:
//   registration {state, message?, server?, status?}     state: none, connecting, registered, lost
//   call         {state, peer, outgoing, message?, ...}  state: none, calling, ringing, incoming, connecting, active
//   ice          state of the ICE connection             tone   a digit sent or received {tone, originator}
//   remote       the other side's MediaStream

import { callMessage, registrationMessage } from "./messages.js";

const GATHER_LIMIT_MS = 2000; // JsSIP does not trickle: an unreachable TURN server may not hold the call up
const GATHER_REST_MS = 150; // what still comes once the relay candidate, the slowest, is there
const RELAY_LIMIT_MS = 6000; // how long a relay candidate is waited for when nothing else is allowed
const NO_MEDIA_LIMIT_MS = 20000; // an answered call without ICE connection; browsers wait far longer before they say "failed"
const RETRY_MS = 15000; // a registration refused for the moment (5xx, timeout)
const REFUSED_BY_TURN = new Set([400, 401, 403, 431, 437, 438, 441, 486]);

/** Whether the server of a wss: or ws: address answers HTTP: tells a refused WebSocket from no server or certificate. */
async function connectionMessage(server) {
  try {
    await fetch(server.replace(/^ws/i, "http"), { mode: "no-cors", cache: "no-store", credentials: "omit" });
    return "websocket-refused";
  } catch {
    const elsewhere = new URL(server).host !== location.host;
    return server.startsWith("wss:") && elsewhere ? "certificate" : "server-unreachable";
  }
}

/** What X-Turn-Credentials of a 200 to REGISTER hands out, as an RTCIceServer; null where there is nothing. */
export function handedOut(message) {
  if (typeof message !== "string" || !message.startsWith("SIP/2.0 200")) return null;
  const header = /^X-Turn-Credentials:[ \t]*(.*)$/im.exec(message.split("\r\n\r\n", 1)[0])?.[1] ?? "";
  const { username, password, uris } = Object.fromEntries([...header.matchAll(/(\w+)="([^"]*)"/g)].map(([, name, value]) => [name, value]));
  return username && uris ? { urls: uris.split(","), username, credential: password } : null;
}

/** A socket for JsSIP that shows each message to `heard` before it: JsSIP tells of the first 200 to REGISTER alone. */
function overheard(socket, heard) {
  let deliver = null;
  const listen = (data) => {
    heard(data);
    deliver?.(data);
  };
  Object.defineProperty(socket, "ondata", { get: () => listen, set: (callback) => (deliver = callback) });
  return socket;
}

export class Line {
  #ua;
  #options;
  #emit;
  #registered = false; // ever: before the first time a failure ends the attempt, later it is retried
  #stopped = false;
  #session = null;
  #call = null; // {peer, outgoing, state, peerConnection, gathering, accepted, silence, startedAt, iceFailed, message}
  #retry = null;
  #turn = null; // what the newest 200 to REGISTER handed out

  /**
   * options: server (ws/wss address), user, domain, password, iceServers, ownTurn (no other than those), relayOnly, dtmf ("rtp" or "info"), ringSeconds.
   * Throws TypeError where user and domain make no SIP address or server is no WebSocket address.
   */
  constructor(JsSIP, options, emit) {
    this.#options = options;
    this.#emit = emit;
    this.#ua = new JsSIP.UA({
      sockets: [overheard(new JsSIP.WebSocketInterface(options.server), (data) => (this.#turn = handedOut(data) ?? this.#turn))],
      uri: `sip:${options.user}@${options.domain}`,
      authorization_user: options.user,
      password: options.password,
      no_answer_timeout: options.ringSeconds,
      user_agent: "wsgate phone",
    });
    this.#ua.on("connecting", () => this.#registration("connecting"));
    this.#ua.on("registered", () => this.#onRegistered());
    this.#ua.on("registrationFailed", (event) => this.#onRegistrationFailed(event));
    this.#ua.on("disconnected", () => this.#onDisconnected());
    this.#ua.on("newRTCSession", ({ originator, session }) => {
      if (originator === "remote") this.#onIncoming(session);
    });
  }

  start() {
    this.#ua.start();
  }

  /** Hangs up, removes the registration and closes the connection. */
  stop() {
    this.#stopped = true;
    clearTimeout(this.#retry);
    if (this.#session) this.hangUp();
    this.#ua.stop();
  }

  get busy() {
    return this.#session !== null;
  }

  get peerConnection() {
    return this.#call?.peerConnection ?? null;
  }

  /** Whether a call to `target` (a number, a user, user@domain, a SIP address) can be placed at all; not sips:, which JsSIP lacks. */
  canCall(target) {
    const number = /^(tel:)?\+?[\d*#][\d*#\s().-]*$/i.test(target);
    const address = /^(sip:)?[^\s@:<>"]+(@[^\s@<>"]+)?$/i.test(target);
    return (number || address) && this.#ua.normalizeTarget(target) !== undefined;
  }

  dial(target, stream) {
    this.#call = { peer: target, outgoing: true, state: "preparing" };
    this.#session = this.#ua.call(target, { ...this.#media(stream), eventHandlers: this.#handlers() });
  }

  answer(stream) {
    this.#state("connecting");
    this.#session.answer(this.#media(stream));
  }

  /** Ends the call in whatever state it is; an incoming one is declined, or refused with `status`. */
  hangUp(status = 603) {
    const session = this.#session;
    if (!session || session.isEnded()) return;
    const refuse = session.direction === "incoming" && !session.isEstablished();
    session.terminate(refuse ? { status_code: status } : {});
  }

  mute(muted) {
    if (muted) this.#session.mute({ audio: true });
    else this.#session.unmute({ audio: true });
  }

  sendTone(tone) {
    const sender = this.peerConnection?.getSenders().find(({ track }) => track?.kind === "audio");
    const inAudio = this.#options.dtmf !== "info" && sender?.dtmf?.canInsertDTMF;
    if (inAudio) sender.dtmf.ontonechange = ({ tone: sent }) => sent && this.#emit("tone", { tone: sent, originator: "local" });
    this.#session.sendDTMF(tone, { transportType: inAudio ? "RFC2833" : "INFO", interToneGap: 70 });
  }

  /** A summary of the call's statistics: candidate types of the selected pair, bytes and packets of the audio; null without call. */
  async stats() {
    if (!this.peerConnection) return null;
    const reports = new Map(await this.peerConnection.getStats());
    const all = (type) => [...reports.values()].filter((report) => report.type === type);
    const selected = reports.get(all("transport")[0]?.selectedCandidatePairId);
    const pair = selected ?? all("candidate-pair").find((report) => report.selected);
    const local = reports.get(pair?.localCandidateId);
    const inbound = all("inbound-rtp")[0];
    return {
      localCandidate: local?.candidateType ?? null,
      remoteCandidate: reports.get(pair?.remoteCandidateId)?.candidateType ?? null,
      relayProtocol: local?.relayProtocol ?? null,
      bytesSent: all("outbound-rtp")[0]?.bytesSent ?? 0,
      bytesReceived: inbound?.bytesReceived ?? 0,
      packetsReceived: inbound?.packetsReceived ?? 0,
      packetsLost: inbound?.packetsLost ?? 0,
    };
  }

  // Registration

  #registration(state, detail = {}) {
    if (!this.#stopped) this.#emit("registration", { state, server: this.#options.server, ...detail });
  }

  #onRegistered() {
    this.#registered = true;
    this.#registration("registered");
  }

  #onRegistrationFailed({ response, cause }) {
    if (cause === "Connection Error") return; // 'disconnected' follows and says more
    const status = response?.status_code ?? 408;
    const message = registrationMessage(status);
    if (!this.#registered || message === "wrong-password" || message === "unknown-user") {
      this.#giveUp(message, { status });
      return;
    }
    this.#registration("lost", { message, status });
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => this.#ua.isConnected() && this.#ua.register(), RETRY_MS);
  }

  async #onDisconnected() {
    if (this.#stopped) return;
    if (this.#registered) {
      this.#registration("lost", { message: "connection-lost" });
      return;
    }
    this.stop();
    const { server } = this.#options;
    this.#emit("registration", { state: "none", server, message: await connectionMessage(server) });
  }

  #giveUp(message, detail) {
    this.#registration("none", { message, ...detail });
    this.stop();
  }

  // The call

  #media(stream) {
    const { ownTurn, relayOnly } = this.#options;
    const iceServers = this.#turn && !ownTurn ? [this.#turn] : this.#options.iceServers;
    return {
      mediaStream: stream,
      mediaConstraints: { audio: true, video: false },
      pcConfig: { iceServers, iceTransportPolicy: relayOnly ? "relay" : "all" },
    };
  }

  #handlers() {
    return {
      peerconnection: ({ peerconnection }) => this.#watch(peerconnection),
      icecandidate: (event) => this.#onCandidate(event),
      sending: () => this.#state("calling"),
      progress: () => this.#call.outgoing && this.#state("ringing"),
      accepted: () => this.#onAccepted(),
      ended: (event) => this.#onEnded(event, true),
      failed: (event) => this.#onEnded(event, false),
      newDTMF: ({ originator, dtmf }) => this.#emit("tone", { tone: dtmf.tone, originator }),
    };
  }

  #state(state, detail = {}) {
    if (!this.#call || (state !== "none" && this.#call.state === state)) return;
    const { peer, outgoing } = this.#call;
    this.#call.state = state;
    this.#emit("call", { state, peer, outgoing, ...detail });
  }

  #onIncoming(session) {
    if (this.#session) {
      session.terminate({ status_code: 486 });
      return;
    }
    const { uri, display_name: name } = session.remote_identity;
    const address = uri.host === this.#options.domain && uri.user ? uri.user : uri.toAor().replace(/^sips?:/, "");
    this.#session = session;
    this.#call = { peer: name || address, outgoing: false, state: "none" };
    for (const [event, handler] of Object.entries(this.#handlers())) session.on(event, handler);
    this.#state("incoming");
  }

  /** Follows a new peer connection: its candidates before the offer or answer goes out, its state and streams after. */
  #watch(peerConnection) {
    const call = this.#call;
    call.peerConnection = peerConnection;
    const { relayOnly } = this.#options;
    let relayed = false;
    let refused = false;
    const noRelay = () => {
      if (relayOnly && !relayed && this.#call === call) this.#abandon(refused ? "turn-refused" : "no-turn");
    };
    const limit = setTimeout(noRelay, RELAY_LIMIT_MS);
    // These run before JsSIP's own listeners, which would send the offer with no candidate in it.
    peerConnection.addEventListener("icecandidateerror", ({ errorCode }) => {
      refused ||= REFUSED_BY_TURN.has(errorCode);
    });
    peerConnection.addEventListener("icecandidate", ({ candidate }) => {
      if (candidate?.candidate.includes(" typ relay")) {
        relayed = true;
        clearTimeout(limit);
      } else if (!candidate) noRelay();
    });
    peerConnection.addEventListener("icegatheringstatechange", () => {
      if (peerConnection.iceGatheringState !== "complete") return;
      clearTimeout(limit);
      noRelay();
    });
    const onIce = () => {
      const state = peerConnection.iceConnectionState;
      call.iceFailed ||= state === "failed";
      this.#emit("ice", state);
      this.#settle();
    };
    // Capturing, or JsSIP ends the call before it is known why.
    peerConnection.addEventListener("iceconnectionstatechange", onIce, { capture: true });
    peerConnection.addEventListener("track", ({ track, streams }) => this.#emit("remote", streams[0] ?? new MediaStream([track])));
  }

  /** JsSIP waits for the end of gathering; `ready` sends what there is. */
  #onCandidate({ candidate, ready }) {
    const call = this.#call;
    if (!candidate.candidate.includes(" typ relay")) {
      call.gathering ??= setTimeout(ready, GATHER_LIMIT_MS);
      return;
    }
    clearTimeout(call.gathering);
    call.gathering = setTimeout(ready, GATHER_REST_MS);
  }

  #onAccepted() {
    if (!this.#call) return;
    this.#call.accepted = true;
    this.#state("connecting");
    this.#settle();
  }

  /** Follows the ICE state of an accepted call: active once connected, ended when that does not come or is lost for long. */
  #settle() {
    const call = this.#call;
    if (!call?.accepted) return;
    const ice = call.peerConnection?.iceConnectionState;
    if (ice !== "connected" && ice !== "completed") {
      call.silence ??= setTimeout(() => this.#abandon(call.startedAt ? "media-lost" : "ice-failed"), NO_MEDIA_LIMIT_MS);
      return;
    }
    clearTimeout(call.silence);
    call.silence = null;
    call.startedAt ??= Date.now();
    this.#state("active");
  }

  /** Ends the call for a reason of our own that the person must see; an answered one tells the other side too. */
  #abandon(message) {
    this.#call.message = message;
    if (this.#call.accepted) this.#session.terminate({ status_code: 408, reason_phrase: "No media" });
    else this.hangUp(480);
  }

  #onEnded(event, established) {
    const call = this.#call;
    if (!call) return;
    clearTimeout(call.gathering);
    clearTimeout(call.silence);
    const seconds = call.startedAt ? Math.round((Date.now() - call.startedAt) / 1000) : 0;
    const message = call.message ?? this.#reason(call, event, established);
    this.#session = null;
    this.#state("none", { message, status: event.message?.status_code ?? 0, seconds });
    this.#call = null;
  }

  #reason(call, { originator, message, cause }, established) {
    const iceFailed = call.iceFailed || cause === "RTP Timeout";
    const toldSo = originator === "remote" && /cause=408/.test(message?.getHeader?.("Reason") ?? "");
    if (iceFailed || toldSo) return call.startedAt ? "media-lost" : "ice-failed";
    if (established) return originator === "remote" ? "hung-up" : "ended";
    if (cause === "Connection Error") return "connection-lost";
    if (cause === "Request Timeout") return "server-timeout";
    if (cause === "WebRTC Error" || cause === "Bad Media Description" || cause === "Incompatible SDP") return "media-mismatch";
    if (cause === "Internal Error" || cause === "Dialog Error" || cause === "No ACK") return "call-failed";
    if (!call.outgoing) return originator === "local" && cause === "Rejected" ? "rejected" : "missed";
    if (originator === "local") return "canceled";
    return callMessage(message?.status_code ?? 0);
  }
}
