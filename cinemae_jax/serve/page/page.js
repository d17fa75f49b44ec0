// Input of the visitor: an image is chosen, dropped or pasted, and options are switched.  One image at a
// time; a new one replaces the old one, whether it was answered or not.

import * as api from "./api.js";
import * as view from "./view.js";

const $ = (id) => document.getElementById(id);

let about = null; // of the detector
let current = null; // {file, url, answer}
let asking = null; // AbortController of the current request

const wanted = () => ({ heatmap: $("heatmap").checked, stability: $("stability").checked });

const isKnown = (answer) => Object.entries(wanted()).every(([name, asked]) => !asked || answer[name]);

function take(files) {
  const [file] = files;
  if (!file) return;
  if (current) URL.revokeObjectURL(current.url);
  asking?.abort();
  current = null;
  const fault = faultOf(file);
  if (fault) {
    refuse(fault);
    return;
  }
  current = { file, url: URL.createObjectURL(file), answer: null };
  view.showPicture(current);
  ask(files.length > 1 ? ` (the first of ${files.length} files)` : "");
}

function faultOf(file) {
  if (file.type && !file.type.startsWith("image/")) return `${file.name} is not an image (${file.type}).`;
  if (!file.size) return `${file.name} is empty.`;
  if (about && file.size > about.max_bytes)
    return `${file.name} is too large: ${view.megabytes(file.size)}; this server accepts at most ${view.megabytes(about.max_bytes)}.`;
  return "";
}

function refuse(fault, earlier = null) {
  if (!earlier) view.clear();
  view.showBusy(false);
  view.showFault(fault);
}

async function ask(note = "") {
  const picture = current;
  asking?.abort();
  asking = new AbortController();
  const { signal } = asking;
  view.showBusy(true, `Scoring ${picture.file.name}${note} …`);
  try {
    about ??= await introduce();
    picture.answer = await api.predict(picture.file, wanted(), signal);
  } catch (error) {
    if (signal.aborted) return; // replaced by another image or other options
    if (!(error instanceof api.Refusal)) throw error;
    const fault = `${picture.file.name} was not scored: ${error.message}`;
    if (!picture.answer) current = null;
    refuse(fault, picture.answer);
    return;
  }
  if (signal.aborted) return;
  view.showBusy(false);
  view.showAnswer(picture, about, wanted());
}

function change() {
  if (!current) return;
  if (current.answer && isKnown(current.answer)) view.showAnswer(current, about, wanted());
  else ask();
}

async function introduce() {
  const found = await api.about();
  view.showAbout(found);
  return found;
}

$("form").addEventListener("submit", (event) => event.preventDefault());
$("file").addEventListener("change", (event) => {
  take([...event.target.files]);
  event.target.value = ""; // so that the same file can be chosen again
});
for (const id of ["heatmap", "stability"]) $(id).addEventListener("change", change);

$("makers").addEventListener("click", () => { $("about").open = true; });

document.addEventListener("paste", (event) => take([...event.clipboardData.files]));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  const files = [...event.dataTransfer.files];
  if (files.length) take(files);
  else view.showFault("That is not a file: save the image first, or copy and paste it.");
});

introduce().then(
  (found) => { about = found; },
  (error) => view.showFault(error.message),
);
