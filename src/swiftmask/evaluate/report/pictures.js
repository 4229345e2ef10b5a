// The same seeds by two rows, one above the other, with a slider between them.

const pictures = { left: report.full, right: report.picked, index: 0 };

function imageOf(name) {
  return report.gallery.images[name][pictures.index];
}

function timesCheaper(ratio) {
  return ratio >= 1 ? `${ratio.toFixed(1)} times cheaper` : `${(1 / ratio).toFixed(1)} times dearer`;
}

function showPictures() {
  const caption = report.gallery.captions[pictures.index];
  for (const side of ["left", "right"]) {
    const row = rowsByName.get(pictures[side]);
    const image = byId(`${side}-image`);
    image.src = imageOf(row.name);
    image.alt = `${caption}, drawn by ${rowTitle(row)}`;
    byId(`${side}-tag`).textContent = row.name;
    byId(`${side}-row`).value = row.name;
  }
  const [left, right] = [rowsByName.get(pictures.left), rowsByName.get(pictures.right)];
  byId("stage-caption").textContent =
    `${caption}. Left: ${rowTitle(left)}, ${short(left.gflop)} GFLOP. Right: ${rowTitle(right)}, ` +
    `${short(right.gflop)} GFLOP, ${timesCheaper(left.gflop / right.gflop)}.`;
  for (const button of byId("row-choices").children) {
    button.querySelector("img").src = imageOf(button.dataset.row);
    button.setAttribute("aria-pressed", String(button.dataset.row === pictures.right));
  }
}

function showShare() {
  const share = byId("stage-share").value;
  byId("left-image").style.clipPath = `inset(0 ${100 - share}% 0 0)`;
  byId("stage-handle").style.left = `${share}%`;
  byId("stage-share").setAttribute("aria-valuetext", `${share} % left, ${100 - share} % right`);
}

function dragShare(event) {
  if (event.buttons !== 1 && event.type !== "pointerdown") return;
  const box = byId("stage").getBoundingClientRect();
  byId("stage-share").value = Math.round((100 * (event.clientX - box.left)) / box.width);
  showShare();
}

// Called by the plot, too: a point shows its pictures.
function chooseRow(name) {
  if (report.gallery === null || !(name in report.gallery.images)) return;
  pictures.right = name;
  showPictures();
  say(`${name} is shown beside ${pictures.left} under "The same seeds, side by side".`);
}

function pictureChoice(uri, index) {
  const radio = make("input", { type: "radio", name: "picture", value: index });
  radio.checked = index === pictures.index;
  radio.addEventListener("change", () => {
    pictures.index = index;
    showPictures();
  });
  return make("label", { class: "thumb" }, radio, make("img", { src: uri, alt: report.gallery.captions[index] }));
}

function rowChoice(name) {
  const button = make("button", { type: "button", class: "thumb", "data-row": name, "aria-pressed": "false" });
  button.append(make("img", { alt: "" }), make("span", {}, name));
  button.addEventListener("click", () => chooseRow(name));
  return button;
}

function startPictures() {
  if (report.gallery === null) return;
  const names = report.rows.map((row) => row.name).filter((name) => name in report.gallery.images);
  pictures.left = names.includes(pictures.left) ? pictures.left : names[0];
  pictures.right = names.includes(pictures.right) ? pictures.right : names[names.length - 1];
  byId("pictures").hidden = false;
  for (const side of ["left", "right"]) {
    fillSelect(byId(`${side}-row`), names.map((name) => [name, `${name}: ${rowTitle(rowsByName.get(name))}`]), null);
    byId(`${side}-row`).addEventListener("change", (event) => {
      pictures[side] = event.target.value;
      showPictures();
    });
  }
  byId("picture-choices").replaceChildren(...report.gallery.images[pictures.left].map(pictureChoice));
  byId("row-choices").replaceChildren(...names.map(rowChoice));
  byId("stage-share").addEventListener("input", showShare);
  for (const kind of ["pointerdown", "pointermove"]) byId("stage").addEventListener(kind, dragShare);
  showPictures();
  showShare();
}
