// The page: image on one side, words on the other; what is pointed at in one is shown in the other.

import { Failure, getBlob, getJson, postJson, sendImage } from "./api.js";
import { Conversation } from "./conversation.js";
import { Phrases } from "./phrases.js";
import { Light, Result } from "./results.js";
import { Stage } from "./stage.js";
import { element, listen, percent, showVerdicts } from "./words.js";

const at = (id) => document.getElementById(id);
const say = (text) => (at("said").textContent = text);

function fail(place, error) {
  if (error.name === "AbortError") return;
  if (!(error instanceof Failure)) console.error(error);
  at(place).textContent = error.message;
  at(place).hidden = false;
}

function settle(place) {
  at(place).hidden = true;
}

const state = await getJson("state").catch((error) => {
  fail("image-error", error);
  throw error;
});
let model = null; // what is known of the chosen model
let image = null; // {id, width, height, name, example}
let working = 0;

async function busy(work) {
  at("busy").hidden = ++working === 0;
  try {
    return await work();
  } finally {
    at("busy").hidden = --working === 0;
  }
}

// --- what is shown -----------------------------------------------------------------------------

const stage = new Stage(
  { canvas: at("canvas"), view: at("view"), tag: at("tag"), spot: at("spot"), heat: state.heat, opacity: state.opacity },
  {
    pointed: (part) => light.point(part === null ? null : { part }),
    asked: (spot) => whatLooksAt(spot),
    cleared: () => clear(),
  },
);
const light = new Light(stage, {
  changed: (what) => {
    for (const node of document.querySelectorAll("[data-part], [data-word]")) {
      const mine = node.closest("[data-result]")?.dataset.result === light.result?.id;
      const is = (each) => mine && each !== null && (node.dataset.part !== undefined
        ? each.part === Number(node.dataset.part) : each.word === Number(node.dataset.word));
      node.classList.toggle("on", is(what));
      if (node.tagName === "BUTTON") node.setAttribute("aria-pressed", String(is(light.kept)));
    }
  },
  failed: (error) => fail("image-error", error),
});

const results = new Set();
function receive(data) {
  const result = new Result(data, state.colors);
  result.limit(threshold());
  results.add(result);
  light.show(result);
  offerDownloads();
  return result;
}

function clear() {
  light.clear();
  stage.place(null);
  at("words").hidden = true;
}

async function whatLooksAt([x, y]) {
  settle("image-error");
  const result = light.result;
  if (!result?.words.length) {
    const part = light.pointed?.part;
    if (part !== undefined) light.keep({ part });
    return;
  }
  try {
    const { looks } = await busy(() => postJson(`results/${result.id}/looks`, { x, y, by: light.by }));
    const most = Math.max(...looks.map((look) => look.share), 1e-9);
    const buttons = looks.map(({ word, text, share, lift }) => {
      const button = element("button", { type: "button", dir: "auto", data: { word } }, text);
      button.style.setProperty("--share", share / most);
      button.title = `${lift.toFixed(1)} times as much as the mean of all words`;
      return element("li", {}, button);
    });
    at("words-list").replaceChildren(...buttons);
    at("words-list").dataset.result = result.id;
    at("words").hidden = false;
  } catch (error) {
    fail("image-error", error);
  }
}
listen(at("words-list"), {
  pointed: (what) => light.point(what),
  kept: (what) => light.keep(what),
  cleared: clear,
});

// --- the model ---------------------------------------------------------------------------------

async function chooseModel(id) {
  at("model-note").textContent = "Loading the model…";
  at("model").setAttribute("aria-busy", "true");
  try {
    model = await busy(() => postJson(`models/${id}`, {}));
    at("model-note").textContent = model.note;
    at("model-note").classList.remove("error");
    at("threshold").value = Math.round(100 * (model.threshold ?? 0));
    at("threshold").disabled = model.threshold === null;
    at("threshold-note").textContent = model.threshold === null
      ? "This head was trained without validation data, so it gives no probabilities."
      : "Phrases that are less likely than this are “not there”.";
  } catch (error) {
    model = null;
    at("model-note").textContent = error.message;
    at("model-note").classList.add("error");
  }
  at("model").removeAttribute("aria-busy");
  showValues();
  light.show(null);
  conversation.reset();
  phrases.reset();
  offer();
}

for (const { id, name } of state.models) at("model").append(element("option", { value: id }, name));
at("model").addEventListener("change", () => chooseModel(at("model").value));

// What can be done with the model and the image that are there.
function offer() {
  const chats = model?.chat && image !== null;
  const grounds = model?.head && image !== null;
  conversation.offer(chats, model?.prompt, image?.question);
  phrases.offer(grounds, image?.phrases ?? []);
  for (const input of at("views").elements) input.disabled = !model?.head;
  at("by").querySelector("[value=learned]").disabled = !model?.head;
  if (model && !model.head) at("phrase-error").textContent = model.headless;
  at("phrase-error").hidden = !model || model.head;
}

// --- the image ---------------------------------------------------------------------------------

