// Sentence by sentence: record a take, hear it, go on. A take is sent and checked as soon as it ends.

import { wav } from "./wav.js";

const element = (id) => document.getElementById(id);
const [sound, list, error, status, level] = ["sound", "list", "error", "status", "level"].map(element);
const [recordButton, playButton] = ["record", "play"].map(element);

let prompts = [];
let current = 0;
let context = null;
let take = null; // pieces of samples, while one is being recorded
let sending = false;

/** Ask for the microphone, once, as it is: no processing that changes a voice. */
async function listen() {
  if (context) return;
  const stream = await navigator.mediaDevices.getUserMedia({
    audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false },
  });
  const made = new AudioContext();
  await made.audioWorklet.addModule("/microphone.js");
  const microphone = new AudioWorkletNode(made, "microphone", { numberOfOutputs: 0 });
  microphone.port.onmessage = ({ data }) => {
    if (take) take.push(data);
    const power = data.reduce((sum, sample) => sum + sample * sample, 0) / data.length;
    level.value = Math.max(-60, 10 * Math.log10(power + 1e-9));
  };
  made.createMediaStreamSource(stream).connect(microphone);
  await made.resume();
  context = made;
}

function draw(index) {
  const item = list.children[index];
  item.className = prompts[index].recorded ? "accepted" : "open";
  item.querySelector(".mark").textContent = prompts[index].recorded ? "✓" : "·";
}

function show(index) {
  if (!prompts[index] || take || sending) return;
  current = index;
  for (const item of list.children) item.removeAttribute("aria-current");
  list.children[index].setAttribute("aria-current", "true");
  list.children[index].scrollIntoView({ block: "nearest" });
  element("number").textContent = `${index + 1} of ${prompts.length}`;
  element("prompt").textContent = prompts[index].text;
  element("counts").textContent = `${prompts.filter((one) => one.recorded).length} of ${prompts.length} recorded`;
  playButton.disabled = !prompts[index].recorded;
  recordButton.textContent = prompts[index].recorded ? "Record again" : "Record";
  sound.hidden = true;
  sound.pause();
  status.textContent = "";
  error.textContent = "";
}

async function toggle() {
  if (sending) return;
  if (take) {
    await finish();
    return;
  }
  error.textContent = "";
  sound.pause();
  try {
    await listen();
  } catch (failure) {
    error.textContent = `The microphone cannot be used (${failure.message}): allow it for this page, or plug one in.`;
    return;
  }
  take = [];
  recordButton.textContent = "Stop";
  status.textContent = "Recording …";
}

async function finish() {
  const pieces = take;
  take = null;
  sending = true;
  status.textContent = "Saving …";
  let told;
  let good = false;
  try {
    const answer = await fetch(`/takes/${current}`, {
      method: "POST",
      headers: { "Content-Type": "audio/wav" },
      body: wav(pieces, context.sampleRate),
    });
    told = await answer.json();
    good = answer.ok;
  } catch (failure) {
    told = { error: `not saved: is 'vits data record' still running? (${failure.message})` };
  }
  sending = false;
  if (good) prompts[current].recorded = true;
  draw(current);
  show(current);
  if (good) {
    const remarks = told.remarks.map((remark) => ` – ${remark}`).join("");
    status.textContent = `Saved, ${told.seconds} s${remarks}`;
  } else {
    error.textContent = told.error;
  }
}

async function play() {
  if (!prompts[current].recorded || take) return;
  const answer = await fetch(`/takes/${current}`);
  URL.revokeObjectURL(sound.src);
  sound.src = URL.createObjectURL(await answer.blob());
  sound.hidden = false;
  await sound.play();
}

const next = () => show(current + 1);
const previous = () => show(current - 1);
const nextOpen = () => {
  const later = prompts.findIndex((one, index) => index > current && !one.recorded);
  show(later >= 0 ? later : prompts.findIndex((one) => !one.recorded));
};
const KEYS = { " ": toggle, p: play, Enter: next, ArrowDown: next, ArrowUp: previous };

document.addEventListener("keydown", (event) => {
  const pressed = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!pressed || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("audio")) return;
  event.preventDefault(); // also on a button that has the focus: the keys always mean the same
  pressed();
});
recordButton.addEventListener("click", toggle);
playButton.addEventListener("click", play);
element("next").addEventListener("click", next);
element("previous").addEventListener("click", previous);
element("open").addEventListener("click", nextOpen);
window.addEventListener("beforeunload", (event) => {
  if (take || sending) event.preventDefault();
});

const found = await (await fetch("/prompts")).json();
prompts = found.prompts;
element("folder").textContent = found.folder;
prompts.forEach((prompt, index) => {
  const item = document.createElement("li");
  for (const name of ["mark", "said"]) {
    const part = document.createElement("span");
    part.className = name;
    item.append(part);
  }
  item.querySelector(".said").textContent = prompt.text;
  item.addEventListener("click", () => show(index));
  list.append(item);
  draw(index);
});
const firstOpen = prompts.findIndex((one) => !one.recorded);
show(Math.max(0, firstOpen));
