// Every sentence the page can show, by code. `hint` says what to do about it. A function takes the detail of the event.

export const messages = {
  "no-jssip": {
    text: "JsSIP, the SIP library of this page, is not installed on the server.",
    hint: "In the checkout of wsgate run: npm install. Or put a browser build of JsSIP (it must define window.JsSIP) beside index.html in wsgate/phone/ under the name jssip.js. Then restart wsgate and load this page again.",
  },
  "no-webrtc": { text: "This browser has no WebRTC, so it cannot make calls.", hint: "A current Firefox, Chrome, Edge or Safari has it." },
  "insecure-page": {
    text: "The browser gives the microphone to secure pages only.",
    hint: "Open this page by its https address, or on the server itself as http://localhost.",
  },

  "microphone-refused": {
    text: "The microphone was refused.",
    hint: "Allow it for this page beside the address in the address bar, and in the settings of the system, then call again.",
  },
  "microphone-absent": { text: "No microphone was found.", hint: "Plug one in or choose one in the settings of the system, then call again." },
  "microphone-busy": { text: "The microphone cannot be opened.", hint: "Another program may be using it. Close that and call again." },
  "playback-blocked": { text: "The browser does not let this page play sound.", hint: "Press any key of the keypad to start it." },

  "bad-account": { text: "This user and domain do not make a SIP address.", hint: "A user looks like alice or 201, a domain like example.com." },
  "bad-server": { text: "This is not a WebSocket address.", hint: "It looks like wss://example.com/ws." },
  "insecure-server": { text: "A page loaded by https may only use a server address that begins with wss:." },
  "wrong-password": { text: "The user name or the password is wrong." },
  "unknown-user": { text: "The server does not know this user in this domain." },
  "server-unreachable": {
    text: ({ server }) => `The server ${server} cannot be reached.`,
    hint: "It may be stopped, or a firewall or the network may stand between. Check the server address in the settings.",
  },
  certificate: {
    text: ({ server }) => `No secure connection to ${server}: the browser does not trust its certificate, or the server cannot be reached.`,
    hint: "Open the address below. If the browser warns of the certificate there, it needs one that is trusted, or you accept it for a test; then sign in again.",
    link: ({ server }) => new URL("/", server.replace(/^ws/i, "http")).href,
  },
  "websocket-refused": {
    text: ({ server }) => `The server answers, but did not open the WebSocket ${server}.`,
    hint: "Its path may differ, it may not allow pages from this address (origins), or it may be full. Some browsers also refuse a WebSocket silently when the certificate is not trusted.",
  },
  "server-silent": { text: "The SIP server does not answer.", hint: "The gateway is reached, the SIP server behind it is not." },
  "server-error": { text: ({ status }) => `The server refused the registration (${status}).` },
  "connection-lost": { text: "The connection to the server was lost. Trying again by itself." },

  "bad-target": { text: "This is not a number or a SIP address.", hint: "Enter a number, a name, or an address like bob@example.com." },
  busy: { text: ({ peer }) => `${peer} is busy.` },
  "not-found": { text: ({ peer }) => `${peer} was not found.`, hint: "Check the number or the name." },
  declined: { text: ({ peer }) => `${peer} declined the call.` },
  "no-answer": { text: ({ peer }) => `${peer} did not answer.` },
  unavailable: { text: ({ peer }) => `${peer} is not available just now.`, hint: "Perhaps nobody is signed in there." },
  "own-address": { text: ({ peer }) => `The call to ${peer} leads back to this phone.`, hint: "Enter the number or the name of somebody else." },
  "call-forbidden": { text: ({ peer }) => `The server does not allow a call to ${peer}.` },
  "media-mismatch": { text: ({ peer }) => `${peer} and this browser have no audio format in common.` },
  "call-failed": { text: ({ peer, status }) => `The call to ${peer} failed${status ? ` (${status})` : ""}.` },
  "server-timeout": { text: "The server did not answer the call in time." },
  "no-turn": {
    text: "No TURN server could be used, and the settings allow media through one only.",
    hint: "Check the TURN server in the settings, that its port is open in the firewall (UDP 3478), or allow direct media.",
  },
  "turn-refused": { text: "The TURN server refused the user name or the password.", hint: "Check them in the settings." },
  "ice-failed": {
    text: "No audio connection to the other side could be made.",
    hint: "A firewall or NAT stands between. A TURN server that both sides reach helps.",
  },
  "media-lost": { text: "The audio connection to the other side was lost." },
  missed: { text: ({ peer }) => `Missed call from ${peer}.`, kind: "info" },
  ended: { text: ({ peer, duration }) => `The call with ${peer} has ended${duration ? ` after ${duration}` : ""}.`, kind: "info" },
  "hung-up": { text: ({ peer, duration }) => `${peer} hung up${duration ? ` after ${duration}` : ""}.`, kind: "info" },
  canceled: { text: "Call cancelled.", kind: "info" },
  rejected: { text: ({ peer }) => `You declined the call from ${peer}.`, kind: "info" },
};

/** The code of a getUserMedia error. */
export function microphoneMessage(error) {
  if (error.name === "NotAllowedError" || error.name === "SecurityError") return "microphone-refused";
  if (error.name === "NotFoundError" || error.name === "OverconstrainedError") return "microphone-absent";
  return "microphone-busy";
}

/** The code for a final answer to an INVITE (RFC 3261 section 21). */
export function callMessage(status) {
  if (status === 486 || status === 600) return "busy";
  if (status === 404 || status === 410 || status === 484 || status === 604) return "not-found";
  if (status === 603) return "declined";
  if (status === 408 || status === 487) return "no-answer";
  if (status === 480 || status === 430) return "unavailable";
  if (status === 401 || status === 403 || status === 407) return "call-forbidden";
  if (status === 482) return "own-address";
  if (status === 415 || status === 488 || status === 606) return "media-mismatch";
  return "call-failed";
}

/** The code for a refusal of a REGISTER. */
export function registrationMessage(status) {
  if (status === 401 || status === 403 || status === 407) return "wrong-password";
  if (status === 404) return "unknown-user";
  if (status === 408 || status === 503 || status === 504) return "server-silent";
  return "server-error";
}
