// What the page does without asking the server: the slider between two images, and the brush for masks.

const shareOf = (slider) => {
  const share = slider.querySelector("input[type=range]").value;
  slider.querySelector(".over").style.clipPath = `inset(0 ${100 - share}% 0 0)`;
  slider.querySelector(".sm-handle").style.left = `${share}%`;
  slider.querySelector("input[type=range]").setAttribute("aria-valuetext", `${share} % full model, ${100 - share} % accelerated`);
};

document.addEventListener("input", (event) => {
  const slider = event.target.closest(".sm-slider");
  if (slider && event.target.type === "range") shareOf(slider);
});

document.addEventListener("change", (event) => {
  const slider = event.target.closest(".sm-slider");
  if (!slider || event.target.type !== "radio") return;
  slider.querySelector(".over").src = event.target.dataset.full;
  slider.querySelector(".under").src = event.target.dataset.fast;
});

const dragShare = (event) => {
  const stage = event.target.closest?.(".sm-stage");
  if (!stage || (event.buttons !== 1 && event.type !== "pointerdown")) return;
  const box = stage.getBoundingClientRect();
  const slider = stage.closest(".sm-slider");
  slider.querySelector("input[type=range]").value = Math.round((100 * (event.clientX - box.left)) / box.width);
  shareOf(slider);
};
for (const kind of ["pointerdown", "pointermove"]) document.addEventListener(kind, dragShare);

// The mask goes to the server as a PNG in a hidden text field: white is generated anew.
const sendMask = (text) => {
  const field = document.querySelector("#sm-mask textarea, #sm-mask input");
  Object.getOwnPropertyDescriptor(Object.getPrototypeOf(field), "value").set.call(field, text);
  field.dispatchEvent(new Event("input", { bubbles: true }));
};

class Brush {
  constructor(box) {
    this.canvas = box.querySelector("canvas");
    this.width = Number(box.dataset.width);
    this.height = Number(box.dataset.height);
    this.scale = Math.max(1, Math.ceil(512 / Math.max(this.width, this.height)));
    this.canvas.width = this.width * this.scale;
    this.canvas.height = this.height * this.scale;
    this.radius = Math.max(this.width, this.height) / 12;
    this.at = [this.width / 2, this.height / 2];
    this.strokes = document.createElement("canvas"); // opaque where painted
    [this.strokes.width, this.strokes.height] = [this.width, this.height];
    this.image = new Image();
    this.image.onload = () => this.draw();
    this.image.src = box.dataset.image;
    this.clear();
    this.listen();
  }

  clear() {
    this.strokes.getContext("2d").clearRect(0, 0, this.width, this.height);
    this.empty = true;
  }

  listen() {
    this.canvas.addEventListener("pointerdown", (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      this.paint(...this.place(event));
    });
    this.canvas.addEventListener("pointermove", (event) => {
      this.at = this.place(event);
      if (event.buttons === 1) this.paint(...this.at);
      else this.draw();
    });
    this.canvas.addEventListener("pointerup", () => this.send());
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    for (const kind of ["focus", "blur"]) this.canvas.addEventListener(kind, () => this.draw());
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * this.width) / box.width, ((event.clientY - box.top) * this.height) / box.height];
  }

  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const move = moves[event.key];
    if (move) {
      const inside = (value, most) => Math.min(Math.max(value, 0), most);
      this.at = [inside(this.at[0] + move[0] * this.radius, this.width), inside(this.at[1] + move[1] * this.radius, this.height)];
    } else if (event.key === " ") this.paint(...this.at);
    else if (event.key === "Backspace") this.clear();
    else return;
    event.preventDefault();
    this.draw();
    if (!move) this.send();
  }

  paint(x, y) {
    const context = this.strokes.getContext("2d");
    context.beginPath();
    context.arc(x, y, this.radius, 0, 2 * Math.PI);
    context.fill();
    this.empty = false;
    this.draw();
  }

  draw() {
    const context = this.canvas.getContext("2d");
    const [width, height] = [this.canvas.width, this.canvas.height];
    context.imageSmoothingEnabled = false;
    context.clearRect(0, 0, width, height);
    context.drawImage(this.image, 0, 0, width, height);
    context.globalAlpha = 0.75;
    context.drawImage(this.filled("#e0457b", "transparent"), 0, 0, width, height);
    context.globalAlpha = 1;
    for (const [colour, line] of [["black", 4], ["white", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = line;
      context.beginPath();
      context.arc(this.at[0] * this.scale, this.at[1] * this.scale, this.radius * this.scale, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  // The strokes in one colour, on another.
  filled(colour, ground) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [this.width, this.height];
    const context = canvas.getContext("2d");
    context.drawImage(this.strokes, 0, 0);
    context.globalCompositeOperation = "source-in";
    context.fillStyle = colour;
    context.fillRect(0, 0, this.width, this.height);
    context.globalCompositeOperation = "destination-over";
    context.fillStyle = ground;
    context.fillRect(0, 0, this.width, this.height);
    return canvas;
  }

  send() {
    sendMask(this.empty ? "" : this.filled("white", "black").toDataURL("image/png"));
  }
}

const startBrushes = () => {
  for (const box of document.querySelectorAll(".sm-brush:not([data-ready])")) {
    box.dataset.ready = "yes";
    new Brush(box);
  }
};
new MutationObserver(startBrushes).observe(document.documentElement, { childList: true, subtree: true });
