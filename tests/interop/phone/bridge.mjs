// Chromium for the Python tests: one JSON command a line on stdin, one JSON answer a line on stdout.
//   {"do": "launch", "executable", "flags"}                  {"do": "open", "page", "url", "permissions", "width", "height", "dark"}
//   {"do": "NAME", "page", ...}  NAME from `actions` below   answer: {"result": ...} or {"error": "..."}
// The browser is closed when stdin ends.

import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--disable-dev-shm-usage",
  "--allow-loopback-in-peer-connection",
  "--autoplay-policy=document-user-activation-required",
];
const WAIT_MS = 30000;

let browser = null;
const pages = new Map(); // name -> {page, context, log}

async function launch({ executable, flags }) {
  browser = await chromium.launch({ executablePath: executable, args: [...FLAGS, ...flags], timeout: 60000 });
  return browser.version();
}

async function open({ page: name, url, permissions, width, height, dark, missing }) {
  const context = await browser.newContext({
    viewport: { width, height },
    colorScheme: dark ? "dark" : "light",
    reducedMotion: "reduce",
  });
  if (permissions) await context.grantPermissions(permissions);
  const page = await context.newPage();
  page.setDefaultTimeout(WAIT_MS);
  const log = [];
  const requests = [];
  page.on("console", (message) => log.push(`${message.type()}: ${message.text()}`));
  page.on("pageerror", (error) => log.push(`pageerror: ${error.stack ?? error}`));
  page.on("websocket", (socket) => {
    const wire = (sign) => ({ payload }) => log.push(`${sign} ${payload}`.trimEnd());
    socket.on("framesent", wire(">"));
    socket.on("framereceived", wire("<"));
    socket.on("close", () => log.push("WebSocket closed"));
  });
  page.on("request", (request) => requests.push(request.url()));
  for (const path of missing) await page.route(`**/${path}`, (route) => route.fulfill({ status: 404, body: "Not Found" }));
  pages.set(name, { page, context, log, requests });
  const response = await page.goto(url);
  return { status: response.status(), headers: response.headers() };
}

// Not waitForFunction: it evaluates a string inside the page, which the page's Content-Security-Policy forbids.
async function wait({ page }, { expression, seconds }) {
  const deadline = Date.now() + seconds * 1000;
  for (;;) {
    const value = await page.evaluate(expression);
    if (value) return value;
    if (Date.now() > deadline) {
      const data = await page.evaluate("JSON.stringify({...document.getElementById('phone')?.dataset})");
      throw new Error(`waited ${seconds} s in vain for ${expression}; the page has ${data}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

const actions = {
  fill: ({ page }, { selector, value }) => page.fill(selector, value),
  click: ({ page }, { selector }) => page.click(selector),
  press: ({ page }, { key }) => page.keyboard.press(key),
  check: ({ page }, { selector }) => page.check(selector),
  select: ({ page }, { selector, value }) => page.selectOption(selector, value),
  evaluate: ({ page }, { expression }) => page.evaluate(expression),
  wait,
  reload: async ({ page }) => {
    await page.reload();
  },
  screenshot: async ({ page }, { path }) => {
    await page.screenshot({ path, fullPage: true });
  },
  log: ({ log }) => log,
  requests: ({ requests }) => requests,
  close: async ({ context }, { page: name }) => {
    await context.close();
    pages.delete(name);
  },
};

async function perform(command) {
  if (command.do === "launch") return launch(command);
  if (command.do === "open") return open(command);
  const page = pages.get(command.page);
  if (!page) throw new Error(`no page ${command.page}`);
  return actions[command.do](page, command);
}

async function answer(line) {
  try {
    return { result: (await perform(JSON.parse(line))) ?? null };
  } catch (error) {
    return { error: String(error.stack ?? error) };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(`${JSON.stringify(await answer(line))}\n`);
}
await browser?.close();
