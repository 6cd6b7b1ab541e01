// JsSIP as a program: `node softphone.js CONFIG-JSON`. One command as JSON per line on stdin, one event as JSON per line
// on stdout. CONFIG: url, uri, password, socket (options of `ws`), and anything else that JsSIP.UA takes in `ua`.
'use strict';

const readline = require('node:readline');
const { install } = require('./browser.js');

const config = JSON.parse(process.argv[2]);
const say = (what) => process.stdout.write(`${JSON.stringify({ at: performance.now() / 1000, ...what })}\n`);
if (config.socket && config.socket.cert_file) config.socket.ca = require('node:fs').readFileSync(config.socket.cert_file);
install({ perMessageDeflate: false, ...config.socket }, (direction, text) => say({ event: 'sip', direction, text }));

const JsSIP = require('jssip');

const agent = new JsSIP.UA({
    sockets: [new JsSIP.WebSocketInterface(config.url)],
    uri: config.uri,
    password: config.password,
    register: config.register !== false,
    session_timers: false,
    connection_recovery_min_interval: 1,
    ...config.ua,
});
let session = null;

for (const name of ['connected', 'disconnected', 'registered', 'unregistered', 'registrationFailed']) {
    agent.on(name, (data) => say({
        event: name,
        cause: data && data.cause,
        status: data && data.response && data.response.status_code,
        code: data && data.code,
    }));
}

agent.on('newMessage', ({ originator, request }) => say({ event: 'message', originator, body: request.body }));

agent.on('newRTCSession', (data) => {
    session = data.session;
    say({ event: 'session', originator: data.originator, from: data.request.from.uri.toString() });
    for (const name of ['progress', 'accepted', 'confirmed', 'ended', 'failed', 'newDTMF', 'newInfo', 'hold', 'reinvite']) {
        session.on(name, (detail) => say({
            event: name,
            originator: detail && detail.originator,
            cause: detail && detail.cause,
            status: ((detail && (detail.message || detail.response)) || {}).status_code,
        }));
    }
});

const MEDIA = { mediaConstraints: { audio: true, video: false } };
const commands = {
    call: ({ target, options }) => agent.call(target, { ...MEDIA, ...options }),
    answer: () => session.answer(MEDIA),
    hangup: ({ options }) => session.terminate(options || {}),
    dtmf: ({ tones }) => session.sendDTMF(tones, { transportType: 'INFO' }),
    hold: () => session.hold(),
    message: ({ target, body }) => agent.sendMessage(target, body, {
        eventHandlers: {
            succeeded: () => say({ event: 'messageSent' }),
            failed: ({ cause }) => say({ event: 'messageFailed', cause }),
        },
    }),
    register: () => agent.register(),
    unregister: () => agent.unregister(),
    cut: () => agent._transport.socket._ws.terminate(),
    stop: () => { agent.stop(); setTimeout(() => process.exit(0), 300); },
};

readline.createInterface({ input: process.stdin })
    .on('line', (line) => {
        const command = JSON.parse(line);
        try {
            commands[command.do](command);
        } catch (error) {
            say({ event: 'error', text: String(error.stack) });
        }
    })
    .on('close', () => process.exit(0));

agent.start();
