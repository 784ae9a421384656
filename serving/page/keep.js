// What can be kept: files, and links that carry a whole video in their fragment.

export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

export function linkOf(recipe) {
  const bytes = new TextEncoder().encode(JSON.stringify(recipe));
  const letters = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  const safe = letters.replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
  return `${location.origin}${location.pathname}#v=${safe}`;
}

/** The recipe of an address, or null. Whatever is in there came from somebody else. */
export function recipeOf(fragment) {
  const match = /^#v=([A-Za-z0-9_-]{4,60000})$/.exec(fragment);
  if (!match) return null;
  try {
    const letters = atob(match[1].replaceAll("-", "+").replaceAll("_", "/"));
    return checked(JSON.parse(new TextDecoder().decode(Uint8Array.from(letters, (letter) => letter.charCodeAt(0)))));
  } catch {
    return null;
  }
}

/** Only what a recipe may hold. */
export function checked(value) {
  const prompts = Array.isArray(value?.prompts) ? value.prompts : [];
  const sound = prompts.every(
    ({ frame, prompt }) => Number.isInteger(frame) && frame >= 0 && typeof prompt === "string" && prompt.length <= 4000,
  );
  if (!prompts.length || prompts.length > 500 || !sound || prompts[0].frame !== 0) return null;
  return {
    seed: /^[0-9]{1,20}$/.test(String(value.seed)) ? String(value.seed) : "0",
    switch: typeof value.switch === "string" ? value.switch.slice(0, 20) : "exact",
    prompts: prompts.map(({ frame, prompt }) => ({ frame, prompt })),
  };
}

/** Latent frames, as recipes count, to pictures. */
export function pictureOf(latent, factor) {
  return latent === 0 ? 0 : 1 + factor * (latent - 1);
}

