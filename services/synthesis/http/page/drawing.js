// Draws sound as it comes: waveform, spectrogram, words, and where one is listening.

const SIZE = 512; // samples of a spectrum
const BANDS = SIZE / 4; // the lower half of its bins, where speech is
const COLUMNS_PER_SECOND = 100;
const SHEET = 1024; // columns of one hidden canvas
const SHORTEST = 3; // seconds that the picture has at least
const FLOOR = -75; // dB, drawn as nothing
const CEILING = -5;
const STEPS = [0.5, 1, 2, 5, 10, 20, 30, 60, 120]; // seconds between the marks of the time
const MARK_WIDTH = 48; // CSS pixels that a mark has at least

export class Drawing {
  constructor(waveform, spectrogram, timing) {
    this.canvases = [waveform, spectrogram, timing];
    this.clear(16000);
  }

  clear(samplingRate) {
    this.samplingRate = samplingRate;
    this.hop = samplingRate / COLUMNS_PER_SECOND;
    this.peaks = []; // [lowest, highest] of each column
    this.sheets = [];
    this.columns = 0;
    this.tail = new Float32Array(0); // samples that are in no column yet
    this.taken = 0; // samples before the tail
    this.words = [];
    this.draw(0);
  }

  get seconds() {
    return (this.taken + this.tail.length) / this.samplingRate;
  }

  /** Takes in samples (Float32Array). */
  push(samples) {
    const all = new Float32Array(this.tail.length + samples.length);
    all.set(this.tail);
    all.set(samples, this.tail.length);
    let start = 0;
    for (;;) {
      // Columns begin at whole multiples of the hop, which need not be a whole number of samples.
      start = Math.round(this.columns * this.hop) - this.taken;
      if (start + SIZE > all.length) break;
      this.column(all.subarray(start, start + SIZE));
    }
    const kept = Math.min(start, all.length);
    this.tail = all.slice(kept);
    this.taken += kept;
  }

  column(samples) {
    const width = Math.ceil(this.hop);
    let low = 0;
    let high = 0;
    for (let i = 0; i < width; i++) {
      low = Math.min(low, samples[i]);
      high = Math.max(high, samples[i]);
    }
    this.peaks.push([low, high]);
    const at = this.columns % SHEET;
    if (at === 0) {
      const sheet = document.createElement("canvas");
      sheet.width = SHEET;
      sheet.height = BANDS;
      this.sheets.push(sheet.getContext("2d"));
    }
    const pixels = this.sheets.at(-1).createImageData(1, BANDS);
    const power = spectrum(samples);
    for (let band = 0; band < BANDS; band++) {
      const level = 10 * Math.log10(power[band] + 1e-12);
      const loud = Math.min(Math.max((level - FLOOR) / (CEILING - FLOOR), 0), 1);
      const pixel = 4 * (BANDS - 1 - band);
      pixels.data[pixel] = 255 * Math.min(1, 1.6 * loud);
      pixels.data[pixel + 1] = 255 * loud * loud;
      pixels.data[pixel + 2] = 255 * (0.25 + 0.5 * loud * (1 - loud));
      pixels.data[pixel + 3] = 255 * Math.min(1, 3 * loud);
    }
    this.sheets.at(-1).putImageData(pixels, at, 0);
    this.columns += 1;
  }

  /** Draws everything, with a line at the position that is heard. */
  draw(position) {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const span = Math.max(this.seconds, SHORTEST);
    for (const [index, canvas] of this.canvases.entries()) {
      const scale = window.devicePixelRatio || 1;
      const width = Math.round(canvas.clientWidth * scale);
      const height = Math.round(canvas.clientHeight * scale);
      if (canvas.width !== width || canvas.height !== height) {
        canvas.width = width;
        canvas.height = height;
      }
      const pen = canvas.getContext("2d");
      pen.clearRect(0, 0, width, height);
      const x = (seconds) => (seconds / span) * width;
      if (index === 0) this.drawWaveform(pen, x, height, colour);
      if (index === 1) this.drawSpectrogram(pen, x, height, scale, colour);
      if (index === 2) {
        this.drawWords(pen, x, height * 0.6, position, scale, colour);
        this.drawTime(pen, x, width, height, span, scale, colour);
      }
      if (position > 0) {
        pen.fillStyle = colour("--wrong");
        pen.fillRect(x(position), 0, 2 * scale, height);
      }
    }
  }

