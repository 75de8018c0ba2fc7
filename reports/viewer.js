"use strict";
// Every view: the photo on a canvas, and over it the classes that the legend has switched on. What lies under the
// pointer in one view is told of all.
const opacity = document.getElementById("opacity"), photo = document.getElementById("photo");
const isolate = (name) => "\u2068" + name + "\u2069";
const views = [...document.querySelectorAll(".view")].map((view) => {
  const canvas = view.querySelector("canvas"), output = view.querySelector("output");
  const { names, colors, confident } = JSON.parse(view.querySelector("script").textContent);
  return { view, canvas, output, names, colors, confident, boxes: [...view.querySelectorAll(".legend input")] };
});
// The pixels of a picture; of one that is to be filled, transparent ones.
const pixelsOf = (width, height, picture) => {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  if (picture) context.drawImage(picture, 0, 0);
  return context.getImageData(0, 0, width, height);
};
const draw = (one) => {
  const { width, height } = one.canvas, context = one.canvas.getContext("2d");
  context.globalAlpha = 1;
  context.drawImage(photo, 0, 0, width, height);
  context.globalAlpha = opacity.value / 100;
  context.drawImage(one.layer, 0, 0);
};
const paint = (one) => {
  const { width, height } = one.canvas, painted = pixelsOf(width, height);
  const shown = new Set(one.boxes.filter((box) => box.checked).map((box) => Number(box.value)));
  for (let at = 0; at < painted.data.length; at += 4) {
    const id = one.values[at];
    if (shown.has(id)) painted.data.set([...one.colors[id], 255], at);
  }
  one.layer = new OffscreenCanvas(width, height);
  one.layer.getContext("2d").putImageData(painted, 0, 0);
  draw(one);
};
const tell = (x, y) => views.forEach((one) => {
  const { width, height } = one.canvas;
  const inside = (share, side) => Math.min(side - 1, Math.max(0, Math.floor(share * side)));
  const at = 4 * (inside(y, height) * width + inside(x, width)), id = one.values[at];
  const sure = one.confident ? `, ${((100 * one.values[at + 1]) / 255).toFixed(0)} % sure` : "";
  one.output.textContent = id < one.names.length ? isolate(one.names[id]) + sure : "nothing is known here";
});
const start = async () => {
  await Promise.all([...document.images].map((picture) => picture.decode()));
  for (const one of views) {
    one.values = pixelsOf(one.canvas.width, one.canvas.height, one.view.querySelector("img")).data;
    one.boxes.forEach((box) => box.addEventListener("change", () => paint(one)));
    const point = (event) => {
      const box = one.canvas.getBoundingClientRect();
      tell((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    };
    one.canvas.addEventListener("pointermove", point);
    one.canvas.addEventListener("pointerdown", point);
    paint(one);
  }
  opacity.addEventListener("input", () => views.forEach(draw));
  document.body.dataset.ready = "yes";
};
if (views.length) start();
