// Keeps the page's files, so that it works without a network; a newer file replaces the kept one when there is one.
const KEPT = "niwaki";

self.addEventListener("install", (event) => {
  const files = ["./", "index.html", "main.js", "resize.js", "model.json", "model.onnx", "ort/ort.wasm.min.mjs",
    "ort/ort-wasm-simd-threaded.mjs", "ort/ort-wasm-simd-threaded.wasm"];
  event.waitUntil(caches.open(KEPT).then((cache) => cache.addAll(files)).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET" || new URL(event.request.url).origin !== location.origin) return;
  event.respondWith(
    fetch(event.request).then((answer) => {
      const copy = answer.clone();
      if (answer.ok) event.waitUntil(caches.open(KEPT).then((cache) => cache.put(event.request, copy)));
      return answer;
    }).catch(async () => (await caches.match(event.request, { ignoreSearch: true })) ?? Response.error()),
  );
});
