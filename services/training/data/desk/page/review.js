// One recording after another: listen, correct, accept or reject. Every change is saved before anything else happens.

const element = (id) => document.getElementById(id);
const [sound, text, list, error, show] = ["sound", "text", "list", "error", "show"].map(element);
const MARKS = { open: "·", accepted: "✓", rejected: "✗" };

let rows = [];
let current = 0;
let address = ""; // of the sound that is loaded
let saving = Promise.resolve(); // edits are sent one after another
let typing = 0; // timer: a pause in typing saves

function draw(row) {
  const item = list.children[row.index];
  item.className = row.state;
  item.hidden = Boolean(show.value) && row.state !== show.value;
  item.querySelector(".mark").textContent = MARKS[row.state];
  item.querySelector(".said").textContent = row.text || "(no text)";
}

function count() {
  const of = (state) => rows.filter((row) => row.state === state).length;
  element("counts").textContent = `${of("open")} open, ${of("accepted")} accepted, ${of("rejected")} rejected`;
}

function showState(row) {
  element("state").textContent = row.state;
  element("first").hidden = row.first === row.text;
  element("first").textContent = `at first: ${row.first || "(nothing)"}`;
}

/** Send what was changed of one recording; when another tab was faster, show what is there now. */
function save(index, change) {
  saving = saving.then(async () => {
    const row = rows[index];
    const answer = await fetch(`/rows/${index}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ revision: row.revision, ...change }),
    });
    const told = await answer.json();
    error.textContent = answer.ok ? "" : told.error;
    if (told.row) {
      const typed = index === current && answer.ok && text.value !== told.row.text && document.activeElement === text;
      rows[index] = told.row;
      draw(told.row);
      if (index === current) {
        if (!typed) text.value = told.row.text;
        showState(told.row);
      }
    }
    count();
    return answer.ok;
  }).catch((failure) => {
    error.textContent = `not saved: is 'vits data review' still running? (${failure.message})`;
    return false;
  });
  return saving;
}

/** Save the text, if it was changed. */
function keepText() {
  clearTimeout(typing);
  const index = current;
  if (rows.length && text.value.trim() !== rows[index].text) return save(index, { text: text.value });
  return saving;
}

async function load(index) {
  current = index;
  const row = rows[index];
  for (const item of list.children) item.removeAttribute("aria-current");
  list.children[index].setAttribute("aria-current", "true");
  list.children[index].scrollIntoView({ block: "nearest" });
  element("file").textContent = row.file;
  text.value = row.text;
  showState(row);
  const answer = await fetch(`/sounds/${index}`);
  if (current !== index) return;
  if (!answer.ok) {
    error.textContent = (await answer.json()).error;
    return;
  }
  const blob = await answer.blob();
  if (current !== index) return;
  URL.revokeObjectURL(address);
  address = URL.createObjectURL(blob);
  sound.src = address;
  sound.play().catch(() => {}); // browsers wait for the first key
}

async function move(by) {
  keepText();
  let index = current + by;
  while (rows[index] && list.children[index].hidden) index += by;
  if (rows[index]) await load(index);
}

async function decide(state) {
  clearTimeout(typing);
  const index = current;
  const change = { state };
  if (text.value.trim() !== rows[index].text) change.text = text.value;
  if ((await save(index, change)) && state !== "open" && index === current) await move(1);
}

const toggle = () => (sound.paused ? sound.play() : sound.pause());
const replay = () => {
  sound.currentTime = 0;
  sound.play();
};
const KEYS = {
  " ": toggle, r: replay, Enter: () => decide("accepted"), x: () => decide("rejected"), o: () => decide("open"),
  ArrowDown: () => move(1), ArrowUp: () => move(-1), j: () => move(1), k: () => move(-1), e: () => text.focus(),
};

document.addEventListener("keydown", (event) => {
  if (event.target === text) {
    if (event.key === "Escape") text.blur();
    else if (event.ctrlKey && event.key === "Enter") decide("accepted");
    else if (event.ctrlKey && event.key === " ") toggle();
    else return;
    event.preventDefault();
    return;
  }
  const pressed = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  const control = event.target.closest("button, select, audio");
  if (!pressed || event.ctrlKey || event.metaKey || event.altKey || (control && [" ", "Enter"].includes(event.key))) return;
  if (event.target === show) return;
  event.preventDefault();
  pressed();
});

text.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(keepText, 300);
});
text.addEventListener("blur", keepText);
for (const [id, state] of [["accept", "accepted"], ["reject", "rejected"], ["undo", "open"]]) {
  element(id).addEventListener("click", () => decide(state));
}
element("previous").addEventListener("click", () => move(-1));
element("next").addEventListener("click", () => move(1));
show.addEventListener("change", () => rows.forEach(draw));
window.addEventListener("beforeunload", (event) => {
  if (rows.length && text.value.trim() !== rows[current].text) {
    keepText();
    event.preventDefault();
  }
});

const found = await (await fetch("/rows")).json();
rows = found.rows;
element("folder").textContent = found.folder;
for (const row of rows) {
  const item = document.createElement("li");
  for (const name of ["mark", "said"]) {
    const part = document.createElement("span");
    part.className = name;
    item.append(part);
  }
  item.addEventListener("click", () => {
    keepText();
    load(row.index);
  });
  list.append(item);
  draw(row);
}
count();
const firstOpen = rows.findIndex((row) => row.state === "open");
if (rows.length) await load(Math.max(0, firstOpen));
