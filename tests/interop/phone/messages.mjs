// Prints what wsgate/phone/messages.js (its path is the argument) says for every answer and error it may be asked about.

import { readFileSync } from "node:fs";

// As a data URL: the browser's modules end in .js, which older versions of node take for CommonJS.
const source = readFileSync(process.argv[2]).toString("base64");
const { messages, ...codes } = await import(`data:text/javascript;base64,${source}`);

const statuses = Array.from({ length: 400 }, (_, index) => 300 + index);
const errors = ["NotAllowedError", "SecurityError", "NotFoundError", "OverconstrainedError", "NotReadableError"];
const used = new Set([
  ...statuses.map(codes.callMessage),
  ...statuses.map(codes.registrationMessage),
  ...errors.map((name) => codes.microphoneMessage({ name })),
]);
const detail = { peer: "bob", status: 500, server: "wss://gate.test/ws", duration: "0:01" };
const texts = Object.entries(messages).map(([code, { text }]) => [code, typeof text === "function" ? text(detail) : text]);
console.log(JSON.stringify({ used: [...used], texts: Object.fromEntries(texts) }));
