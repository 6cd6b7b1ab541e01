// The microphone, the two level meters and the ring tones.

const FLOOR_DECIBELS = -60; // shown as no sound
const METER_PERIOD_MS = 80;

let context = null;

/** The page's audio context; to be asked for first within a click, or the browser keeps it silent. */
export function audioContext() {
  context ??= new AudioContext();
  if (context.state === "suspended") context.resume();
  return context;
}

/** A stream of the microphone; rejects with the browser's error (see microphoneMessage). */
export function openMicrophone() {
  return navigator.mediaDevices.getUserMedia({
    audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true },
    video: false,
  });
}

/** Measures one stream: `level` is 0 to 1 on a decibel scale. */
class Meter {
  #source;
  #analyser;
  #samples;

  constructor(stream) {
    this.#analyser = audioContext().createAnalyser();
    this.#analyser.fftSize = 2048;
    this.#samples = new Float32Array(this.#analyser.fftSize);
    this.#source = audioContext().createMediaStreamSource(stream);
    this.#source.connect(this.#analyser);
  }

  get level() {
    this.#analyser.getFloatTimeDomainData(this.#samples);
    let squares = 0;
    for (const sample of this.#samples) squares += sample * sample;
    const decibels = 10 * Math.log10(squares / this.#samples.length + 1e-12);
    return Math.min(1, Math.max(0, 1 - decibels / FLOOR_DECIBELS));
  }

  close() {
    this.#source.disconnect();
  }
}

/** Meters of a call by name ("local", "remote"); `show(name, level)` is called some twelve times a second. */
export class Meters {
  #meters = new Map();
  #timer = null;
  #show;

  constructor(show) {
    this.#show = show;
  }

  add(name, stream) {
    this.#meters.get(name)?.close();
    this.#meters.set(name, new Meter(stream));
    this.#timer ??= setInterval(() => this.#measure(), METER_PERIOD_MS);
  }

  close() {
    clearInterval(this.#timer);
    this.#timer = null;
    for (const [name, meter] of this.#meters) {
      meter.close();
      this.#show(name, 0);
    }
    this.#meters.clear();
  }

  #measure() {
    for (const [name, meter] of this.#meters) this.#show(name, meter.level);
  }
}

// Seconds of sound and of silence, and the frequencies: the callee's bell and what the caller hears while it rings.
const TONES = {
  bell: { on: 1.2, off: 2.4, hertz: [523, 659], gain: 0.09, trill: 12 },
  ringback: { on: 1, off: 4, hertz: [425], gain: 0.05, trill: 0 },
};

/** Plays one of the repeated tones until stopped. */
export class Ringer {
  #timer = null;
  #playing = [];

  start(name) {
    this.stop();
    const tone = TONES[name];
    const burst = () => this.#burst(tone);
    burst();
    this.#timer = setInterval(burst, (tone.on + tone.off) * 1000);
  }

  stop() {
    clearInterval(this.#timer);
    this.#timer = null;
    for (const node of this.#playing) node.disconnect();
    this.#playing = [];
  }

  #burst({ on, hertz, gain, trill }) {
    const audio = audioContext();
    const now = audio.currentTime;
    const volume = audio.createGain();
    volume.gain.setValueAtTime(0, now);
    volume.gain.linearRampToValueAtTime(gain, now + 0.03);
    volume.gain.setValueAtTime(gain, now + on - 0.1);
    volume.gain.linearRampToValueAtTime(0, now + on);
    volume.connect(audio.destination);
    for (const frequency of trill ? [hertz[0]] : hertz) {
      const oscillator = audio.createOscillator();
      oscillator.frequency.setValueAtTime(frequency, now);
      for (let step = 1; step < on * trill; step += 1) {
        oscillator.frequency.setValueAtTime(hertz[step % hertz.length], now + step / trill);
      }
      oscillator.connect(volume);
      oscillator.start(now);
      oscillator.stop(now + on);
    }
    this.#playing = [volume];
  }
}
