"""A look at the page's pictures, which knows nothing of what the page measures."""

# From now on: when Enter was pressed, and when the ground first had another colour than before.
LOOK = """
() => {
  const video = document.getElementById("video"), canvas = document.createElement("canvas");
  const pen = canvas.getContext("2d", { willReadFrequently: true }), looked = { changed: null, entered: null };
  Object.assign(canvas, { width: 24, height: 16 });
  window.looked = looked;
  addEventListener("keydown", (event) => { if (event.key === "Enter") looked.entered ??= performance.now(); }, true);
  let before;
  const look = (now) => {
    pen.drawImage(video, 0, 0, 24, 16);
    const pixels = pen.getImageData(0, 0, 24, 16).data;
    let green = 0;
    for (let i = 1; i < pixels.length; i += 4) green += pixels[i] / (pixels.length / 4);
    if (!looked.entered) before = green;
    else if (looked.changed === null && Math.abs(green - before) > 12) looked.changed = now;
    if (window.looked === looked) video.requestVideoFrameCallback(look);
  };
  video.requestVideoFrameCallback(look);
}
"""
