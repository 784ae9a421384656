// Sentences and times, in one place.

export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds + 1e-6));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

export function span(seconds) {
  if (seconds < 9.95) return `${Math.max(0.1, seconds).toFixed(1)} s`;
  return seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`;
}

export function bytes(count) {
  return count >= 1e9 ? `${(count / 1e9).toFixed(1)} GB` : `${Math.round(count / 1e6)} MB`;
}

export function ordinal(number) {
  const tens = number % 100;
  const ending = tens > 10 && tens < 14 ? "th" : { 1: "st", 2: "nd", 3: "rd" }[number % 10] || "th";
  return `${number}${ending}`;
}

export const ENDS = {
  finished: "The video has come to its end.",
  stopped: "The video was stopped.",
  idle: "Nobody steered this video for a while, so it made room for others.",
  left: "The video was put aside while you were away.",
  failed: "The video could not go on.",
};
