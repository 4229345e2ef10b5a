// How one image fills up: a bar a step, the image so far, and how sure the head was.

const DECIDED = 255;
const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // viridis
const player = { timeline: report.timelines[0] ?? null, step: 1, clock: null };

function rampColour(percent) {
  const place = (Math.min(100, percent) / 100) * (RAMP.length - 1);
  const index = Math.min(RAMP.length - 2, Math.floor(place));
  const mixed = RAMP[index].map((low, axis) => Math.round(low + (place - index) * (RAMP[index + 1][axis] - low)));
  return `rgb(${mixed.join(",")})`;
}

function showSteps() {
  const { moments } = player.timeline;
  const most = Math.max(...moments.map((moment) => moment.num_decided));
  const bars = moments.map((moment, index) => {
    const bar = make("span", { class: `step ${moment.full ? "full" : "fast"}` });
    bar.append(make("span", { class: "fill" }));
    bar.firstChild.style.height = `${Math.max(14, (100 * moment.num_decided) / most)}%`;
    bar.addEventListener("click", () => goTo(index + 1));
    return bar;
  });
  byId("timeline-steps").replaceChildren(...bars);
  byId("timeline-step").max = moments.length;
}

function goTo(step) {
  const { moments, row } = player.timeline;
  player.step = Math.min(moments.length, Math.max(1, step));
  const moment = moments[player.step - 1];
  const kind = moment.full ? "full" : "accelerated";
  const text = `Step ${player.step} of ${moments.length}, ${kind}: ${moment.num_decided} tokens decided, ${moment.num_masked} left.`;
  byId("timeline-step").value = player.step;
  byId("timeline-step").setAttribute("aria-valuetext", text);
  byId("timeline-text").textContent = text;
  byId("timeline-frame").src = moment.frame;
  byId("timeline-frame").alt = `${row} after step ${player.step}`;
  [...byId("timeline-steps").children].forEach((bar, index) => {
    bar.classList.toggle("now", index === player.step - 1);
    bar.classList.toggle("to-come", index >= player.step);
  });
  showConfidence(moment);
}

function showConfidence(moment) {
  byId("timeline-map").hidden = moment.confidence === null;
  if (moment.confidence === null) return;
  const canvas = byId("timeline-confidence");
  const [rows, columns] = player.timeline.grid;
  const percents = Uint8Array.from(atob(moment.confidence), (letter) => letter.charCodeAt(0));
  [canvas.width, canvas.height] = [columns, rows];
  const pen = canvas.getContext("2d");
  const masked = percents.filter((percent) => percent !== DECIDED);
  percents.forEach((percent, index) => {
    if (percent === DECIDED) return; // what is decided lets the background through
    pen.fillStyle = rampColour(percent);
    pen.fillRect(index % columns, Math.floor(index / columns), 1, 1);
  });
  const mean = masked.reduce((sum, percent) => sum + percent, 0) / Math.max(1, masked.length);
  canvas.setAttribute("aria-label", `Confidence map of step ${player.step}: ${masked.length} tokens masked, ${Math.round(mean)} % on average`);
}

function stop() {
  clearInterval(player.clock);
  player.clock = null;
  byId("timeline-play").textContent = "Play";
}

function play() {
  if (player.clock !== null) {
    stop();
    return;
  }
  byId("timeline-play").textContent = "Pause";
  if (player.step === player.timeline.moments.length) goTo(1);
  player.clock = setInterval(() => {
    goTo(player.step + 1);
    if (player.step === player.timeline.moments.length) stop();
  }, 350);
}

function startTimeline() {
  if (player.timeline === null) return;
  byId("timeline").hidden = false;
  player.timeline = report.timelines.find((one) => one.row === report.picked) ?? player.timeline;
  fillSelect(byId("timeline-row"), report.timelines.map(({ row }) => [row, `${row}: ${rowTitle(rowsByName.get(row))}`]), player.timeline.row);
  byId("timeline-row").addEventListener("change", (event) => {
    player.timeline = report.timelines.find((one) => one.row === event.target.value);
    showSteps();
    goTo(player.step);
  });
  byId("timeline-step").addEventListener("input", (event) => {
    stop();
    goTo(Number(event.target.value));
  });
  byId("timeline-play").addEventListener("click", play);
  showSteps();
  goTo(Math.ceil(player.timeline.moments.length / 2));
}
