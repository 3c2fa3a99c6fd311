// The image with masks or heat over it. Its parts are numbered as those of the shown result.

import { layers, paintHeat, stencil } from "./masks.js";

const LONGEST = 1600; // pixels of the canvas; masks of larger images are sampled
const STEP = 0.02; // of the image, that an arrow key moves the spot

export class Stage {
  constructor({ canvas, view, tag, spot, heat, opacity }, { pointed, asked, cleared }) {
    Object.assign(this, { canvas, view, tag, spot, stops: heat });
    this.image = null;
    this.parts = []; // {name, color, likely, shown, refined, coarse}
    this.mode = "refined";
    this.opacity = opacity;
    this.active = null;
    this.heat = null;
    this.at = null;
    this.made = new Map();
    new ResizeObserver(() => this.#fit()).observe(view.parentElement);
    canvas.addEventListener("pointermove", (event) => event.pointerType === "mouse" && pointed(this.partAt(event)));
    canvas.addEventListener("pointerleave", () => pointed(null));
    canvas.addEventListener("click", (event) => {
      if (!this.image) return;
      this.place(this.#fraction(event));
      asked(this.at);
    });
    canvas.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (move && this.image) {
        const [x, y] = this.at ?? [0.5, 0.5];
        const inside = (value) => Math.min(0.999, Math.max(0, value));
        this.place([inside(x + STEP * move[0]), inside(y + STEP * move[1])]);
        event.preventDefault();
      } else if ((event.key === "Enter" || event.key === " ") && this.image) {
        this.place(this.at ?? [0.5, 0.5]);
        asked(this.at);
        event.preventDefault();
      } else if (event.key === "Escape") cleared();
    });
  }

  // An <img> that is loaded, upright, of any size; width and height are the image's own.
  setImage(image, width, height, name) {
    Object.assign(this, { image, width, height, parts: [], active: null, heat: null });
    this.name = name;
    this.place(null);
    this.#fit();
  }

  setParts(parts) {
    Object.assign(this, { parts, active: null, heat: null });
    this.made.clear();
    this.draw();
  }

  set(changes) {
    Object.assign(this, changes);
    this.draw();
  }

  // Marks a spot, given in fractions of the image; null removes the mark.
  place(at) {
    this.at = at;
    this.spot.hidden = !at;
    if (at) {
      this.spot.style.left = `${100 * at[0]}%`;
      this.spot.style.top = `${100 * at[1]}%`;
    }
  }

  // The smallest mask under a pointer; null if there is none.
  partAt(event) {
    if (!this.image || this.mode === "attention") return null;
    const [x, y] = this.#fraction(event);
    const { width, height } = this.canvas;
    const at = Math.floor(y * height) * width + Math.floor(x * width);
    const under = this.parts
      .map((part, number) => ({ number, made: part.shown && this.#made(number) }))
      .filter(({ made }) => made?.layers && made.mask[at]);
    under.sort((one, other) => one.made.layers.found.area - other.made.layers.found.area);
    return under[0]?.number ?? null;
  }

  #fraction(event) {
    const box = this.canvas.getBoundingClientRect();
    const inside = (value) => Math.min(0.999999, Math.max(0, value));
    return [inside((event.clientX - box.left) / box.width), inside((event.clientY - box.top) / box.height)];
  }

  // As large as its frame allows, whole pixels of the screen.
  #fit() {
    if (!this.image) return;
    const frame = this.view.parentElement;
    const style = getComputedStyle(frame);
    const tallest = parseFloat(style.getPropertyValue("--tallest")) * innerHeight / 100;
    const scale = Math.min(frame.clientWidth / this.width, tallest / this.height);
    const [wide, tall] = [this.width * scale, this.height * scale];
    this.view.style.width = `${wide}px`;
    this.view.style.height = `${tall}px`;
    const fine = Math.min(devicePixelRatio, LONGEST / Math.max(wide, tall));
    const [width, height] = [wide, tall].map((side) => Math.max(1, Math.round(side * fine)));
    if (this.canvas.width !== width || this.canvas.height !== height) {
      Object.assign(this.canvas, { width, height });
      this.made.clear();
    }
    this.draw();
  }

  #made(number) {
    const coarse = this.mode === "coarse";
    const key = `${number} ${coarse}`;
    if (!this.made.has(key)) {
      const { width, height } = this.canvas;
      const part = this.parts[number];
      const mask = stencil(coarse ? part.coarse : part.refined, width, height);
      this.made.set(key, { mask, layers: layers(mask, width, height, part.color) });
    }
    return this.made.get(key);
  }

  draw() {
    const context = this.canvas.getContext("2d", { willReadFrequently: true });
    const { width, height } = this.canvas;
    this.tag.hidden = true;
    if (!this.image) return;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.image, 0, 0, width, height);
    if (this.heat) {
      context.putImageData(paintHeat(context.getImageData(0, 0, width, height), this.heat, this.stops), 0, 0);
    } else if (this.mode !== "attention") {
      this.#drawMasks(context, width, height);
    }
    this.#describe();
    this.#label();
  }

  #drawMasks(context, width, height) {
    const drawn = this.parts.map((part, number) => number)
      .filter((number) => (this.active === null ? this.parts[number].shown : number === this.active));
    if (this.active !== null) this.#dim(context, width, height);
    for (const number of drawn) {
      const made = this.#made(number).layers;
      if (!made) continue;
      // What is in the light is to be seen itself.
      context.globalAlpha = this.active === null ? this.opacity : this.opacity / 3;
      context.drawImage(made.fill, made.left, made.top);
      context.globalAlpha = 1;
      context.drawImage(made.outline, made.left, made.top);
    }
  }

  // Darkens all but the active mask, so that it stands out among others.
  #dim(context, width, height) {
    const made = this.#made(this.active).layers;
    const shade = Object.assign(document.createElement("canvas"), { width, height });
    const over = shade.getContext("2d");
    over.fillStyle = "rgb(0 0 0 / 0.5)";
    over.fillRect(0, 0, width, height);
    over.globalCompositeOperation = "destination-out";
    if (made) over.drawImage(made.fill, made.left, made.top);
    context.drawImage(shade, 0, 0);
  }

  #label() {
    const named = this.heat?.name ?? (this.active === null ? null : this.parts[this.active].name);
    if (named === null || named === undefined) return;
    const found = this.heat || this.active === null ? null : this.#made(this.active).layers?.found;
    this.tag.textContent = named;
    this.tag.hidden = false;
    const { width, height } = this.canvas;
    const left = found ? (50 * (found.left + found.right)) / width : 0;
    const top = found ? (100 * found.top) / height : 0;
    const box = this.tag.parentElement;
    const [wide, tall] = [this.tag.offsetWidth, this.tag.offsetHeight];
    const inside = (value, most) => Math.max(4, Math.min(value, most - 4));
    this.tag.style.left = `${inside((left / 100) * box.clientWidth - (found ? wide / 2 : 0), box.clientWidth - wide)}px`;
    this.tag.style.top = `${inside((top / 100) * box.clientHeight - tall - 6, box.clientHeight - tall)}px`;
  }

  #describe() {
    const shown = this.parts.filter((part) => part.shown).map((part) => part.name);
    let text = `${this.name}, ${this.width} by ${this.height} pixels`;
    if (this.heat) text += `; attention of “${this.heat.name}”`;
    else if (this.active !== null) text += `; the mask of “${this.parts[this.active].name}”`;
    else if (shown.length) text += `; masks of ${shown.join(", ")}`;
    this.canvas.setAttribute("aria-label", text);
  }
}
