// Asks the agent.

// The agent does not answer, or not as it should.
export class Unreachable extends Error {}

// There is no such thing.
export class Missing extends Unreachable {}

// Where a path of the agent is. Browsers fetch nothing below an address that names user and
// password, as a bookmark may.
export function at(path) {
  return new URL(path, location.origin);
}

// What a path gives as JSON, waited for as long as `milliseconds`.
export async function getJson(path, milliseconds = 20_000) {
  let answer;
  try {
    answer = await fetch(at(path), { signal: AbortSignal.timeout(milliseconds), cache: "no-store" });
    if (answer.ok) return await answer.json();
  } catch (error) {
    throw new Unreachable(`${path}: ${error.message}`);
  }
  if (answer.status === 404) throw new Missing(path);
  throw new Unreachable(answer.status === 401 ? "the password has changed; load this page anew" : `${path}: HTTP ${answer.status}`);
}
