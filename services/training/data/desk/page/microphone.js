// Runs beside the page, in the audio thread: hands over what the microphone hears, in pieces of 2,048 samples.

class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Float32Array(2048);
    this.filled = 0;
  }

  process([input]) {
    const heard = input[0];
    if (heard) {
      for (const sample of heard) {
        this.piece[this.filled++] = sample;
        if (this.filled === this.piece.length) {
          this.port.postMessage(this.piece);
          this.piece = new Float32Array(2048);
          this.filled = 0;
        }
      }
    }
    return true;
  }
}

registerProcessor("microphone", Microphone);
