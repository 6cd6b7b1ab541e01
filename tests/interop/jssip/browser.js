// The parts of a browser that JsSIP asks for, small enough for node: a WebSocket that writes down every message, and
// media that is only spoken of. The SDP is of the size and shape a browser sends, with a fingerprint and candidates.
'use strict';

const NodeWebSocket = require('ws');

const CANDIDATES = 24; // brings an INVITE well above the 1300 bytes that UDP may carry

function sdp(session, port) {
    const lines = [
        'v=0', `o=- ${session} 2 IN IP4 127.0.0.1`, 's=-', 't=0 0', 'a=group:BUNDLE 0', 'a=msid-semantic: WMS stream',
        `m=audio ${port} UDP/TLS/RTP/SAVPF 111 0 8 110 126`, 'c=IN IP4 127.0.0.1', 'a=rtcp:9 IN IP4 0.0.0.0',
    ];
    for (let i = 0; i < CANDIDATES; i++) {
        lines.push(`a=candidate:${1000 + i} 1 udp ${2122260223 - i} 127.0.0.1 ${port + i} typ host generation 0`);
    }
    lines.push(
        'a=ice-ufrag:abcd', 'a=ice-pwd:0123456789abcdef01234567', 'a=ice-options:trickle',
        `a=fingerprint:sha-256 ${Array(32).fill('AB').join(':')}`, 'a=setup:actpass', 'a=mid:0', 'a=sendrecv',
        'a=rtcp-mux', 'a=rtpmap:111 opus/48000/2', 'a=fmtp:111 minptime=10;useinbandfec=1', 'a=rtpmap:0 PCMU/8000',
        'a=rtpmap:8 PCMA/8000', 'a=rtpmap:110 telephone-event/48000', 'a=rtpmap:126 telephone-event/8000');
    return lines.join('\r\n') + '\r\n';
}

class FakePeerConnection extends EventTarget {
    constructor() {
        super();
        this.iceGatheringState = 'complete';
        this.iceConnectionState = 'connected';
        this.signalingState = 'stable';
        this.localDescription = null;
        this.remoteDescription = null;
        this.senders = [];
        this.session = Math.floor(Math.random() * 2 ** 40);
    }

    addTrack(track) { this.senders.push({ track, dtmf: null }); }

    getSenders() { return this.senders; }

    async createOffer() { return { type: 'offer', sdp: sdp(this.session, 40000) }; }

    async createAnswer() { return { type: 'answer', sdp: sdp(this.session, 42000) }; }

    async setLocalDescription(description) {
        this.localDescription = description;
        this.signalingState = description.type === 'offer' ? 'have-local-offer' : 'stable';
    }

    async setRemoteDescription(description) {
        if (!description.sdp || !description.sdp.startsWith('v=0')) throw new Error('not an SDP');
        this.remoteDescription = description;
        this.signalingState = description.type === 'offer' ? 'have-remote-offer' : 'stable';
    }

    close() { this.signalingState = 'closed'; }
}

class FakeStream {
    constructor() { this.track = { kind: 'audio', enabled: true, stop() {} }; }

    getTracks() { return [this.track]; }

    getAudioTracks() { return [this.track]; }

    getVideoTracks() { return []; }
}

// `options` go to `ws` (ca, origin, localAddress, headers); `heard(direction, text)` gets each SIP message.
function install(options, heard) {
    globalThis.WebSocket = class extends NodeWebSocket {
        constructor(url, protocol) {
            super(url, protocol, options);
            this.on('message', (data, binary) => heard(binary ? 'in-binary' : 'in', data.toString('utf8')));
            this.on('upgrade', (response) => heard('upgrade', JSON.stringify(response.headers)));
        }

        send(data, ...rest) {
            heard('out', data.toString());
            super.send(data, ...rest);
        }
    };
    globalThis.window = globalThis;
    globalThis.RTCPeerConnection = FakePeerConnection;
    globalThis.RTCSessionDescription = class {
        constructor(description) { Object.assign(this, description); }
    };
    const mediaDevices = { getUserMedia: async () => new FakeStream() };
    Object.defineProperty(globalThis, 'navigator', { value: { mediaDevices }, configurable: true, writable: true });
}

module.exports = { install };
