// Asks the agent.

// The agent does not answer, or not as it should.
export class Unreachable extends Error {}

// What a path gives as JSON, waited for as long as `milliseconds`.
export async function getJson(path, milliseconds) {
  try {
    const answer = await fetch(path, { signal: AbortSignal.timeout(milliseconds), cache: "no-store" });
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    return await answer.json();
  } catch (error) {
    throw new Unreachable(`${path}: ${error.message}`);
  }
}
