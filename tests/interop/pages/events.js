// What both pages share: a list of what happened that the test reads in order, and the state of the media.

const events = [];
let taken = 0;

export function say(name, detail = {}) {
    events.push({ name, ...detail });
}

// The first event called `name` with these values, behind the last one taken; null while there is none.
export function take(name, values = {}) {
    const pleases = (event) =>
        event.name === name && Object.entries(values).every(([key, value]) => event[key] === value);
    const index = events.findIndex((event, place) => place >= taken && pleases(event));
    if (index < 0) return null;
    taken = index + 1;
    return events[index];
}

export const story = () => events;

const directions = [];
let directionsTaken = 0;

// Every agreement of offer and answer is written down, so that none is missed however short it lasts.
class Connection extends window.RTCPeerConnection {
    constructor(...details) {
        super(...details);
        this.addEventListener('signalingstatechange', () => {
            if (this.signalingState === 'stable') directions.push(this.getTransceivers()[0].currentDirection);
        });
    }
}
window.RTCPeerConnection = Connection;

// Whether sendrecv, sendonly, recvonly or inactive was agreed on, behind the agreement taken last.
export function takeDirection(direction) {
    const index = directions.indexOf(direction, directionsTaken);
    if (index >= 0) directionsTaken = index + 1;
    return index >= 0;
}

export async function bytesReceived(connection) {
    let bytes = 0;
    for (const report of (await connection.getStats()).values()) {
        if (report.type === 'inbound-rtp') bytes += report.bytesReceived;
    }
    return bytes;
}
