// What one model said, beside the chat of another; Python may replace it at any time.

function render({ model, el }) {
  const box = document.createElement("div");
  box.className = "fractal-transcript";
  box.dataset.testid = "transcript";
  el.replaceChildren(box);

  function paint() {
    const turns = model.get("turns");
    const near = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    box.replaceChildren(
      ...(turns.length ? turns : [{ role: "note", text: model.get("empty") }]).map((turn) => {
        const part = document.createElement("div");
        part.className = turn.role;
        part.textContent = turn.text;
        return part;
      }),
    );
    if (near) box.scrollTop = box.scrollHeight;
  }
  model.on("change:turns", paint);
  paint();
}

export default { render };