let taken = 0; // the latest of several images that are on their way is shown
async function takeImage(blob, name, more = {}) {
  settle("image-error");
  const turn = ++taken;
  try {
    await busy(async () => {
      const sent = await sendImage(blob, name);
      const shown = element("img", { src: `page/images/${sent.id}` });
      await shown.decode();
      if (turn !== taken) return;
      image = { ...sent, name, ...more };
      at("frame").classList.remove("empty");
      stage.setImage(shown, sent.width, sent.height, name);
    });
  } catch (error) {
    fail("image-error", error instanceof Failure ? error : new Failure("The image cannot be shown. Use a JPEG, PNG or WebP file."));
    return;
  }
  if (turn !== taken) return;
  results.clear();
  light.show(null);
  clear();
  conversation.reset();
  phrases.reset();
  offerDownloads();
  for (const button of at("examples").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.example === String(more.example ?? "")));
  }
  offer();
  say(`${name} is shown.`);
}

const firstImage = (files) => [...(files ?? [])].find((file) => file.type.startsWith("image/") || /\.(tiff?|bmp)$/i.test(file.name)) ?? files?.[0];

const takeFile = (file) => file && takeImage(file, file.name || "Pasted image");

at("file").addEventListener("change", () => {
  takeFile(firstImage(at("file").files));
  at("file").value = "";
});
addEventListener("paste", (event) => {
  const file = firstImage(event.clipboardData?.files);
  if (!file) return;
  event.preventDefault();
  takeFile(file);
});
for (const kind of ["dragenter", "dragover"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    at("frame").classList.add("over");
  });
}
for (const kind of ["dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    if (kind === "drop" || event.relatedTarget === null) at("frame").classList.remove("over");
    if (kind !== "drop") return;
    const file = firstImage(event.dataTransfer?.files);
    if (file) takeFile(file);
    else fail("image-error", new Failure("What was dropped is no file. Save the image first, and choose it."));
  });
}

async function takeExample(number) {
  const { name, question, phrases: named } = state.examples[number];
  try {
    await takeImage(await getBlob(`examples/${number}`), name, { example: number, question, phrases: named });
  } catch (error) {
    fail("image-error", error);
  }
}
state.examples.forEach(({ name }, number) => {
  const picture = element("img", { src: `page/examples/${number}`, alt: name, loading: "lazy" });
  const button = element("button", { type: "button", data: { example: number } }, picture);
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => takeExample(number));
  at("examples").append(element("li", {}, button));
});

// --- how it is shown ---------------------------------------------------------------------------

const threshold = () => (at("threshold").disabled ? 0 : at("threshold").value / 100);

function showValues() {
  at("opacity-value").textContent = `${at("opacity").value}%`;
  at("threshold-value").textContent = at("threshold").disabled ? "all" : percent(threshold());
}

function limit() {
  showValues();
  for (const result of results) {
    result.limit(threshold());
    for (const root of document.querySelectorAll(`[data-result="${result.id}"]`)) showVerdicts(root, result.parts);
    phrases.judge(result);
  }
  light.update();
}

at("threshold").addEventListener("input", limit);
at("opacity").addEventListener("input", () => {
  showValues();
  stage.set({ opacity: at("opacity").value / 100 });
});
at("by").addEventListener("change", () => {
  light.by = at("by").value;
  light.update();
});
at("views").addEventListener("change", (event) => {
  stage.mode = event.target.value;
  light.update();
});

// --- downloads ---------------------------------------------------------------------------------

function offerDownloads() {
  const none = !light.result?.parts.length;
  for (const button of document.querySelectorAll("[data-download]")) button.disabled = none;
  at("download-note").textContent = none ? "Nothing has been looked for yet." : "";
}

for (const button of document.querySelectorAll("[data-download]")) {
  button.addEventListener("click", async () => {
    const name = button.dataset.download;
    const query = new URLSearchParams({ threshold: threshold(), opacity: at("opacity").value / 100 });
    try {
      const blob = await busy(() => getBlob(`results/${light.result.id}/${name}?${query}`));
      const link = element("a", { href: URL.createObjectURL(blob), download: name });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
      at("download-note").textContent = `${name} is saved.`;
    } catch (error) {
      at("download-note").textContent = error.message;
    }
  });
}
for (const menu of document.querySelectorAll(".menu")) {
  menu.addEventListener("toggle", () => menu.open && menu.querySelector(".sheet").scrollIntoView({ block: "nearest" }));
  addEventListener("click", (event) => !menu.contains(event.target) && (menu.open = false));
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !menu.open) return;
    menu.open = false;
    menu.querySelector("summary").focus();
    event.stopPropagation();
  });
}

// --- modes -------------------------------------------------------------------------------------

const tabs = [...document.querySelectorAll("[role=tab]")];
function turnTo(tab) {
  for (const each of tabs) {
    const chosen = each === tab;
    each.setAttribute("aria-selected", String(chosen));
    each.tabIndex = chosen ? 0 : -1;
    at(each.getAttribute("aria-controls")).hidden = !chosen;
  }
}
for (const tab of tabs) {
  tab.addEventListener("click", () => turnTo(tab));
  tab.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = tabs.find((each) => each !== tab);
    turnTo(other);
    other.focus();
  });
}
addEventListener("keydown", (event) => event.key === "Escape" && clear());

const page = {
  at, fail, settle, say, receive, busy, light, clear,
  get image() { return image; },
  get model() { return model; },
};
const conversation = new Conversation(page);
const phrases = new Phrases(page);
at("opacity").value = Math.round(100 * state.opacity);
showValues();
offerDownloads();
at("model").value = state.selected;
const ready = chooseModel(state.selected);
if (state.examples.length) await takeExample(0);
await ready;
document.body.dataset.ready = "";
