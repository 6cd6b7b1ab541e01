// SIP.js behind the verbs that agents.py uses.

import { Inviter, Messager, Registerer, SessionState, UserAgent } from 'sip.js';
import { bytesReceived, say, story, take, takeDirection } from './events.js';

const RECONNECT_MS = 1000;
let agent = null;
let registerer = null;
let session = null;

const uri = (text) => UserAgent.makeURI(text);
const bodyOf = (request) => ({ type: request.getHeader('Content-Type'), body: request.body });

function follow(made) {
    session = made;
    made.stateChange.addListener((state) => {
        if (state === SessionState.Established) say('established');
        if (state === SessionState.Terminated) say('ended');
    });
    made.delegate = {
        onInfo(info) {
            info.accept();
            const { type, body } = bodyOf(info.request);
            const tone = /^Signal=\s*(.)/m.exec(body);
            if (type.startsWith('application/dtmf')) say('dtmf', { tone: tone[1] });
            else say('info', { type, body });
        },
        onInvite: () => say('reinvite'),
        onRefer(referral) {
            say('referred', { to: referral.referTo.uri.toString() });
            referral.accept();
            invite(referral.makeInviter());
        },
    };
}

function invite(inviter) {
    follow(inviter);
    inviter.invite({
        requestDelegate: {
            onProgress: ({ message }) => say('progress', { status: message.statusCode }),
            onReject: ({ message }) => say('failed', { status: message.statusCode }),
        },
    });
}

function renegotiate(hold) {
    session.sessionDescriptionHandlerOptionsReInvite = { hold };
    session.invite({ requestDelegate: { onAccept: () => say('renegotiated') } });
}

function send(type, body) {
    session.info({ requestOptions: { body: { contentDisposition: 'render', contentType: type, content: body } } });
}

const register = () => registerer.register({ requestDelegate: { onAccept: () => say('registered') } });

window.agent = {
    async start({ url, uri: own, password }) {
        const { user } = uri(own);
        agent = new UserAgent({
            uri: uri(own),
            authorizationUsername: user,
            authorizationPassword: password,
            contactName: user,
            transportOptions: { server: url },
            sessionDescriptionHandlerFactoryOptions: { peerConnectionConfiguration: { iceServers: [] } },
            delegate: {
                onConnect() {
                    say('connected');
                    register();
                },
                onDisconnect(error) {
                    say('disconnected');
                    const again = () => agent.reconnect().catch(() => setTimeout(again, RECONNECT_MS));
                    if (error) again();
                },
                onInvite(invitation) {
                    say('incoming', { from: invitation.remoteIdentity.uri.toString() });
                    follow(invitation);
                },
                onMessage(message) {
                    message.accept();
                    say('message', bodyOf(message.request));
                },
            },
        });
        registerer = new Registerer(agent);
        await agent.start();
    },
    call(target) { invite(new Inviter(agent, uri(target))); },
    answer() { session.accept(); },
    hangUp() {
        if (session.state === SessionState.Established) session.bye();
        else if (session instanceof Inviter) session.cancel();
        else session.reject();
    },
    hold() { renegotiate(true); },
    resume() { renegotiate(false); },
    renegotiate() { renegotiate(false); },
    dtmf(tone) { send('application/dtmf-relay', `Signal=${tone}\r\nDuration=100`); },
    info: send,
    message(target, body) {
        new Messager(agent, uri(target), body).message({
            requestDelegate: {
                onAccept: () => say('messageSent'),
                onReject: ({ message }) => say('messageFailed', { status: message.statusCode }),
            },
        });
    },
    transfer(target) {
        session.refer(uri(target), {
            requestDelegate: { onAccept: () => say('referAccepted') },
            onNotify(notification) {
                notification.accept();
                say('notified', { status: Number(notification.request.body.split(' ')[1]) });
            },
        });
    },
    bytesReceived: () => bytesReceived(session.sessionDescriptionHandler.peerConnection),
    take,
    takeDirection,
    story,
};
