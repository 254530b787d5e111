// What happens when: the form, the stream of events, the sound.

import { curl, grpcurl, openai } from "./calls.js";
import { Drawing } from "./drawing.js";
import { Player } from "./player.js";

const element = (id) => document.getElementById(id);
const [form, input, voice, speaker] = ["form", "input", "voice", "speaker"].map(element);
const [speed, seed, token, status] = ["speed", "seed", "token", "status"].map(element);
const drawing = new Drawing(element("waveform"), element("spectrogram"), element("timing"));

let server = { grpc_port: 50051, needs_token: false };
let voices = [];
let player = null;
let request = null; // aborts what is being spoken
let pieces = []; // Float32Array, all of the sound so far
let samplingRate = 16000;

function headers() {
  return token.value ? { Authorization: `Bearer ${token.value}` } : {};
}

/** What is asked for, as /v1/audio/speech takes it; what is left as it was is left out. */
function body() {
  const asked = { input: input.value };
  if (voice.value) asked.voice = voice.value;
  if (!element("speaker-row").hidden && speaker.value) {
    asked.speaker = speaker.selectedOptions[0].dataset.number ? Number(speaker.value) : speaker.value;
  }
  if (speed.valueAsNumber !== 1) asked.speed = speed.valueAsNumber;
  if (seed.value && seed.validity.valid) asked.seed = seed.valueAsNumber;
  return asked;
}

function showCalls() {
  const origin = location.origin;
  const asked = body();
  element("speed-value").textContent = `${speed.value} ×`;
  element("curl").textContent = curl(origin, asked, token.value);
  element("python").textContent = openai(origin, asked, token.value);
  element("grpc").textContent = grpcurl(`${location.hostname}:${server.grpc_port}`, asked, token.value);
}

function showVoice() {
  const chosen = voices.find((one) => one.name === voice.value) ?? {};
  const names = Object.keys(chosen.speakers ?? {});
  const numbers = names.length ? [] : [...Array(chosen.num_speakers ?? 1).keys()].map(String);
  speaker.replaceChildren(
    ...[...names, ...numbers].map((name) => {
      const option = new Option(name, name);
      if (!names.length) option.dataset.number = "yes";
      return option;
    }),
  );
  element("speaker-row").hidden = names.length + numbers.length < 2;
  const facts = [
    chosen.language && `language ${chosen.language}`,
    chosen.variant && `variant ${chosen.variant}`,
    chosen.sampling_rate && `${chosen.sampling_rate} Hz`,
    chosen.licence && `licence ${chosen.licence}`,
    chosen.sources?.length && `from ${chosen.sources.join(", ")}`,
    chosen.consent && `consent: ${chosen.consent}`,
  ];
  element("about").textContent = facts.filter(Boolean).join(" · ");
  showCalls();
}

async function loadVoices() {
  const answer = await fetch("v1/audio/voices", { headers: headers() });
  if (!answer.ok) {
    // Without a token there is nothing to tell yet.
    if (answer.status !== 401 || token.value) await showFailure(answer);
    return;
  }
  element("error").textContent = "";
  voices = (await answer.json()).voices;
  const before = voice.value;
  voice.replaceChildren(new Option("the server's default", ""), ...voices.map(({ name }) => new Option(name, name)));
  if (voices.some(({ name }) => name === before)) voice.value = before;
  showVoice();
}

async function showFailure(answer) {
  const text = await answer.text();
  try {
    element("error").textContent = JSON.parse(text).error.message;
  } catch {
    element("error").textContent = `The server answered ${answer.status}.`;
  }
}

/** The events of an answer, as they come. */
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) yield JSON.parse(part.slice("data: ".length));
  }
}

function samplesOf(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const pcm = new Int16Array(bytes.buffer, 0, bytes.length >> 1); // every machine with a browser is little-endian
  return Float32Array.from(pcm, (sample) => sample / 32767);
}

function showWords(words) {
  drawing.words.push(...words);
  for (const { text, start_seconds: start, end_seconds: end } of words) {
    const span = document.createElement("span");
    span.textContent = text;
    span.title = `${start.toFixed(2)}–${end.toFixed(2)} s`;
    element("words").append(span, " ");
  }
}

