// Formats bytes, seconds and counts, and reads budgets. Pure.

const KiB = 1024, MiB = KiB ** 2, GiB = KiB ** 3;

/** 1536 -> "1.5 KiB", with three digits. */
export function bytes(count) {
  if (!Number.isFinite(count)) return "–";
  const [size, unit] = count >= GiB ? [GiB, "GiB"] : count >= MiB ? [MiB, "MiB"] : count >= KiB ? [KiB, "KiB"] : [1, "B"];
  return `${digits(count / size)} ${unit}`;
}

/** 0.0123 -> "12.3 ms", 75 -> "1 min 15 s". */
export function seconds(time) {
  if (!Number.isFinite(time)) return "–";
  if (time < 0.9995) return `${digits(time * 1000)} ms`;
  if (time < 59.5) return `${digits(time)} s`;
  const whole = Math.round(time);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** "20 steps", "1 step". */
export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

/** A typed budget in the server's form: nothing means auto, a bare number means GiB. */
export function budgetWord(text) {
  const written = text.trim();
  return /^\d+([.,]\d+)?$/.test(written) ? `${written}G` : written || "auto";
}

function digits(value) {
  if (value >= 99.95 || Number.isInteger(value)) return value.toFixed(0);
  return value >= 9.995 ? value.toFixed(1) : value.toFixed(2);
}
