// Binary pictures: version, kind, flags, epoch u32, frame u64, pts u64, payload; big endian.

export const VERSION = 1;
export const HEADER_BYTES = 23;
const KINDS = { 1: "h264", 2: "jpeg" };

export function unpack(buffer) {
  const view = new DataView(buffer);
  if (buffer.byteLength < HEADER_BYTES || view.getUint8(0) !== VERSION) return null;
  const flags = view.getUint8(2);
  return {
    kind: KINDS[view.getUint8(1)],
    isKey: (flags & 1) !== 0,
    isLast: (flags & 2) !== 0,
    epoch: view.getUint32(3),
    frame: Number(view.getBigUint64(7)),
    pts: Number(view.getBigUint64(15)),
    payload: new Uint8Array(buffer, HEADER_BYTES),
  };
}

export function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}