  drawWaveform(pen, x, height, colour) {
    pen.fillStyle = colour("--accent");
    const width = Math.max(x(1 / COLUMNS_PER_SECOND), 1);
    for (const [column, [low, high]] of this.peaks.entries()) {
      const top = ((1 - high) / 2) * height;
      pen.fillRect(x(column / COLUMNS_PER_SECOND), top, width, Math.max(((high - low) / 2) * height, 1));
    }
  }

  drawSpectrogram(pen, x, height, scale, colour) {
    for (const [number, sheet] of this.sheets.entries()) {
      const columns = Math.min(this.columns - number * SHEET, SHEET);
      const left = x((number * SHEET) / COLUMNS_PER_SECOND);
      pen.drawImage(sheet.canvas, 0, 0, columns, BANDS, left, 0, x(columns / COLUMNS_PER_SECOND), height);
    }
    pen.font = `${11 * scale}px system-ui, sans-serif`;
    pen.textBaseline = "top";
    pen.fillStyle = colour("--faint");
    const highest = (BANDS / SIZE) * this.samplingRate / 1000;
    pen.fillText(`${highest.toFixed(1)} kHz`, 6 * scale, 6 * scale);
  }

  drawWords(pen, x, height, position, scale, colour) {
    pen.font = `${12 * scale}px system-ui, sans-serif`;
    pen.textBaseline = "middle";
    const inset = 3 * scale;
    for (const word of this.words) {
      const left = x(word.start_seconds);
      const width = Math.max(x(word.end_seconds) - left - scale, scale);
      const now = word.start_seconds <= position && position < word.end_seconds;
      pen.fillStyle = colour(now ? "--mark" : "--word");
      pen.beginPath();
      pen.roundRect(left, 0, width, height, Math.min(inset, width / 2));
      pen.fill();
      pen.fillStyle = colour("--ink");
      const text = pen.measureText(word.text).width;
      if (text <= width) pen.fillText(word.text, left + Math.min(inset, (width - text) / 2), height / 2);
    }
  }

  drawTime(pen, x, width, height, span, scale, colour) {
    const step = STEPS.find((seconds) => x(seconds) >= MARK_WIDTH * scale) ?? span;
    pen.font = `${11 * scale}px system-ui, sans-serif`;
    pen.textBaseline = "bottom";
    pen.fillStyle = colour("--faint");
    for (let seconds = 0; x(seconds) < width; seconds += step) {
      const left = x(seconds);
      pen.fillRect(left, height * 0.66, scale, height * 0.1);
      const text = `${seconds} s`;
      if (left + pen.measureText(text).width + 4 * scale <= width) pen.fillText(text, left, height);
    }
  }
}

const WINDOW = Float32Array.from({ length: SIZE }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / SIZE));

/** Power of each frequency of SIZE samples, 1 for a sine at full scale: an FFT, radix 2, in place. */
export function spectrum(samples) {
  const real = new Float32Array(SIZE);
  const imaginary = new Float32Array(SIZE);
  for (let i = 0, reversed = 0; i < SIZE; i++) {
    real[reversed] = samples[i] * WINDOW[i];
    let bit = SIZE >> 1;
    for (; reversed & bit; bit >>= 1) reversed ^= bit;
    reversed |= bit;
  }
  for (let length = 2; length <= SIZE; length *= 2) {
    const half = length / 2;
    for (let k = 0; k < half; k++) {
      const cosine = Math.cos((2 * Math.PI * k) / length);
      const sine = -Math.sin((2 * Math.PI * k) / length);
      for (let start = k; start < SIZE; start += length) {
        const other = start + half;
        const r = real[other] * cosine - imaginary[other] * sine;
        const i = real[other] * sine + imaginary[other] * cosine;
        real[other] = real[start] - r;
        imaginary[other] = imaginary[start] - i;
        real[start] += r;
        imaginary[start] += i;
      }
    }
  }
  const power = new Float32Array(SIZE / 2);
  for (let i = 0; i < power.length; i++) {
    power[i] = (real[i] ** 2 + imaginary[i] ** 2) / (SIZE / 4) ** 2;
  }
  return power;
}
