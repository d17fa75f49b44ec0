// The HTTP interface, as any program would use it.

/** An error whose message can be shown to the visitor. */
export class Refusal extends Error {}

/** The detector, and what the server accepts: the fields of `About`. */
export function about() {
  return request("v1/detector");
}

/**
 * Scores an image: the fields of `Answer`.
 * @param {File} file
 * @param {{heatmap: boolean, stability: boolean}} options
 * @param {AbortSignal} signal
 */
export function predict(file, options, signal) {
  const query = new URLSearchParams(options);
  const headers = { "Content-Type": file.type || "application/octet-stream" };
  return request(`v1/predict?${query}`, { method: "POST", headers, body: file, signal });
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer. Check that it is running and that the file still exists.");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refusal(answer.error ?? `The server failed (${response.status}).`);
  return answer;
}