async function speak() {
  stop();
  const mine = (request = new AbortController());
  pieces = [];
  element("error").textContent = "";
  element("words").replaceChildren();
  element("download").hidden = true;
  element("stop").disabled = false;
  element("replay").disabled = true;
  status.textContent = "Asking…";
  const begun = performance.now();
  try {
    const answer = await fetch("v1/audio/speech", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...headers() },
      body: JSON.stringify({ ...body(), response_format: "pcm", stream_format: "sse", timestamps: true }),
      signal: mine.signal,
    });
    if (!answer.ok) {
      status.textContent = "";
      await showFailure(answer);
      return;
    }
    samplingRate = Number(answer.headers.get("X-Vits-Sampling-Rate"));
    player = new Player(samplingRate);
    drawing.clear(samplingRate);
    requestAnimationFrame(animate);
    for await (const event of events(answer)) {
      if (event.type === "speech.audio.delta") {
        if (!pieces.length) status.textContent = `First sound after ${Math.round(performance.now() - begun)} ms`;
        const samples = samplesOf(event.audio);
        pieces.push(samples);
        player.push(samples);
        drawing.push(samples);
        showWords(event.timestamps ?? []);
      } else if (event.type === "speech.audio.done") {
        showDone(event, performance.now() - begun);
      } else if (event.type === "error") {
        element("error").textContent = event.error.message;
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") element("error").textContent = `The server cannot be reached (${error.message}).`;
  } finally {
    if (request === mine) {
      request = null;
      element("stop").disabled = !player || player.over;
      element("replay").disabled = !pieces.length;
    }
  }
}

function showDone(event, milliseconds) {
  const left = event.unknown.length ? ` Left out: ${event.unknown.join(" ")}` : "";
  status.textContent =
    `${event.duration_seconds.toFixed(2)} s of sound in ${(milliseconds / 1000).toFixed(2)} s, ` +
    `voice ${event.voice}, seed ${event.seed}.${left}`;
  seed.placeholder = `last: ${event.seed}`;
  element("waveform").ariaLabel = `Waveform of ${event.duration_seconds.toFixed(1)} seconds of speech`;
  element("spectrogram").ariaLabel = `Spectrogram of ${event.duration_seconds.toFixed(1)} seconds of speech`;
  const link = element("download");
  if (link.href) URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(wav());
  link.hidden = false;
}

/** All of the sound as a WAV file of 16 bits. */
function wav() {
  const count = pieces.reduce((sum, piece) => sum + piece.length, 0);
  const view = new DataView(new ArrayBuffer(44 + 2 * count));
  const name = (at, text) => [...text].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  name(0, "RIFF");
  view.setUint32(4, 36 + 2 * count, true);
  name(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, samplingRate, true);
  view.setUint32(28, 2 * samplingRate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  name(36, "data");
  view.setUint32(40, 2 * count, true);
  let at = 44;
  for (const piece of pieces) {
    for (const sample of piece) {
      view.setInt16(at, Math.round(sample * 32767), true);
      at += 2;
    }
  }
  return new Blob([view], { type: "audio/wav" });
}

function animate() {
  const position = player?.position ?? 0;
  drawing.draw(position);
  const heard = player && !player.over;
  const spans = element("words").children;
  for (const [index, word] of drawing.words.entries()) {
    const now = heard && word.start_seconds <= position && position < word.end_seconds;
    spans[index]?.classList.toggle("now", Boolean(now));
  }
  if (player && (request || !player.over)) requestAnimationFrame(animate);
  else element("stop").disabled = true;
}

function stop() {
  request?.abort();
  request = null;
  player?.stop();
  player = null;
  element("stop").disabled = true;
  element("replay").disabled = !pieces.length;
}

function replay() {
  stop();
  player = new Player(samplingRate);
  for (const piece of pieces) player.push(piece);
  element("stop").disabled = false;
  requestAnimationFrame(animate);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  speak();
});
form.addEventListener("input", showCalls);
voice.addEventListener("change", showVoice);
token.addEventListener("change", loadVoices);
element("stop").addEventListener("click", stop);
element("replay").addEventListener("click", replay);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(element(button.dataset.copy).textContent);
    status.textContent = "Copied.";
  });
}
window.addEventListener("resize", () => drawing.draw(player?.position ?? 0));

server = await (await fetch("page/server.json")).json();
element("token-row").hidden = !server.needs_token;
showCalls();
await loadVoices();
