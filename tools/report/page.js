// Plays the two videos of a player as one: they start, stop and step together, and never drift apart by a frame.
"use strict";

for (const player of document.querySelectorAll(".player")) {
  const [first, second] = player.querySelectorAll("video");
  const button = player.querySelector(".play");
  const range = player.querySelector("input");
  const readout = player.querySelector("output");
  const fps = Number(player.dataset.fps);
  const last = Number(player.dataset.frames) - 1;
  const psnr = player.dataset.psnr.split(" ");
  const ssim = player.dataset.ssim.split(" ");

  const frameAt = (seconds) => Math.min(last, Math.floor(seconds * fps + 0.01));

  const show = (frame) => {
    range.value = frame;
    readout.value = `frame ${frame + 1} of ${last + 1} · ${psnr[frame]} dB · SSIM ${ssim[frame]}`;
  };

  // The middle of a frame, so that rounding in the decoder cannot pick its neighbour.
  const seek = (frame) => {
    const target = Math.max(0, Math.min(last, frame));
    for (const video of [first, second]) video.currentTime = (target + 0.5) / fps;
    show(target);
  };

  const pause = () => {
    first.pause();
    second.pause();
    button.textContent = "Play";
    button.setAttribute("aria-label", "Play");
    seek(frameAt(first.currentTime));
  };

  const follow = () => {
    if (first.paused) return;
    if (first.ended || frameAt(first.currentTime) >= last) {
      for (const video of [first, second]) video.currentTime = 0;
    } else if (Math.abs(first.currentTime - second.currentTime) > 0.5 / fps) {
      second.currentTime = first.currentTime;
    }
    show(frameAt(first.currentTime));
    requestAnimationFrame(follow);
  };

  const play = async () => {
    second.currentTime = first.currentTime;
    await Promise.all([first.play(), second.play()]);
    button.textContent = "Pause";
    button.setAttribute("aria-label", "Pause");
    requestAnimationFrame(follow);
  };

  const step = (frames) => {
    const from = frameAt(first.currentTime);
    if (!first.paused) pause();
    seek(from + frames);
  };

  button.addEventListener("click", () => (first.paused ? play() : pause()));
  player.querySelector(".back").addEventListener("click", () => step(-1));
  player.querySelector(".forward").addEventListener("click", () => step(1));
  range.addEventListener("input", () => {
    if (!first.paused) pause();
    seek(Number(range.value));
  });
  player.addEventListener("keydown", (event) => {
    if (event.target !== player) return;
    const actions = {
      " ": () => (first.paused ? play() : pause()),
      ArrowLeft: () => step(-1),
      ArrowRight: () => step(1),
      Home: () => seek(0),
      End: () => seek(last),
    };
    if (!(event.key in actions) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    actions[event.key]();
  });
  first.addEventListener("loadedmetadata", () => seek(0), { once: true });
  show(0);
}
