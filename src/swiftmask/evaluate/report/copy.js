// Copy buttons, and the start of everything.

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", { class: "away" }); // pages from a file may have no clipboard
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

function startCopying() {
  for (const button of document.querySelectorAll(".copy")) {
    const label = button.textContent;
    button.hidden = false;
    button.addEventListener("click", async () => {
      await copyText(button.dataset.copy === "markdown" ? report.markdown : button.previousElementSibling.textContent);
      button.textContent = "Copied";
      say("Copied.");
      setTimeout(() => (button.textContent = label), 1500);
      button.focus();
    });
  }
}

startPlot();
startImages();
startTimeline();
startCopying();
