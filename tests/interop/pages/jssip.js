// JsSIP behind the verbs that agents.py uses.

import JsSIP from 'jssip';
import { bytesReceived, say, story, take, takeDirection } from './events.js';

const OPTIONS = { mediaConstraints: { audio: true, video: false }, pcConfig: { iceServers: [] } };
let agent = null;
let session = null;

function follow(data) {
    if (data.originator === 'remote') say('incoming', { from: data.request.from.uri.toString() });
    session = data.session;
    const status = (detail) => ({ status: ((detail && (detail.message || detail.response)) || {}).status_code });
    session.on('progress', (detail) => { if (detail.originator === 'remote') say('progress', status(detail)); });
    session.on('confirmed', () => say('established'));
    session.on('ended', (detail) => say('ended', { by: detail.originator }));
    session.on('failed', (detail) => say('failed', { by: detail.originator, ...status(detail) }));
    session.on('reinvite', () => say('reinvite'));
    session.on('newDTMF', (detail) => { if (detail.originator === 'remote') say('dtmf', { tone: detail.dtmf.tone }); });
    session.on('newInfo', (detail) => {
        if (detail.originator === 'remote') say('info', { type: detail.info.contentType, body: detail.info.body });
    });
    session.on('refer', (detail) => {
        say('referred', { to: detail.request.refer_to.uri.toString() });
        detail.accept(null, OPTIONS);
    });
}

window.agent = {
    start({ url, uri, password }) {
        agent = new JsSIP.UA({
            sockets: [new JsSIP.WebSocketInterface(url)],
            uri,
            password,
            session_timers: false,
            connection_recovery_min_interval: 1,
        });
        agent.on('connected', () => say('connected'));
        agent.on('disconnected', () => say('disconnected'));
        // Fired for the first REGISTER that succeeds on a connection.
        agent.on('registered', () => say('registered'));
        agent.on('newMessage', ({ originator, request }) => {
            if (originator === 'remote') say('message', { type: request.getHeader('Content-Type'), body: request.body });
        });
        agent.on('newRTCSession', follow);
        agent.start();
    },
    call(target) { agent.call(target, OPTIONS); },
    answer() { session.answer(OPTIONS); },
    hangUp() { session.terminate(); },
    hold() { session.hold({}, () => say('renegotiated')); },
    resume() { session.unhold({}, () => say('renegotiated')); },
    renegotiate() { session.renegotiate({}, () => say('renegotiated')); },
    dtmf(tone) { session.sendDTMF(tone); },
    info(type, body) { session.sendInfo(type, body); },
    message(target, body) {
        agent.sendMessage(target, body, {
            eventHandlers: {
                succeeded: () => say('messageSent'),
                failed: ({ response }) => say('messageFailed', { status: response && response.status_code }),
            },
        });
    },
    transfer(target) {
        session.refer(target, {
            eventHandlers: {
                requestSucceeded: () => say('referAccepted'),
                progress: ({ status_line: line }) => say('notified', { status: line.status_code }),
                accepted: ({ status_line: line }) => say('notified', { status: line.status_code }),
                failed: ({ status_line: line }) => say('notified', { status: line.status_code }),
                trying: () => say('notified', { status: 100 }),
            },
        });
    },
    bytesReceived: () => bytesReceived(session.connection),
    take,
    takeDirection,
    story,
};
