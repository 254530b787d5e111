// Plays sound that is still being made: each piece begins where the one before it ends.

// Seconds before the first piece sounds, so that a late second one leaves no gap.
const LEAD = 0.08;

export class Player {
  constructor(samplingRate) {
    this.samplingRate = samplingRate;
    this.context = new AudioContext();
    this.context.resume();
    this.begin = null; // when the first sample sounds, by the context's clock
    this.seconds = 0; // of sound taken in
    this.sources = new Set();
  }

  /** Takes in samples (Float32Array), which sound after all others. */
  push(samples) {
    if (!samples.length) return;
    const buffer = this.context.createBuffer(1, samples.length, this.samplingRate);
    buffer.copyToChannel(samples, 0);
    const now = this.context.currentTime;
    if (this.begin === null) this.begin = now + LEAD;
    let at = this.begin + this.seconds;
    if (at < now) {
      this.begin += now + LEAD - at; // it came too late: the rest of the sound moves
      at = now + LEAD;
    }
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.context.destination);
    source.onended = () => this.sources.delete(source);
    source.start(at);
    this.sources.add(source);
    this.seconds += samples.length / this.samplingRate;
  }

  /** Seconds of the sound that have been heard. */
  get position() {
    if (this.begin === null) return 0;
    return Math.min(Math.max(this.context.currentTime - this.begin, 0), this.seconds);
  }

  get over() {
    return this.position >= this.seconds;
  }

  stop() {
    for (const source of this.sources) source.stop();
    this.sources.clear();
    if (this.context.state !== "closed") this.context.close();
  }
}
