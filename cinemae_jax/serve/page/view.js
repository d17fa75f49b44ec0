// Shows answers.  Text is set as text: nothing from a file or a server becomes markup.

const $ = (id) => document.getElementById(id);

const VERDICTS = {
  ai: ["Called AI-generated", ({ fpr }) =>
    `At most ${percent(fpr)} of photographs like those held out of training score this high.`],
  nature: ["Called a photograph", ({ fnr }) =>
    `At most ${percent(fnr)} of AI images like those held out of training score this low.`],
  inconclusive: ["Inconclusive", () => "The detector calls it neither AI-generated nor a photograph."],
};
const LONG = 200; // longer strings are shortened in the JSON shown

/** Shows the detector, and what the server accepts. */
export function showAbout(about) {
  $("detector").textContent = `${about.name} ${about.identity}`;
  $("limits").textContent = `${about.formats.join(", ")}; at most ${megabytes(about.max_bytes)}`;
  $("alterations").textContent = about.alterations.join(", ");
  $("heatmap-choice").hidden = !about.heatmaps;
  const seen = about.seen;
  const facts = {
    "trained on": about.train_generators.join(", "),
    "training files": seen && `${seen.formats.join(", ")}; shorter side ${seen.shorter_sides.join(" to ")} pixels`,
    "masking runs per image": `${about.runs}`,
    backbone: `sha256 ${about.backbone_sha256}`,
    software: `cinemae_jax ${about.version}`,
  };
  fill("facts", Object.entries(facts).filter(([, value]) => value)
    .flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
  $("card").textContent = about.card;
  $("card").hidden = $("makers").hidden = !about.card;
}

/** Shows an image that is being scored. */
export function showPicture(current) {
  showFault("");
  $("result").hidden = false;
  $("judged").hidden = $("legend").hidden = true;
  showImage(current.url, `image ${current.file.name}`, current.file);
}

/** Shows whether a request is running. */
export function showBusy(busy, words = "") {
  $("picture").parentElement.classList.toggle("busy", busy);
  $("result").setAttribute("aria-busy", busy);
  $("status").textContent = words;
}

/** Shows an error; an empty string removes it. */
export function showFault(words) {
  $("error").textContent = words;
  $("error").hidden = !words;
}

/** Removes image and result. */
export function clear() {
  $("result").hidden = true;
  $("picture").removeAttribute("src");
}

/** Shows the answer for the current image. */
export function showAnswer(current, about, wanted) {
  const { answer, file } = current;
  const [called, meaning] = VERDICTS[answer.verdict];
  $("judged").hidden = false;
  $("verdict").textContent = called;
  $("verdict").className = answer.verdict;
  $("meaning").textContent = meaning(about.calibration);
  $("probability").textContent = answer.probability.toFixed(3);
  $("spread").textContent = spread(answer);
  $("uncertainty").textContent = uncertainty(answer, about);
  showScale(answer, about);
  showChanges(wanted.stability ? answer.stability : null, answer.flags);
  showDoubts(answer, about);
  showHeatmap(wanted.heatmap ? answer.heatmap : null, current);
  $("json").textContent = JSON.stringify(answer, shortened, 2);
  $("status").textContent =
    `${file.name}: ${called.toLowerCase()}, probability of AI ${answer.probability.toFixed(3)} ${spread(answer)}`.trim();
}

const spread = (answer) => (answer.uncertainty === null ? "" : `± ${answer.uncertainty.toFixed(3)}`);

function uncertainty(answer, about) {
  if (answer.uncertainty === null) return "Its dependence on the masks was not measured.";
  return `±: how far other masks would move it (standard deviation between ${about.num_groups} groups of masking runs). ` +
    "This does not say whether the detector is right.";
}

function showScale(answer, about) {
  const below = about.nature_below ?? 0;
  const above = about.ai_above ?? 1;
  const zones = [["nature", below], ["between", above - below], ["ai", 1 - above]];
  const bar = element("div", "", "zones");
  for (const [name, width] of zones) {
    const zone = element("div", "", name);
    zone.style.width = `${100 * width}%`;
    bar.append(zone);
  }
  const mark = element("div", "", "mark");
  mark.style.left = `${100 * answer.probability}%`;
  const reach = element("div", "", "reach");
  const [low, high] = [-1, 1].map((side) => clip(answer.probability + side * (answer.uncertainty ?? 0)));
  reach.style.left = `${100 * low}%`;
  reach.style.width = `${100 * (high - low)}%`;
  const words = {
    nature: about.nature_below === null ? "" : `nature (photographs) below ${below.toFixed(3)}`,
    between: "inconclusive",
    ai: about.ai_above === null ? "" : `ai above ${above.toFixed(3)}`,
  };
  const key = element("div", "", "key");
  for (const [name, text] of Object.entries(words)) if (text) key.append(element("span", text, name));
  fill("scale", [bar, reach, mark, key]);
  $("scale").setAttribute("aria-label",
    `On a scale from 0 to 1 the probability of AI is ${answer.probability.toFixed(3)}; ` +
    `${Object.values(words).filter(Boolean).join(", ")}`);
}

function showChanges(stability, flags) {
  $("changes").hidden = !stability;
  const turned = flags.some((flag) => flag.startsWith("unstable: "));
  $("turned").textContent = turned ? "The verdict changes: see below." : "The verdict does not change.";
  fill("altered", Object.entries(stability ?? {}).map(([name, probability]) => {
    const row = element("tr");
    const head = element("th", name);
    head.scope = "row";
    row.append(head, element("td", `probability of AI ${probability.toFixed(3)}`));
    return row;
  }));
}

function showDoubts(answer, about) {
  const flags = answer.flags.map((flag) => {
    const [name, ...words] = flag.split(": ");
    const item = element("li");
    item.append(element("b", name.replaceAll("_", " ")), `: ${words.join(": ")}`);
    return item;
  });
  fill("doubts", [...flags, ...about.in_words.map((sentence) => element("li", sentence))]);
}

function showHeatmap(heatmap, current) {
  $("legend").hidden = !heatmap;
  if (!heatmap) {
    showImage(current.url, `image ${current.file.name}`, current.file);
    return;
  }
  showImage(heatmap.png, `heat map of ${current.file.name}: where reconstruction fails`, current.file);
  $("low").textContent = heatmap.low.toPrecision(3);
  $("high").textContent = heatmap.high.toPrecision(3);
  const [least, most] = heatmap.hidden;
  $("measure").textContent = `${heatmap.score.replaceAll("_", " ")}, mean of ${heatmap.runs} masking runs ` +
    `(each patch masked ${least} to ${most} times).`;
  $("statement").textContent = heatmap.statement;
}

function showImage(source, words, file) {
  const image = $("picture");
  if (image.src === source) return;
  $("name").textContent = file.name;
  image.hidden = false;
  image.alt = words;
  image.onerror = () => {
    image.hidden = true;
    $("name").textContent = `${file.name} (no preview: this browser cannot show it)`;
  };
  image.src = source;
}

// --- helpers ------------------------------------------------------------------------------------

export const megabytes = (bytes) => `${(bytes / 1e6).toLocaleString("en", { maximumFractionDigits: 1 })} MB`;

const percent = (share) => `${(100 * share).toLocaleString("en", { maximumSignificantDigits: 3 })} %`;

const clip = (value) => Math.min(1, Math.max(0, value));

const shortened = (key, value) =>
  typeof value === "string" && value.length > LONG ? `${value.slice(0, 40)}… (${value.length} characters)` : value;

function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

const fill = (id, children) => $(id).replaceChildren(...children);
