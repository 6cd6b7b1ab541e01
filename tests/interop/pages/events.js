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

// sendrecv, sendonly, recvonly, inactive: what was negotiated last.
export function direction(connection) {
    const agreed = connection.getTransceivers()[0].currentDirection;
    return connection.signalingState === 'stable' ? agreed : null;
}

export async function bytesReceived(connection) {
    let bytes = 0;
    for (const report of (await connection.getStats()).values()) {
        if (report.type === 'inbound-rtp') bytes += report.bytesReceived;
    }
    return bytes;
}
