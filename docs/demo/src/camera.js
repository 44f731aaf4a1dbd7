// The camera as a source of pictures.

const REASONS = {
  NotFoundError: "No camera was found. Connect one, then try again.",
  OverconstrainedError: "No camera was found. Connect one, then try again.",
  NotAllowedError: "The camera is not allowed. Allow it in the browser's settings for this page.",
  SecurityError: "The camera is not allowed. Allow it in the browser's settings for this page.",
  NotReadableError: "The camera is in use by another program. Close that program, then try again.",
};

export class Camera {
  #video = document.createElement("video");

  constructor() {
    this.#video.muted = true;
    this.#video.playsInline = true;
  }

  get isOn() {
    return this.#video.srcObject !== null;
  }

  /** Open the camera. onEnd: called if it is disconnected. Throws an Error with one clear line. */
  async open(onEnd) {
    if (!navigator.mediaDevices) {
      throw new Error("The camera needs a secure address: https, or 127.0.0.1 on this computer.");
    }
    try {
      const size = { width: { ideal: 640 }, height: { ideal: 480 } };
      const stream = await navigator.mediaDevices.getUserMedia({ video: size });
      stream.getVideoTracks()[0].addEventListener("ended", onEnd);
      this.#video.srcObject = stream;
      await this.#video.play();
    } catch (error) {
      this.close();
      throw new Error(REASONS[error.name] ?? `The camera does not start: ${error.message}`);
    }
  }

  close() {
    for (const track of this.#video.srcObject?.getTracks() ?? []) track.stop();
    this.#video.srcObject = null;
  }

  /** The current frame, for drawImage, and its size. */
  get frame() {
    const { videoWidth: width, videoHeight: height } = this.#video;
    return { source: this.#video, width, height };
  }
}
