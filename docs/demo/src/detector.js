// The page's side of worker.js.

export class Detector {
  #worker;
  #waiting = new Map(); // id → { resolve, reject }
  #last = 0;

  /** Start the worker. Resolves with the number of threads, rejects if a file fails to load. */
  start() {
    this.#worker = new Worker("worker.js", { type: "module" });
    return new Promise((resolve, reject) => {
      this.#worker.onerror = () => reject(new Error("worker.js"));
      this.#worker.onmessage = ({ data }) => {
        if (data.id !== undefined) this.#answer(data);
        else if (data.ready) resolve(data.threads);
        else reject(new Error(data.error));
      };
    });
  }

  /** Stop the worker and start another: after an error its memory may be in an unknown state. */
  restart() {
    this.#worker.terminate();
    for (const { reject } of this.#waiting.values()) reject(new Error("stopped"));
    this.#waiting.clear();
    return this.start();
  }

  /** Find the faces of an ImageData, which is handed over. Resolves with { faces, ms }. */
  detect(image, options) {
    const id = ++this.#last;
    this.#worker.postMessage({ id, image, options }, [image.data.buffer]);
    return new Promise((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
  }

  #answer({ id, error, ...result }) {
    const { resolve, reject } = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (error === undefined) resolve(result);
    else reject(new Error(error));
  }
}
